"""The OCI verbs on real containers: what each does in each state."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.clock import wait_until
from harness.linux.namespaces import identity

LOOP = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle


def test_run_gives_output_and_exit_status_and_leaves_nothing(bundle: Bundle) -> None:
    done = bundle.sh("echo out; echo err >&2; exit 7").minirt("run", "box")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert bundle.leftovers() == []


def test_voyage(bundle: Bundle) -> None:
    bundle.sh(LOOP).create()
    state = bundle.state()
    assert (state["status"], state["id"], state["bundle"]) == ("created", "box", str(bundle.folder))
    assert Path(f"/proc/{state['pid']}").exists()
    assert bundle.output() == ""
    bundle.ok("start", "box")
    bundle.await_output("up")
    assert bundle.state()["status"] == "running"
    bundle.ok("pause", "box")
    assert bundle.state()["status"] == "paused"
    bundle.ok("resume", "box")
    assert bundle.state()["status"] == "running"
    bundle.ok("kill", "box", "TERM")
    bundle.await_status("stopped")
    bundle.ok("delete", "box")
    assert bundle.leftovers() == []


@pytest.mark.parametrize(
    ("state", "words", "reason"),
    [
        ("created", ("create", "box"), "already exists"),
        ("created", ("delete", "box"), "not stopped: created"),
        ("created", ("resume", "box"), "container not paused"),
        ("running", ("start", "box"), "already running"),
        ("running", ("delete", "box"), "not stopped: running"),
        ("running", ("resume", "box"), "container not paused"),
        ("paused", ("start", "box"), "cannot start a container in the paused state"),
        ("paused", ("exec", "box", "true"), "paused container"),
        ("paused", ("pause", "box"), "container not running"),
        ("paused", ("delete", "box"), "not stopped: paused"),
        ("stopped", ("start", "box"), "has stopped"),
        ("stopped", ("kill", "box"), "container not running"),
        ("stopped", ("pause", "box"), "container not running"),
        ("stopped", ("exec", "box", "true"), "stopped container"),
        ("absent", ("start", "box"), "does not exist"),
        ("absent", ("state", "box"), "does not exist"),
        ("absent", ("kill", "box"), "does not exist"),
        ("absent", ("delete", "box"), "does not exist"),
        ("absent", ("exec", "box", "true"), "does not exist"),
    ],
)
def test_wrong_moves_are_refused_and_change_nothing(
    bundle: Bundle, state: str, words: tuple[str, ...], reason: str
) -> None:
    bundle.sh(LOOP)
    if state != "absent":
        bundle.create()
        if state != "created":
            bundle.ok("start", "box")
        if state == "paused":
            bundle.ok("pause", "box")
        if state == "stopped":
            bundle.ok("kill", "box", "KILL")
            bundle.await_status("stopped")
    log = bundle.folder / "log"
    done = bundle.minirt("--log", str(log), "--log-format", "json", *words)
    assert done.returncode == (255 if words[0] == "exec" else 1)
    assert reason in done.stderr
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert reason in last["msg"]
    if state != "absent":
        assert bundle.state()["status"] == state


def test_exec_output_status_and_missing_command(bundle: Bundle) -> None:
    bundle.sh(LOOP).create()
    bundle.ok("start", "box")
    done = bundle.minirt("exec", "box", "/bin/sh", "-c", "echo in; echo bad >&2; exit 4")
    assert (done.returncode, done.stdout, done.stderr) == (4, "in\n", "bad\n")
    missing = bundle.minirt("exec", "box", "nope")
    assert missing.returncode == 255
    assert 'exec: "nope": executable file not found in $PATH' in missing.stderr
    denied = bundle.minirt("exec", "box", "/etc/passwd")
    assert denied.returncode == 255
    assert "permission denied" in denied.stderr
    shown = bundle.ok(
        "exec", "--user", "1000:7", "--cwd", "/tmp", "--env", "A=b", "box", "sh", "-c", "id; pwd; echo $A"
    )
    assert shown == "uid=1000(user) gid=7\n/tmp\nb\n"


def test_exec_is_in_the_containers_cgroup_and_namespaces(bundle: Bundle) -> None:
    bundle.sh(LOOP).create()
    bundle.ok("start", "box")
    pid = bundle.state()["pid"]
    script = "cat /proc/self/cgroup; for n in pid mnt net ipc uts cgroup; do stat -L -c %i /proc/self/ns/$n; done"
    inside = bundle.ok("exec", "box", "sh", "-c", script).splitlines()
    kinds = ("pid", "mnt", "net", "ipc", "uts", "cgroup")
    assert inside[-6:] == [str(identity(pid, kind)[1]) for kind in kinds]
    assert any(line.endswith(":memory:/") or line == "0::/" for line in inside)


def test_missing_program_fails_create_and_leaves_nothing(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["nope"]
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert 'exec: "nope": executable file not found in $PATH' in done.stderr
    assert bundle.leftovers() == []


def test_killed_while_frozen_dies(bundle: Bundle) -> None:
    bundle.sh(LOOP).create()
    bundle.ok("start", "box")
    bundle.ok("pause", "box")
    bundle.ok("kill", "box", "KILL")
    bundle.await_status("stopped")


def test_delete_force_takes_every_process(bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"] = [{"type": "mount"}]
    del bundle.config["hostname"]
    bundle.config["mounts"] = [bundle.config["mounts"][0]]
    bundle.sh("sleep 1000 & echo up; exec sleep 1000").create()
    bundle.ok("start", "box")
    bundle.await_output("up")
    pids = json.loads(bundle.ok("ps", "--format", "json", "box"))
    assert len(pids) == 2
    bundle.ok("delete", "--force", "box")
    wait_until(lambda: not any(_runs(pid) for pid in pids), 20, "the container's processes to be gone")
    assert bundle.leftovers() == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_delete_force_of_nothing_is_no_error(bundle: Bundle) -> None:
    assert bundle.minirt("delete", "--force", "nothing").returncode == 0


def test_pid_file_and_list(bundle: Bundle) -> None:
    bundle.sh(LOOP)
    with (bundle.folder / "out").open("w") as out:
        bundle.ok("create", "--pid-file", "pid", "box", stdout=out, stderr=out, capture_output=False)
    pid = int((bundle.folder / "pid").read_text())
    listed = json.loads(bundle.ok("list", "--format", "json"))
    assert [(item["id"], item["pid"], item["status"]) for item in listed] == [("box", pid, "created")]
    assert bundle.ok("list", "-q") == "box\n"
    assert bundle.ok("list").splitlines()[1].split()[:3] == ["box", str(pid), "created"]


def _exe(bundle: Bundle) -> str:
    return str(Path(f"/proc/{bundle.state()['pid']}/exe").readlink())


@pytest.mark.parametrize("action", [None, "SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"])
def test_a_created_container_waits_in_a_trampoline(bundle: Bundle, action: str | None) -> None:
    """Of two pages, unless a filter might hinder it: then the runtime waits itself."""
    if action:
        bundle.config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["accept4"], "action": action, "args": [{"index": 3, "value": 7, "op": "SCMP_CMP_EQ"}]}
            ],
        }
    bundle.sh(LOOP).create()
    waits = "memfd:minirt" in _exe(bundle)
    assert waits is (action != "SCMP_ACT_ERRNO")
    if waits:
        status = Path(f"/proc/{bundle.state()['pid']}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 200
    assert bundle.state()["status"] == "created"
    bundle.ok("start", "box")
    bundle.await_output("up")
    assert bundle.state()["status"] == "running"
    assert "gate" not in [path.name for path in (bundle.states / "box").iterdir()]


_NEEDED = (
    *(
        "execve",
        "execveat",
        "write",
        "capset",
        "exit_group",
        "brk",
        "mmap",
        "munmap",
        "mprotect",
        "arch_prctl",
        "uname",
    ),
    *("set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink", "readlinkat", "getrandom", "getuid"),
)
"""by the shell of busybox, and by whoever executes it"""


@pytest.mark.parametrize(
    ("more", "waits"),
    [(("fcntl", "accept4", "read", "close"), "memfd:minirt"), (("fcntl",), "python"), ((), "python")],
    ids=["to wait", "to jump", "nothing"],
)
def test_a_filter_that_lets_nothing_through_that_can_be_done_before(
    bundle: Bundle, more: tuple[str, ...], waits: str
) -> None:
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": [*_NEEDED, *more], "action": "SCMP_ACT_ALLOW"}],
    }
    bundle.config["process"]["args"] = ["/bin/echo", "up"]
    bundle.create()
    assert waits in _exe(bundle)
    bundle.ok("start", "box")
    bundle.await_output("up")


def test_with_hooks_left_to_run_the_runtime_waits(bundle: Bundle) -> None:
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/touch", "args": ["touch", "/tmp/begun"]}]}
    bundle.config["root"]["readonly"] = False
    bundle.sh("ls /tmp").create()
    assert "memfd" not in _exe(bundle)
    assert not (bundle.rootfs / "tmp/begun").exists()
    bundle.ok("start", "box")
    bundle.await_output("begun")


def test_what_the_last_exec_fails_of_is_told_by_start(bundle: Bundle) -> None:
    for name, content in {"odd": "nonsense", "lost": "#!/not/there\n"}.items():
        (bundle.rootfs / f"bin/{name}").write_text(content)
        (bundle.rootfs / f"bin/{name}").chmod(0o755)
    for name, reason in {"odd": "exec format error", "lost": "no such file or directory"}.items():
        bundle.config["process"]["args"] = [f"/bin/{name}", "word"]
        bundle.create()
        assert "memfd:minirt" in _exe(bundle)
        done = bundle.minirt("start", "box")
        assert done.returncode == 1
        assert done.stderr.strip() == f'minirt: unable to start container process: exec: "/bin/{name}": {reason}'
        bundle.await_status("stopped")
        bundle.ok("delete", "box")


def test_a_start_that_is_killed_before_its_end_has_started_the_container(bundle: Bundle) -> None:
    bundle.sh(LOOP).create()
    gate = bundle.states / "box/gate"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.connect(str(gate))
    assert bundle.state()["status"] == "created"  # it had said nothing
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.connect(str(gate))
        killed.send(b"start")
    bundle.await_output("up")
    assert gate.exists()
    assert bundle.state()["status"] == "running"
    done = bundle.minirt("start", "box")
    assert "already running" in done.stderr
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


def test_a_start_waits_for_the_end_of_create(bundle: Bundle) -> None:
    """The container has a process and a gate as soon as its hooks run, and may not be started before they have ended."""
    slow = bundle.folder / "slow"
    slow.write_text(f"#!/bin/sh\ncat >{bundle.folder}/begun; sleep 1; echo ended >{bundle.folder}/ended\n")
    slow.chmod(0o755)
    bundle.config["hooks"] = {"createRuntime": [{"path": str(slow)}]}
    bundle.sh("echo up").write()
    argv = [*bundle.program, "--root", str(bundle.states), "create", "--bundle", str(bundle.folder), "box"]
    with (
        (bundle.folder / "out").open("w") as out,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as create,
    ):
        wait_until((bundle.folder / "begun").exists, 20, "the hook")
        bundle.ok("start", "box")
        assert (bundle.folder / "ended").exists()
        assert create.wait(20) == 0
    bundle.await_output("up")


def test_the_callers_files_are_where_the_caller_is(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    bundle.sh(LOOP).write()
    words = ("--log", "log", "--root", str(bundle.states))
    for verb, more in (("create", ("--bundle", str(bundle.folder))), ("exec", ("--detach",))):
        with (elsewhere / "out").open("w") as out:
            command = ("true",) if verb == "exec" else ()
            argv = [*bundle.program, *words, verb, *more, "--pid-file", verb, "box", *command]
            subprocess.run(
                argv, cwd=elsewhere, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True, timeout=60
            )
        assert int((elsewhere / verb).read_text()) > 1
    assert sorted(path.name for path in elsewhere.iterdir()) == ["create", "exec", "log", "out"]
    assert not {"create", "log"} & {path.name for path in bundle.folder.iterdir()}


def test_a_log_that_cannot_be_written_is_told_of(bundle: Bundle) -> None:
    done = bundle.minirt("--log", "/not/there/log", "create", "box")
    assert done.returncode == 1
    assert done.stderr == "minirt: --log /not/there/log: no such file or directory\n"
    assert bundle.leftovers() == []


def test_state_survives_a_kill_of_create(bundle: Bundle) -> None:
    """What a create leaves that was killed before its state had a pid can be found and deleted."""
    bundle.sh(LOOP).create()
    pid = bundle.state()["pid"]
    path = bundle.states / "box/state.json"
    content = json.loads(path.read_text())
    content["pid"] = content["pidStarted"] = 0
    path.write_text(json.dumps(content))
    assert bundle.state()["status"] == "stopped"
    bundle.ok("delete", "box")
    wait_until(lambda: not _runs(pid), 20, "the forgotten process to be gone")
    assert bundle.leftovers() == []


def test_corrupt_state_is_told_and_can_be_forced_away(bundle: Bundle) -> None:
    (bundle.states / "box").mkdir(parents=True)
    (bundle.states / "box/state.json").write_text("{")
    done = bundle.minirt("state", "box")
    assert done.returncode == 1
    assert "state.json" in done.stderr
    bundle.ok("delete", "--force", "box")
    assert not (bundle.states / "box").exists()


def test_hooks_run_at_their_moments_with_the_state(bundle: Bundle) -> None:
    said = bundle.folder / "said"
    names = ("prestart", "createRuntime", "poststart", "poststop")
    bundle.config["hooks"] = {
        name: [{"path": "/bin/sh", "args": ["sh", "-c", f"(echo {name}; cat; echo) >> {said}"]}] for name in names
    }
    bundle.run("true")
    lines = said.read_text().splitlines()
    assert lines[::2] == list(names)
    states = [json.loads(line) for line in lines[1::2]]
    assert [state["status"] for state in states] == ["creating", "creating", "running", "stopped"]
    assert states[0]["pid"] > 0
    assert states[0]["id"] == "box"


def test_failing_or_slow_hook_fails_create_and_leaves_nothing(bundle: Bundle) -> None:
    bundle.config["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]}
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert "exit status 3" in done.stderr
    assert "why" in done.stderr
    assert bundle.leftovers() == []
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert "did not end within 1 s" in done.stderr
    assert bundle.leftovers() == []


def test_run_hands_signals_on(bundle: Bundle) -> None:
    import subprocess
    import sys

    bundle.sh(LOOP).write()
    argv = [sys.executable, "-m", "harness.minirt", "--root", str(bundle.states), "run", "box"]
    with subprocess.Popen(argv, cwd=bundle.folder, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 3
    assert bundle.leftovers() == []


def test_a_relayed_terminal_adds_no_carriage_returns(bundle: Bundle) -> None:
    """runc, ``tty.go``: whoever reads the output of ``run`` and ``exec`` finds the lines that the program wrote."""
    bundle.config["process"]["terminal"] = True
    assert bundle.sh("echo one; test -t 1 && echo two").ok("run", "box") == "one\ntwo\n"
    bundle.config["process"]["terminal"] = False
    bundle.sh(LOOP).create()
    bundle.ok("start", "box")
    script = "sleep 0.2; echo one; test -t 1 && echo two"
    assert bundle.ok("exec", "--tty", "box", "/bin/sh", "-c", script) == "one\ntwo\n"
