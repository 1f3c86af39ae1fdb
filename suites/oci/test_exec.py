"""Further processes of a running container: ``exec`` as runc has it, which the callers of OCI runtimes rely on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.client.pidfile import watch
from harness.linux.namespaces import identity
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_box import PROBE, Box
from harness.session.oci_breach import accepts, pretends, says, swallows, swaps
from harness.session.oci_config import PATH
from harness.session.oci_facts import Facts, parse_facts

pytestmark = pytest.mark.operation(OciArea.EXEC)


def probed(oci: OciTrial, box: Box, *words: str, asked: tuple[str, ...]) -> Facts:
    """What the probe says as a further process, started with the flags `words`."""
    return parse_facts(oci.do("exec", *words, box.id, "/bin/sh", PROBE, *asked).stdout)


def process(**more: Any) -> dict[str, Any]:
    """A ``process`` object for ``exec --process``."""
    return {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": [PATH], "cwd": "/", **more}


def by_document(oci: OciTrial, box: Box, *words: str, **more: Any) -> Any:
    path = box.path / "process.json"
    oci.door.write(path, process(**more))
    return oci.attempt("exec", "--process", str(path), *words, box.id)


@pytest.mark.breach(pretends("exec"))
def test_output_and_status(oci: OciTrial) -> None:
    """runc, exec: the command's output and its exit status are those of the process."""
    box = oci.launch()
    done = oci.attempt("exec", box.id, "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.status, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


@pytest.mark.breach(says("exec", status=1))
def test_status_of_a_signal(oci: OciTrial) -> None:
    """runc, exec: a process that a signal ended gives 128 and its number."""
    box = oci.launch()
    assert oci.attempt("exec", box.id, "/bin/sh", "-c", "kill -TERM $$").status == 128 + 15


@pytest.mark.breach(accepts("exec"))
@pytest.mark.parametrize("program", ["/no/such", "/etc/passwd"])
def test_status_of_what_cannot_be_run(oci: OciTrial, program: str) -> None:
    """runc, exec: what is not there, or is no program, is an error with a reason; a shell in the container has 127 and 126 for them."""
    box = oci.launch()
    done = oci.attempt("exec", box.id, program)
    assert done.status != 0
    assert done.stderr
    assert oci.attempt("exec", box.id, "/bin/sh", "-c", program).status == (127 if program == "/no/such" else 126)
    assert oci.status(box) == "running"


@pytest.mark.breach(swaps("exec", lambda command, call: call(command.__class__("exec", (*command.words[:-1], "echo")))))
def test_stdin(oci: OciTrial) -> None:
    """runc, exec: the command's standard input is the process' own."""
    box = oci.launch()
    assert oci.do("exec", box.id, "/bin/cat", input=b"from outside\n").stdout == b"from outside\n"


@pytest.mark.breach(says("exec", stdout=b'{"ns":{}}\n'))
@pytest.mark.kernel
def test_it_is_in_the_containers_namespaces(oci: OciTrial) -> None:
    """Namespaces: a process of the container is in the container's: all of them, its cgroup and its root, too."""
    box = oci.launch({"linux.namespaces.+": {"type": "network"}})
    done = oci.do("exec", "--detach", "--pid-file", str(box.path / "second"), box.id, "/bin/sleep", "60")
    assert done.status == 0
    assert (box.path / "second").exists(), "there is no pid file"
    second = int((box.path / "second").read_text())
    for kind in ("pid", "ipc", "uts", "mnt", "net", "cgroup", "user"):
        assert identity(second, kind) == identity(oci.pid(box), kind), kind
    assert second in oci.pids(box)
    assert Path(f"/proc/{second}/root/bin/true").samefile(box.rootfs / "bin" / "true")
    facts = probed(oci, box, asked=("ns",))
    assert facts["ns"].get("pid"), "no namespace was told"


@pytest.mark.breach(swallows("exec", "--cwd"))
@pytest.mark.kernel
def test_cwd(oci: OciTrial) -> None:
    """runc, exec: "--cwd value: current working directory in the container"; the container's own by default."""
    box = oci.launch({"process.cwd": "/var"})
    assert probed(oci, box, "--cwd", "/etc", asked=("cwd",)).text("cwd") == "/etc"
    assert probed(oci, box, asked=("cwd",)).text("cwd") == "/var"


@pytest.mark.breach(swallows("exec", "--env"))
def test_env(oci: OciTrial) -> None:
    """runc, exec: "--env value, -e value: set environment variables": added to the container's own, of which they win."""
    box = oci.launch({"process.env.+": "KEPT=1"})
    facts = probed(oci, box, "--env", "ADDED=a b", "--env", "MORE=", asked=("proc:environ",))
    assert {"KEPT=1", "ADDED=a b", "MORE="} <= set(facts.environment)


@pytest.mark.breach(swallows("exec", "--user"))
def test_user(oci: OciTrial) -> None:
    """runc, exec: "--user value, -u value: UID (format: <uid>[:<gid>])"."""
    facts = probed(oci, oci.launch(), "--user", "1000:2000", asked=("proc:status",))
    assert (facts.status("Uid").split()[0], facts.status("Gid").split()[0]) == ("1000", "2000")


@pytest.mark.breach(swallows("exec", "--additional-gids"))
def test_additional_groups(oci: OciTrial) -> None:
    """runc, exec: "--additional-gids value, -g value: additional gids"."""
    oci.needs_flag("exec", "--additional-gids")
    facts = probed(oci, oci.launch(), "--additional-gids", "3000", asked=("proc:status",))
    assert "3000" in facts.status("Groups").split()


@pytest.mark.breach(swallows("exec", "--cap"))
def test_further_capability(oci: OciTrial) -> None:
    """runc, exec: "--cap value, -c value: add a capability to the bounding set for the process"."""
    box = oci.launch({"process.capabilities": {kind: ["CAP_CHOWN"] for kind in ("bounding", "effective", "permitted")}})
    facts = probed(oci, box, "--cap", "CAP_KILL", asked=("proc:status",))
    assert facts.capabilities["bounding"] == {"CAP_CHOWN", "CAP_KILL"}


@pytest.mark.breach(says("exec", stdout=b'{"proc:status":"NoNewPrivs:\\t0\\nUmask:\\t0022\\nCapBnd:\\tff\\n"}\n'))
@pytest.mark.kernel
def test_the_containers_process_is_the_model(oci: OciTrial) -> None:
    """runc, exec: what is not named is as in the container's own process: capabilities, no_new_privs, limits."""
    names = ["CAP_CHOWN", "CAP_KILL"]
    changes = {
        "process.capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "process.noNewPrivileges": True,
    }
    facts = probed(oci, oci.launch(changes), asked=("proc:status",))
    assert facts.status("NoNewPrivs") == "1"
    assert facts.capabilities["bounding"] == set(names)


@pytest.mark.breach(swallows("exec", "--detach", value=False))
def test_detach(oci: OciTrial) -> None:
    """runc, exec: "--detach, -d: detach from the container's process"."""
    box = oci.launch()
    done = oci.attempt("exec", "--detach", box.id, "/bin/sh", "-c", "sleep 4; echo late >/tmp/late", timeout_s=20)
    assert done.status == 0, done.stderr
    assert not (box.rootfs / "tmp" / "late").exists()


@pytest.mark.breach(swallows("exec", "--pid-file"))
@pytest.mark.kernel
def test_pid_file(oci: OciTrial) -> None:
    """runc, exec: "--pid-file value: specify the file to write the process id to": of the machine's own counting."""
    box = oci.launch()
    path = box.path / "second"
    oci.do("exec", "--detach", "--pid-file", str(path), box.id, "/bin/sleep", "60")
    assert path.exists(), "there is no pid file"
    assert int(path.read_text()) in oci.pids(box)
    assert int(path.read_text()) != oci.pid(box)


@pytest.mark.breach(swallows("exec", "--preserve-fds"))
def test_further_descriptors(oci: OciTrial) -> None:
    """runc, exec: "--preserve-fds value: Pass N additional file descriptors to the container"."""
    oci.needs_flag("exec", "--preserve-fds")
    box = oci.launch()
    (box.path / "three").write_text("three\n")
    done = oci.attempt(
        "exec", "--preserve-fds", "1", box.id, "/bin/sh", "-c", "cat <&3",
        under=("/bin/sh", "-c", f'exec 3<{box.path}/three; exec "$@"', "sh"),
    )  # fmt: skip
    assert done.stdout == b"three\n", done.stderr


@pytest.mark.breach(says("exec", stdout=b"0 1 2 5\n"))
@pytest.mark.kernel
def test_no_descriptor_of_the_runtime(oci: OciTrial) -> None:
    """runc, exec: three standard streams, and none of the runtime's or its caller's."""
    box = oci.launch()
    path = box.path / "second"
    oci.do(
        "exec",
        "--detach",
        "--pid-file",
        str(path),
        box.id,
        "/bin/sleep",
        "60",
        under=("/bin/sh", "-c", 'exec 5</dev/null; exec "$@"', "sh"),
    )
    # A runtime's own process may have the same words on its command line, before it becomes the program.
    program = b"/bin/sleep\x0060\0"
    oci.wait(lambda: Path(f"/proc/{path.read_text()}/cmdline").read_bytes() == program, "the program to run")
    assert sorted(entry.name for entry in Path(f"/proc/{path.read_text()}/fd").iterdir()) == ["0", "1", "2"]
    said = oci.do("exec", box.id, "/bin/sh", "-c", "echo 0 1 2").text
    assert said == "0 1 2\n"


@pytest.mark.breach(pretends("exec"))
def test_process_document(oci: OciTrial) -> None:
    """runc, exec: "--process value, -p value: path to the process.json": which alone says what is run, and how."""
    box = oci.launch()
    asked = ["proc:status", "proc:environ", "pwd"]
    done = by_document(
        oci,
        box,
        args=["/bin/sh", PROBE, *asked],
        env=[PATH, "HOME=/tmp", "ONLY=this"],
        cwd="/var/run",
        user={"uid": 1234, "gid": 5678, "additionalGids": [42]},
    )
    assert done.status == 0, done.stderr
    facts = parse_facts(done.stdout)
    assert sorted(facts.environment) == sorted([PATH, "HOME=/tmp", "ONLY=this"])
    assert facts.text("pwd") == "/var/run"
    assert facts.status("Uid").split()[0] == "1234"
    assert facts.status("Groups").split() == ["42"]


@pytest.mark.breach(pretends("exec"))
def test_process_document_umask(oci: OciTrial) -> None:
    """User: "umask (int, OPTIONAL) specifies the umask of the user": of a further process, too."""
    done = by_document(oci, oci.launch(), args=["/bin/sh", "-c", "umask"], user={"uid": 0, "gid": 0, "umask": 0o77})
    assert done.stdout == b"0077\n"


@pytest.mark.breach(pretends("exec"))
@pytest.mark.kernel
def test_process_document_limits_open_files(oci: OciTrial) -> None:
    """POSIX process: "rlim.rlim_cur MUST match the configured value": of a further process, too (Go's own start raises this one)."""
    limit = {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}
    done = by_document(oci, oci.launch(), args=["/bin/sh", PROBE, "proc:limits"], rlimits=[limit])
    assert parse_facts(done.stdout).limits["RLIMIT_NOFILE"] == (77, 88)


@pytest.mark.breach(accepts("exec"))
@pytest.mark.parametrize("status", ["stopped", ""])
def test_exec_in_what_does_not_run(oci: OciTrial, status: str) -> None:
    """Errors: an operation that cannot be done generates one."""
    name = oci.end(oci.launch()).id if status else "no-such-container"
    assert oci.refused("exec", name, "/bin/true")
    assert oci.status(name) == status


@pytest.mark.breach(pretends("exec"))
def test_exec_in_what_is_created(oci: OciTrial) -> None:
    """runc, exec: the namespaces of a created container are there, and a process can be started in them; the container stays as it is."""
    box = oci.create(oci.box(args=SLEEP))
    assert oci.do("exec", box.id, "/bin/echo", "ahoy").text == "ahoy\n"
    assert oci.status(box) == "created"


@pytest.mark.breach(accepts("exec"))
def test_exec_in_a_paused_container_is_an_error(oci: OciTrial) -> None:
    """runc, exec: "cannot exec in a paused container": it would hang."""
    box = oci.launch()
    oci.do("pause", box.id)
    assert oci.refused("exec", box.id, "/bin/true", timeout_s=10)


@pytest.mark.breach(accepts("exec"))
def test_exec_without_a_program_is_an_error(oci: OciTrial) -> None:
    """runc, exec: "process args cannot be empty"."""
    box = oci.launch()
    assert oci.refused("exec", box.id)


@pytest.mark.breach(pretends("exec"))
def test_it_ends_with_the_container(oci: OciTrial) -> None:
    """Kill: when the first process of a pid namespace ends, the kernel ends the others: no exec outlives its container."""
    box = oci.launch()
    path = box.path / "second"
    oci.do("exec", "--detach", "--pid-file", str(path), box.id, "/bin/sleep", "60")
    assert path.exists(), "there is no pid file"
    with watch(path) as ended:
        assert os.getpgid(int(path.read_text()))
        oci.kill(box, "KILL")
        assert ended(oci.patience_s)


@pytest.mark.breach(says("exec", stdout=json.dumps({"list:/proc": "1"}).encode() + b"\n"))
def test_it_sees_the_first_process(oci: OciTrial) -> None:
    """Namespaces: "pid": it sees the container's first process as 1, and itself as another."""
    facts = probed(oci, oci.launch(), asked=("list:/proc", "pid", "file:/proc/1/cmdline"))
    numbers = {int(word) for word in facts.text("list:/proc").split() if word.isdigit()}
    assert len(numbers) >= 2
    assert facts["pid"] in numbers - {1}
    assert facts.text("file:/proc/1/cmdline").startswith("/bin/sleep")
