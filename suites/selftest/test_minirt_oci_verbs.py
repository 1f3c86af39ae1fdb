"""The verbs beside those of runc: the same statuses, the same words, the same effect in the same state."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import CGROUP, Bundle, open_bundle

from harness.clock import wait_until
from harness.linux.cgroups import Mode, read_layout
from harness.minirt.container import document
from harness.minirt.container.cgroup import Cgroup
from harness.minirt.container.record import changed
from harness.minirt.container.signals import parse_signal
from harness.minirt.container.state import Container
from harness.minirt.errors import UsageError
from harness.minirt.oci import execution, listing
from harness.minirt.oci.about import default_config, features, make_rootless
from harness.minirt.oci.verbs import all_verbs

RUNC = shutil.which("runc")
LOOP = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"
V1 = read_layout().mode is not Mode.V2
with_runc = pytest.mark.skipif(RUNC is None, reason="runc is not installed: there is nothing to compare with")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle.sh(LOOP)


def be_runc(bundle: Bundle) -> None:
    assert RUNC is not None
    bundle.program = [RUNC]
    # An older one knows neither the version of our config nor a cgroup namespace on v1.
    bundle.config["ociVersion"] = "1.0.2"


def started(bundle: Bundle) -> Bundle:
    bundle.create()
    bundle.ok("start", "box")
    bundle.await_output("up")
    return bundle


def said(stderr: str) -> str:
    """The message alone, whichever runtime's."""
    text = stderr.strip().rpartition("\n")[2]
    if " msg=" in text:
        text = json.loads(text.partition(" msg=")[2])
    return text.removeprefix("minirt: ")


SAME = {
    "created": (
        ("exec", "box", "/bin/echo", "hello"),
        ("exec", "--cwd", "/tmp", "box", "pwd"),
        ("resume", "box"),
        ("pause", "box"),
        ("start", "box"),
        ("resume", "box"),
        ("kill", "box", "KILL"),
    ),
    "running": (
        ("start", "box"),
        ("delete", "box"),
        ("resume", "box"),
        ("kill", "box", "NONSENSE"),
        ("kill", "box", "0"),
        ("exec", "box", "nope"),
        ("exec", "box", "sh", "-c", "exit 42"),
        ("exec", "box", "sh", "-c", "kill -9 $$"),
        ("exec", "box"),
        ("exec", "--user", "1000:7", "--env", "A=b", "box", "sh", "-c", "id; echo $A"),
        ("exec", "--additional-gids", "9", "box", "id"),
        ("exec", "--cap", "CAP_NET_RAW", "box", "grep", "Cap", "/proc/self/status"),
        ("exec", "--no-new-privs", "box", "grep", "NoNewPrivs", "/proc/self/status"),
        ("ps", "--format", "yaml", "box"),
        ("ps", "box", "-o", "comm"),
        ("ps", "box", "-o", "pid,comm", "--no-such-option"),
        ("list", "--format", "yaml"),
        ("update", "box", "--memory", "1q"),
        ("events", "--interval", "0s", "box"),
        ("pause", "box"),
        ("pause", "box"),
        ("exec", "box", "true"),
        ("start", "box"),
        ("delete", "box"),
        ("kill", "box", "KILL"),
    ),
    "stopped": (
        ("start", "box"),
        ("pause", "box"),
        ("resume", "box"),
        ("kill", "box"),
        ("kill", "box", "KILL"),
        ("kill", "--all", "box"),
        ("exec", "box", "true"),
        ("update", "box", "--pids-limit", "5"),
        ("events", "--stats", "box"),
        ("checkpoint", "box"),
        ("ps", "box"),
        ("delete", "box"),
        ("delete", "--force", "box"),
    ),
}
WORDS = {
    # What runc says and what minirt says, where these differ for a reason.
    ("exec", "box"): ("args cannot be empty", "args cannot be empty"),
    ("ps", "box", "-o", "pid,comm", "--no-such-option"): ("For more details see ps(1).", "For more details see ps(1)."),
}


@with_runc
@pytest.mark.parametrize("state", SAME)
def test_same_status_and_words_as_runc(bundle: Bundle, state: str) -> None:
    """One voyage each, with the same commands; a command that succeeds prints the same too."""
    answers: dict[str, list[tuple[tuple[str, ...], int, str, str]]] = {"runc": [], "minirt": []}
    ours = bundle.program
    for program, found in answers.items():
        if program == "runc":
            be_runc(bundle)
        else:
            bundle.program = ours
        bundle.create()
        if state != "created":
            bundle.ok("start", "box")
            bundle.await_output("up")
        if state == "stopped":
            bundle.ok("kill", "box", "KILL")
            bundle.await_status("stopped")
        for words in SAME[state]:
            done = bundle.minirt(*words)
            text = said(done.stderr)
            if words in WORDS:
                mine = WORDS[words][program == "minirt"]
                assert mine in text
                text = mine
            # The table's columns are as wide as the ps that made it has them.
            output = done.stdout.split() if words[0] != "ps" else done.stdout.split()[:1]
            found.append((words, done.returncode, text, " ".join(output)))
            if words[:1] == ("kill",) and words[-1] == "KILL":
                bundle.await_status("stopped")
        bundle.ok("delete", "--force", "box")
        (bundle.folder / "out").unlink()
    assert answers["minirt"] == answers["runc"]


@with_runc
def test_state_and_list_as_runc_has_them(bundle: Bundle) -> None:
    bundle.config["annotations"] = {"org.example": "x"}
    found: dict[str, dict[str, Any]] = {}
    tables = []
    ours = bundle.program
    for program in ("runc", "minirt"):
        if program == "runc":
            be_runc(bundle)
        else:
            bundle.program = ours
        started(bundle)
        found[program] = bundle.state()
        (listed,) = json.loads(bundle.ok("list", "--format", "json"))
        assert listed == {**found[program], "owner": "root"}
        tables.append(bundle.ok("list").replace(str(listed["pid"]), "PID").replace(listed["created"], "CREATED"))
        bundle.ok("delete", "--force", "box")
        (bundle.folder / "out").unlink()
    assert list(found["minirt"]) == list(found["runc"])
    for document_ in found.values():
        # runc tells its own version.
        del document_["pid"], document_["created"], document_["ociVersion"]
    assert found["minirt"] == found["runc"]
    assert [line.split() for line in tables[0].splitlines()] == [line.split() for line in tables[1].splitlines()]


def test_list_goes_on_after_a_state_that_cannot_be_read(bundle: Bundle) -> None:
    bundle.create()
    (bundle.states / "broken").mkdir()
    (bundle.states / "broken/state.json").write_text("{")
    done = bundle.minirt("list", "--quiet")
    assert (done.returncode, done.stdout) == (0, "box\n")
    assert done.stderr.startswith("load container broken: ")


def test_ps_prints_a_table_of_its_own_without_options(bundle: Bundle) -> None:
    started(bundle)
    pid = bundle.state()["pid"]
    title, first, *_ = bundle.ok("ps", "box").splitlines()
    assert title.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    fields = first.split(None, 7)
    assert (fields[0], fields[1], fields[5]) == ("root", str(pid), "?")
    assert fields[7].startswith("/bin/sh -c trap")


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_ps_hands_options_on(bundle: Bundle) -> None:
    started(bundle)
    pid = bundle.state()["pid"]
    title, *lines = bundle.ok("ps", "box", "-A", "-o", "pid,ppid").splitlines()
    assert title.split() == ["PID", "PPID"]
    assert str(pid) in [line.split()[0] for line in lines]
    assert str(os.getpid()) not in [line.split()[0] for line in lines]


def test_options_of_ps_need_ps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UsageError, match="ps, which is not installed"):
        listing._run_ps(["-ef"])


def test_terminals_have_names() -> None:
    assert [listing._terminal(number) for number in (0, 136 << 8 | 3, 4 << 8 | 1, 4 << 8 | 65)] == [
        "?",
        "pts/3",
        "tty1",
        "ttyS1",
    ]


@pytest.mark.parametrize(
    ("word", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("sigterm", 15), ("term", 15), ("9", 9), ("0", 0), ("RTMIN+1", 35), ("SIGIO", 29)],
)
def test_signals(word: str, number: int) -> None:
    assert parse_signal(word) == number


def shared(bundle: Bundle) -> Bundle:
    """A container in the machine's pid namespace, whose processes do not end with its first one."""
    bundle.config["linux"]["namespaces"] = [{"type": "mount"}]
    del bundle.config["hostname"]
    bundle.config["mounts"] = [bundle.config["mounts"][0]]
    return started(bundle.sh("sleep 1000 & echo up; exec sleep 1000"))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_of(bundle: Bundle) -> list[int]:
    found: list[int] = json.loads(bundle.ok("ps", "--format", "json", "box"))
    return found


def test_kill_takes_all_of_a_container_that_shares_the_pid_namespace(bundle: Bundle) -> None:
    shared(bundle)
    pids = pids_of(bundle)
    assert len(pids) == 2
    bundle.ok("kill", "box", "KILL")
    wait_until(lambda: not any(map(runs, pids)), 20, "both processes to end")


@pytest.mark.parametrize("words", [("kill", "box", "KILL"), ("kill", "--all", "box", "KILL"), ("kill", "-a", "box")])
def test_kill_reaches_what_a_stopped_container_has_left(bundle: Bundle, words: tuple[str, ...]) -> None:
    """Its first process is gone, so it has stopped; the other one runs on."""
    shared(bundle)
    first = bundle.state()["pid"]
    (other,) = set(pids_of(bundle)) - {first}
    os.kill(first, signal.SIGKILL)
    bundle.await_status("stopped")
    assert pids_of(bundle) == [other]
    bundle.ok(*words)
    wait_until(lambda: not runs(other), 20, "the other process to end")
    bundle.ok("delete", "box")
    assert bundle.leftovers() == []


def test_delete_takes_what_a_stopped_container_has_left(bundle: Bundle) -> None:
    shared(bundle)
    pids = pids_of(bundle)
    os.kill(bundle.state()["pid"], signal.SIGKILL)
    bundle.await_status("stopped")
    bundle.ok("delete", "box")
    wait_until(lambda: not any(map(runs, pids)), 20, "all to end")
    assert bundle.leftovers() == []


def test_delete_takes_cgroups_that_were_made_below(bundle: Bundle) -> None:
    started(bundle)
    inner = Path(f"{_folder('memory' if V1 else '')}/a/b")
    inner.mkdir(parents=True)
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


def _folder(controller: str) -> str:
    layout = read_layout()
    top = layout.controllers[controller] if controller else layout.unified
    return f"{top}{CGROUP}/box"


def test_kill_and_delete_of_a_paused_container(bundle: Bundle) -> None:
    started(bundle).ok("pause", "box")
    bundle.ok("kill", "box", "KILL")
    bundle.await_status("stopped")
    bundle.ok("delete", "box")
    started(bundle).ok("pause", "box")
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


def test_a_created_container_can_be_paused_and_is_created_again(bundle: Bundle) -> None:
    bundle.create()
    bundle.ok("pause", "box")
    assert bundle.state()["status"] == "paused"
    bundle.ok("resume", "box")
    assert bundle.state()["status"] == "created"
    bundle.ok("start", "box")
    bundle.await_output("up")


def detached(bundle: Bundle, *words: str) -> None:
    """One more process, whose stdio nobody waits for."""
    with (bundle.folder / "out").open("a") as out:
        words = ("exec", "--detach", "--pid-file", "pid", *words, "box", "sleep", "1000")
        bundle.ok(*words, stdout=out, stderr=out, capture_output=False)


@pytest.mark.skipif(not V1, reason="makes cgroups of v1")
def test_exec_below_the_containers_cgroup(bundle: Bundle) -> None:
    started(bundle)
    Path(f"{_folder('memory')}/inner").mkdir()
    for controller in ("cpu", "cpuacct"):
        Path(f"{_folder(controller)}/other").mkdir()
    words = ("--cgroup", "memory:inner", "--cgroup", "cpu,cpuacct:/other")
    detached(bundle, *words)
    pid = (bundle.folder / "pid").read_text()
    lines = Path(f"/proc/{pid}/cgroup").read_text()
    assert f":memory:{CGROUP}/box/inner\n" in lines
    assert f":cpuacct:{CGROUP}/box/other\n" in lines
    assert f":pids:{CGROUP}/box\n" in lines


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("..",), "bad sub cgroup path"),
        (("nonexistent",), "no such file or directory"),
        (("whaaat:/",), "unknown controller whaaat"),
        ((":x",), "empty <controller> prefix"),
        (("a", "b"), "missing <controller>: prefix"),
    ],
)
def test_cgroups_that_exec_refuses(bundle: Bundle, words: tuple[str, ...], reason: str) -> None:
    started(bundle)
    done = bundle.minirt("exec", *(f"--cgroup={word}" for word in words), "box", "true")
    assert done.returncode == 255
    assert reason in done.stderr


def test_exec_goes_to_where_the_first_process_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v2: a cgroup that has given controllers to those below it holds no process itself."""
    place = Cgroup(2, {"": str(tmp_path)})
    container = Container("box", "1.0.0", "/b", "/r", place, "", pid=os.getpid())
    (tmp_path / "cgroup.subtree_control").write_text("\n")
    assert execution._place(container, []) == place
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    if read_layout().unified is not None:
        (line,) = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
        assert execution._place(container, []).folders == {"": f"{read_layout().unified}{line[3:]}"}
    (tmp_path / "sub").mkdir()
    assert execution._place(container, ["sub"]).folders == {"": f"{tmp_path}/sub"}
    assert execution._place(container, ["/"]).folders == {"": str(tmp_path)}
    gone = changed(container, cgroup=Cgroup(2, {"": f"{tmp_path}/gone"}))
    assert execution._place(gone, []).folders != gone.cgroup.folders


def test_exec_of_a_process_file_takes_the_rest_from_the_container(bundle: Bundle) -> None:
    bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 5, "hard": 5}]
    started(bundle)
    process = {"args": ["sh", "-c", "ulimit -c; grep CapBnd /proc/self/status"], "cwd": "/", "env": ["PATH=/bin"]}
    (bundle.folder / "process.json").write_text(json.dumps(process))
    limit, capabilities = bundle.ok("exec", "--process", "process.json", "box").splitlines()
    assert limit in ("0", "5")
    assert capabilities.split()[1] == "0000000020000420"


def test_unknown_capability_is_left_out_with_a_warning(bundle: Bundle) -> None:
    started(bundle)
    log = bundle.folder / "log"
    bundle.ok("--log", str(log), "exec", "--cap", "CAP_FLY", "box", "true")
    assert "ignoring unknown capability CAP_FLY" in log.read_text()


@pytest.mark.parametrize("verb", ["create", "exec"])
def test_pidfd_is_sent(bundle: Bundle, verb: str) -> None:
    path = str(bundle.folder / "pidfd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        if verb == "create":
            with (bundle.folder / "out").open("w") as out:
                words = ("create", "--pidfd-socket", path, "--pid-file", "pid", "box")
                bundle.ok(*words, stdout=out, stderr=out, capture_output=False)
        else:
            started(bundle)
            detached(bundle, "--pidfd-socket", path)
        end, _ = listener.accept()
        with end:
            _, (fd,), _, _ = socket.recv_fds(end, 100, 1)
    facts = Path(f"/proc/self/fdinfo/{fd}").read_text()
    assert f"Pid:\t{(bundle.folder / 'pid').read_text()}\n" in facts
    os.close(fd)


@pytest.mark.parametrize("verb", ["create", "exec"])
def test_preserved_descriptors_have_to_be_open(bundle: Bundle, verb: str) -> None:
    if verb == "exec":
        started(bundle)
    words = ("create", "box") if verb == "create" else ("exec", "box", "true")
    done = bundle.minirt(words[0], "--preserve-fds", "2", *words[1:])
    assert done.returncode != 0
    assert "unable to stat preserved-fd 0 (of 2): bad file descriptor" in done.stderr


@with_runc
@pytest.mark.parametrize("rootless", [False, True])
def test_spec_is_that_of_runc(bundle: Bundle, tmp_path: Path, rootless: bool) -> None:
    """But for our names, and a cgroup namespace, which runc's has on v2 only."""
    assert RUNC is not None
    found = []
    for program in ([RUNC], bundle.program):
        bundle.program = program
        (bundle.folder / "config.json").unlink(missing_ok=True)
        (bundle.folder / "made").mkdir(exist_ok=True)
        bundle.ok("spec", "--bundle", "made", *(["--rootless"] if rootless else []))
        found.append(json.loads((bundle.folder / "made/config.json").read_text()))
        done = bundle.minirt("spec", "--bundle", "made")
        assert done.returncode == 1
        assert "config.json exists. Remove it first" in done.stderr
        (bundle.folder / "made/config.json").unlink()
    for content in found:
        del content["ociVersion"], content["hostname"]
        spaces = content["linux"]["namespaces"]
        content["linux"]["namespaces"] = [entry for entry in spaces if entry["type"] != "cgroup"]
        for mount in content["mounts"]:
            mount["options"] = mount.get("options", [])
        # Older ones give ambient and inheritable capabilities too.
        content["process"]["capabilities"].pop("ambient", None)
        content["process"]["capabilities"].pop("inheritable", None)
    assert found[1] == found[0]


def test_rootless_spec_maps_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    config = default_config()
    make_rootless(config)
    linux = config["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert {"type": "network"} not in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": 100, "size": 1}]
    assert "resources" not in linux
    assert not [word for mount in config["mounts"] for word in mount["options"] if word.startswith("gid=")]


def test_features_are_all_there() -> None:
    """features.md; what has no field there, or is not supported, is absent."""
    found = features()
    assert set(found) == {
        "ociVersionMin",
        "ociVersionMax",
        "annotations",
        "hooks",
        "mountOptions",
        "potentiallyUnsafeConfigAnnotations",
        "linux",
    }
    assert found["annotations"]["org.opencontainers.runc.checkpoint.enabled"] == "true"
    assert found["linux"]["cgroup"] == {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True}
    seccomp = found["linux"]["seccomp"]
    assert "SCMP_ARCH_X86_64" in seccomp["archs"]
    assert set(seccomp["supportedFlags"]) <= set(seccomp["knownFlags"])
    assert document.parse(document.render(found)) == found


@pytest.mark.parametrize("verb", [verb.name for verb in all_verbs() if verb.options])
def test_every_verb_has_help(bundle: Bundle, verb: str) -> None:
    one, other = bundle.ok("help", verb), bundle.ok(verb, "--help")
    assert one == other
    assert one.startswith(f"usage: minirt {verb}")


def test_help_of_restore_names_what_podman_looks_for(bundle: Bundle) -> None:
    """It asks for the option's name to know whether containers can be restored into pods."""
    assert "--lsm-mount-context" in bundle.ok("restore", "--help")


def test_version_has_runcs_form(bundle: Bundle) -> None:
    lines = bundle.ok("--version").splitlines()
    assert lines[0].split()[:2] == ["minirt", "version"]
    assert [line.partition(": ")[0] for line in lines[1:]] == ["commit", "spec"]


def test_keep_leaves_the_stopped_container(bundle: Bundle) -> None:
    assert bundle.sh("exit 5").minirt("run", "--keep", "box").returncode == 5
    assert bundle.state()["status"] == "stopped"
    bundle.ok("delete", "box")
    assert bundle.leftovers() == []


@pytest.mark.parametrize("adopts", [True, False])
def test_orphans_are_adopted_while_run_waits(bundle: Bundle, adopts: bool) -> None:
    """In the machine's pid namespace: the parent of what outlives its own parent is `run`, unless it was told not to."""
    bundle.config["linux"]["namespaces"] = [{"type": "mount"}]
    del bundle.config["hostname"]
    bundle.config["mounts"] = [bundle.config["mounts"][0]]
    # The one in between ends at once. The first process tells its own parent, which is the runtime; the orphan tells its.
    orphan = "sleep 0.5; exec grep PPid /proc/self/status"
    bundle.sh(f"grep PPid /proc/$$/status; (({orphan}) & ); sleep 1.5")
    runtime, adopter = bundle.ok("run", *([] if adopts else ["--no-subreaper"]), "box").splitlines()
    assert runtime.startswith("PPid:")
    assert (adopter == runtime) is adopts


def test_sockets_of_the_starter_are_handed_on(bundle: Bundle) -> None:
    """sd_listen_fds(3): they begin at 3, and those of --preserve-fds follow."""
    script = "echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd; cat <&3; cat <&4"
    bundle.sh(script).write()
    first, second = ((bundle.folder / name) for name in ("one", "two"))
    first.write_text("first\n")
    second.write_text("second\n")
    runtime = " ".join([*bundle.program, "--root", str(bundle.states), "run", "--preserve-fds", "1", "box"])
    command = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {runtime} 3<{first} 4<{second}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=bundle.folder,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "1 1"
    assert lines[-2:] == ["first", "second"]
