"""Commands in containers, attachments and forwarded ports (cri-api v1, ExecSync, Exec, Attach, PortForward)."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness.client.streams import Streams, exit_code, open_command, read_head
from harness.errors import CallTimeout, NotExpressible, NotFound, Refused, RuntimeRefusal
from harness.model.area import Area
from harness.model.container import Network
from harness.session.breach import accepts, answers, drops, puts, swaps
from harness.session.cri import CriTrial, Pod, secured

pytestmark = pytest.mark.operation(Area.STREAMING)

both_ways = pytest.mark.parametrize("transport", ["spdy", "websocket"])
CAP_BYTES = 16 << 20
MB = 1 << 20


# ExecSync


@pytest.mark.breach(puts("ExecSync.cmd", ["/bin/sh", "-c", "echo out; echo err; exit 7"]))
def test_execsync(cri: CriTrial) -> None:
    """ExecSyncResponse: stdout, stderr and the exit code."""
    cri.needs_sight("ExecSync.stderr")
    result = cri.execute(cri.launch(), "echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 7)


@pytest.mark.breach(
    swaps("ExecSync", lambda request, call: call({**request, "cmd": ["/bin/env", "-i", *request["cmd"]]}))
)
def test_execsync_runs_as_the_container_does(cri: CriTrial) -> None:
    """Environment, working directory and user are those of the container."""
    envs = [{"key": "CARGO", "value": "deep water"}]
    box = cri.launch(envs=envs, working_dir="/var", linux=secured(run_as_user={"value": 1000}))
    assert cri.said(box, 'echo "$CARGO $(pwd) $(id -u):$(id -g)"') == "deep water /var 1000:1000"


@pytest.mark.breach(answers("ExecSync.stdout", b"\x00"))
def test_execsync_passes_every_byte(cri: CriTrial) -> None:
    cri.needs_sight("ExecSync.stderr")
    every = "".join(f"\\{number:03o}" for number in range(256))
    assert cri.execute(cri.launch(), "/bin/printf", every).stdout == bytes(range(256))


@pytest.mark.breach(drops("ExecSync.timeout"))
def test_execsync_that_takes_too_long_is_killed(cri: CriTrial) -> None:
    """ExecSyncRequest.timeout: "Timeout in seconds to stop the command"; nothing of it goes on."""
    box = cri.launch()
    before = len(cri.family(box))
    with pytest.raises(CallTimeout):
        cri.execute(box, "sleep 77 & sleep 4; true", timeout=1)
    cri.wait(lambda: len(cri.processes(box)) == before, "the processes of the command to end")


@pytest.mark.breach(swaps("ExecSync", lambda request, call: call({**request, "timeout": 2})))
def test_execsync_without_a_timeout_waits(cri: CriTrial) -> None:
    """ExecSyncRequest.timeout: "Default: 0 (run forever)"."""
    assert cri.execute(cri.launch(), "sleep 2.5; echo late", timeout=0).stdout.strip() == b"late"


def _refused_when_long(request: dict[str, Any], call: Any) -> Any:
    answer = call(request)
    if len(answer.stdout) >= 15 * MB:
        raise Refused("too much output", "RESOURCE_EXHAUSTED")
    return answer


@pytest.mark.breach(swaps("ExecSync", _refused_when_long))
def test_execsync_caps_its_output(cri: CriTrial) -> None:
    """stdout: "cap the output of this response to 16MB [...] the remaining output should be discarded, and the command
    should proceed with no error".
    """
    command = f"head -c {CAP_BYTES + 3 * MB} /dev/zero && echo over >&2"
    answer = cri.call("ExecSync", container_id=cri.launch().id, cmd=["/bin/sh", "-c", command], timeout=60)
    assert answer.exit_code == 0
    assert 15 * MB <= len(answer.stdout) <= CAP_BYTES
    assert answer.ByteSize() <= CAP_BYTES, "longer than the messages that kubelet takes"


@pytest.mark.breach(accepts("ExecSync"))
def test_execsync_of_a_missing_command(cri: CriTrial) -> None:
    """An error, or a status that is not 0."""
    box = cri.launch()
    try:
        assert cri.execute(box, "/no/such/command", "x").exit_code in (126, 127)
    except RuntimeRefusal as refusal:
        assert "no such file" in str(refusal).lower() or "not found" in str(refusal).lower()


@pytest.mark.breach(accepts("ExecSync"))
def test_execsync_needs_a_running_container(cri: CriTrial) -> None:
    for box in (cri.create(), cri.run("true").box):
        with pytest.raises(RuntimeRefusal):
            cri.execute(box, "true")
    with pytest.raises(RuntimeRefusal):
        cri.call("ExecSync", container_id="no-such-container", cmd=["/bin/true"])


# Exec


def finished(streams: Streams) -> int | None:
    """The exit code of a command, once everything has come."""
    return exit_code(streams.finish())


@both_ways
@pytest.mark.breach(puts("Exec.cmd", ["/bin/sh", "-c", "echo out; echo err; exit 7"]))
def test_exec(transport: str, cri: CriTrial) -> None:
    """Stdout and stderr each on its channel, and the exit code in the last word on ``error``."""
    streams = cri.open("Exec", cri.launch(), transport, cmd=["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
    assert finished(streams) == 7
    assert (streams.output(), streams.output("stderr")) == (b"out\n", b"err\n")


@both_ways
@pytest.mark.breach(puts("Exec.cmd", ["/bin/false"]))
def test_exec_that_succeeds(transport: str, cri: CriTrial) -> None:
    assert finished(cri.open("Exec", cri.launch(), transport, cmd=["/bin/true"])) == 0


@both_ways
@pytest.mark.breach(puts("Exec.cmd", ["/bin/true"]))
def test_exec_of_a_missing_command_fails(transport: str, cri: CriTrial) -> None:
    """The word on ``error`` is not that of success."""
    status = cri.open("Exec", cri.launch(), transport, cmd=["/no/such/command"]).finish()
    assert status.get("status") == "Failure"


@both_ways
@pytest.mark.breach(drops("Exec.stdin"))
def test_exec_with_stdin(transport: str, cri: CriTrial) -> None:
    """stdin: what is sent arrives, while the command runs."""
    streams = cri.open(
        "Exec", cri.launch(), transport, cmd=["/bin/sh", "-c", 'read a; echo "[$a]"; read b; exit $b'], stdin=True
    )
    streams.send(b"one\n")
    streams.read(b"[one]", timeout_s=cri.patience_s)
    streams.send(b"5\n")
    assert finished(streams) == 5


@both_ways
@pytest.mark.breach(puts("Exec.cmd", ["/bin/sh", "-c", "cat; sleep 60"]))
def test_exec_ends_when_stdin_ends(transport: str, cri: CriTrial) -> None:
    """Half-close: the end of stdin reaches the command, and what it prints then still comes."""
    command = ["/bin/sh", "-c", "cat; echo over"]
    streams = cri.open("Exec", cri.launch(), transport, cmd=command, stdin=True)
    if transport == "websocket" and not streams.carrier.protocol.startswith("v5."):
        raise NotExpressible(cri.trial.subject.name, f"speaks {streams.carrier.protocol}, which cannot end stdin alone")
    streams.send(b"cargo\n")
    streams.end()
    assert finished(streams) == 0
    assert streams.output() == b"cargo\nover\n"


@both_ways
@pytest.mark.breach(
    swaps("Exec", lambda request, call: call({**request, "cmd": ["/bin/head", "-c", "3000000", "/dev/zero"]}))
)
def test_exec_with_much_output(transport: str, cri: CriTrial) -> None:
    """Nothing is lost, and nothing comes after the end."""
    streams = cri.open(
        "Exec", cri.launch(), transport, cmd=["/bin/sh", "-c", "yes 1234567 | head -c 4000000; echo end"]
    )
    assert finished(streams) == 0
    assert len(streams.output()) == 4_000_004
    assert streams.output() == b"1234567\n" * 500_000 + b"end\n"


@both_ways
@pytest.mark.breach(swaps("Exec", lambda request, call: call({**request, "cmd": ["/bin/head", "-c", "1000"]})))
def test_exec_with_much_input(transport: str, cri: CriTrial) -> None:
    streams = cri.open(
        "Exec", cri.launch(), transport, cmd=["/bin/sh", "-c", "head -c 3000000 | sha256sum"], stdin=True
    )
    cargo = b"1234567\n" * 375_000
    streams.send(cargo)
    assert finished(streams) == 0
    assert streams.output().split() == [hashlib.sha256(cargo).hexdigest().encode(), b"-"]


@both_ways
@pytest.mark.breach(drops("Exec.tty"))
def test_exec_with_a_terminal(transport: str, cri: CriTrial) -> None:
    """tty: a terminal, on which stdout and stderr are one."""
    command = ["/bin/sh", "-c", "tty; echo err >&2; test -t 0 && test -t 1 && test -t 2 && exit 4"]
    streams = cri.open("Exec", cri.launch(), transport, cmd=command, stdin=True, tty=True)
    assert finished(streams) == 4
    first, second, *_ = streams.output().split(b"\r\n")
    assert first.startswith(b"/dev/pts/")
    assert second == b"err"


@both_ways
@pytest.mark.breach(drops("Exec.tty"))
def test_terminal_is_resized(transport: str, cri: CriTrial) -> None:
    """The channel ``resize`` has the size of the client's terminal, and SIGWINCH says that it changed."""
    command = ["/bin/sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do read line && echo got $line; done"]
    streams = cri.open("Exec", cri.launch(), transport, cmd=command, stdin=True, tty=True)
    streams.read(b"ready")
    streams.resize(111, 44)
    streams.read(b"44 111", timeout_s=cri.patience_s)
    streams.resize(77, 33)
    streams.read(b"33 77", timeout_s=cri.patience_s)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"tty": True, "stdout": True, "stderr": True}, id="tty-and-stderr"),
        pytest.param({"stdin": False, "stdout": False, "stderr": False}, id="no-stream"),
    ],
)
@pytest.mark.parametrize("rpc", ["Exec", "Attach"])
@pytest.mark.breach(accepts("Exec", "Attach"))
def test_streams_that_make_no_sense_are_refused(rpc: str, wrong: dict[str, bool], cri: CriTrial) -> None:
    """ExecRequest: "One of `stdin`, `stdout`, and `stderr` MUST be true"; "If `tty` is true, `stderr` MUST be false"."""
    cri.needs_sight(f"{rpc}.url")
    box = cri.launch(tty=wrong.get("tty", False))
    command = {"cmd": ["/bin/true"]} if rpc == "Exec" else {}
    with pytest.raises(RuntimeRefusal):
        cri.call(rpc, container_id=box.id, **command, **wrong)


# URLs


@pytest.mark.breach(answers("Exec.url", "http://0.0.0.0:1/exec/x"))
def test_url_is_on_loopback(cri: CriTrial) -> None:
    """A fully qualified URL; nobody but this machine is served by default."""
    box = cri.launch()
    for rpc, request in (
        ("Exec", {"container_id": box.id, "cmd": ["/bin/true"], "stdout": True}),
        ("Attach", {"container_id": box.id, "stdout": True}),
        ("PortForward", {"pod_sandbox_id": box.pod.id, "port": [80]}),
    ):
        url = cri.url(rpc, **request)
        assert url.scheme in ("http", "https")
        assert ipaddress.ip_address(url.hostname or "").is_loopback
        assert url.port


def _same_url(request: dict[str, Any], call: Any) -> Any:
    answer = call(request)
    url = urlsplit(answer.url)
    answer.url = f"http://{url.netloc}/exec/always-the-same"
    return answer


@pytest.mark.breach(swaps("Exec", _same_url))
def test_urls_are_not_alike(cri: CriTrial) -> None:
    """A token that cannot be guessed: no two are the same, and each is long."""
    box = cri.launch()
    request = {"container_id": box.id, "cmd": ["/bin/true"], "stdout": True}
    urls = {cri.url("Exec", **request).path for _ in range(8)}
    assert len(urls) == 8
    assert all(len(path.rpartition("/")[2]) >= 8 for path in urls)


@pytest.mark.breach(swaps("Exec", lambda request, call: call({**request, "cmd": ["/bin/echo", "another"]})))
def test_url_serves_once(cri: CriTrial) -> None:
    """Whoever reads it in a log later gets nothing."""
    box = cri.launch()
    url = cri.url("Exec", container_id=box.id, cmd=["/bin/echo", "once"], stdout=True)
    streams = open_command(cri.dial(url), url, ["stdout"])
    assert finished(streams) == 0
    assert streams.output() == b"once\n"
    with pytest.raises((Refused, CallTimeout)):
        open_command(cri.dial(url), url, ["stdout"])


def _guessed(request: dict[str, Any], call: Any) -> Any:
    answer = call(request)
    url = urlsplit(answer.url)
    answer.url = f"http://{url.netloc}/exec/made-up0"
    return answer


@pytest.mark.breach(swaps("Exec", _guessed))
def test_unknown_url_serves_nothing(cri: CriTrial) -> None:
    """Without a token, with a made-up one, with a path that goes elsewhere."""
    url = cri.url("Exec", container_id=cri.launch().id, cmd=["/bin/true"], stdout=True)
    real = url.path.rpartition("/")[2]
    for path in ("/", "/exec/", "/exec/made-up0", "/../../etc/passwd", "/attach/" + real[::-1]):
        connection = cri.dial(url)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        head, _ = read_head(connection)
        assert 300 <= head.status < 500, f"{path}: {head.status}"
    assert real != "made-up0", "a token that anybody can guess"


@pytest.mark.breach(accepts("Exec", "Attach", "PortForward"))
def test_nothing_to_stream_from_is_refused(cri: CriTrial) -> None:
    """An unknown or ended container, an unknown pod: an error, of the call or of the stream."""
    ended = cri.run("true").box
    with pytest.raises(RuntimeRefusal):
        cri.url("Exec", container_id="no-such-container", cmd=["/bin/true"], stdout=True)
    with pytest.raises(RuntimeRefusal):
        cri.url("Exec", container_id=ended.id, cmd=["/bin/true"], stdout=True)
    with pytest.raises(RuntimeRefusal):
        cri.url("Attach", container_id="no-such-container", stdout=True)
    with pytest.raises(NotFound):
        cri.url("PortForward", pod_sandbox_id="no-such-pod", port=[80])


# Attach

ECHO = ("/bin/sh", "-c", 'echo ready; while read line; do echo "<$line>"; echo "($line)" >&2; done; echo over; exit 3')


@both_ways
@pytest.mark.breach(drops("CreateContainer.config.stdin"))
def test_attach(transport: str, cri: CriTrial) -> None:
    """Attach "to a running container": its stdin, and its output from then on, each on its channel."""
    box = cri.launch(ECHO, stdin=True)
    cri.await_line(box, "ready")
    streams = cri.open("Attach", box, transport, stdin=True)
    streams.send(b"cargo\n")
    streams.read(b"<cargo>", timeout_s=cri.patience_s)
    streams.read(b"(cargo)", "stderr")
    assert b"ready" not in streams.output()
    cri.await_line(box, "<cargo>")


@both_ways
@pytest.mark.breach(drops("CreateContainer.config.stdin_once"))
def test_stdin_ends_with_its_first_client(transport: str, cri: CriTrial) -> None:
    """stdin_once: the container reads to an end once the client who attached to stdin is gone."""
    box = cri.launch(ECHO, stdin=True, stdin_once=True)
    cri.await_line(box, "ready")
    streams = cri.open("Attach", box, transport, stdin=True)
    streams.send(b"cargo\n")
    streams.read(b"<cargo>")
    streams.close()
    assert cri.await_exit(box).exit_code == 3
    cri.await_line(box, "over")


@both_ways
@pytest.mark.breach(puts("CreateContainer.config.stdin_once", True))
def test_stdin_stays_open_for_the_next_client(transport: str, cri: CriTrial) -> None:
    """Without stdin_once a second client goes on where the first left."""
    box = cri.launch(ECHO, stdin=True)
    cri.await_line(box, "ready")
    for word in ("one", "two"):
        streams = cri.open("Attach", box, transport, stdin=True)
        streams.send(f"{word}\n".encode())
        streams.read(f"<{word}>".encode(), timeout_s=cri.patience_s)
        streams.close()


@both_ways
@pytest.mark.breach(puts("Attach.stdin", False))
def test_several_clients_attach(transport: str, cri: CriTrial) -> None:
    """Each gets all of the output."""
    box = cri.launch(ECHO, stdin=True)
    cri.await_line(box, "ready")
    first = cri.open("Attach", box, transport, stdin=True)
    second = cri.open("Attach", box, transport, stdin=True)
    second.send(b"cargo\n")
    for streams in (first, second):
        streams.read(b"<cargo>", timeout_s=cri.patience_s)


@both_ways
@pytest.mark.breach(drops("CreateContainer.config.tty", "Attach.tty"))
def test_attach_to_a_terminal(transport: str, cri: CriTrial) -> None:
    """tty, which "must match the TTY setting in the ContainerConfig", and its size."""
    script = "trap 'stty size' WINCH; echo ready; while :; do read line && echo \"<$line>\"; done"
    box = cri.launch(["/bin/sh", "-c", script], stdin=True, tty=True)
    cri.await_line(box, "ready")
    streams = cri.open("Attach", box, transport, stdin=True, tty=True)
    streams.send(b"cargo\n")
    streams.read(b"<cargo>\r\n", timeout_s=cri.patience_s)
    streams.resize(99, 22)
    streams.read(b"22 99", timeout_s=cri.patience_s)


@both_ways
@pytest.mark.breach(puts("Attach.container_id", "no-such-container"))
def test_attachment_ends_with_the_container(transport: str, cri: CriTrial) -> None:
    box = cri.launch(ECHO, stdin=True)
    cri.await_line(box, "ready")
    streams = cri.open("Attach", box, transport, stdin=True)
    streams.send(b"cargo\n")
    streams.read(b"<cargo>")
    cri.stop(box)
    streams.finish()


# PortForward

SERVER = ("/bin/nc", "-ll", "-p", "8080", "-e", "/bin/cat")


def served(cri: CriTrial, network: Network = Network.BRIDGE) -> Pod:
    """A pod with a server in it, which listens at 8080."""
    pod = cri.pod(network, **({"hostname": "quay"} if network is Network.BRIDGE else {}))
    box = cri.launch(SERVER, pod=pod)
    # proc_net_tcp(5): 0A is LISTEN, 1F90 is 8080. A pod's own network has nobody else in it.
    word = " 0A " if network is Network.BRIDGE else ":1F90 "
    cri.wait(lambda: word in cri.said(box, "cat /proc/net/tcp /proc/net/tcp6"), "the server to listen")
    return pod


@both_ways
@pytest.mark.breach(puts("PortForward.pod_sandbox_id", "no-such-pod"))
def test_port_forward(transport: str, cri: CriTrial) -> None:
    """PortForward "prepares a streaming endpoint to forward ports from a PodSandbox", which listens on its loopback."""
    pod = served(cri)
    streams = cri.open_port(pod, 8080, transport)
    streams.send(b"there and back\n", "data")
    streams.read(b"there and back\n", "data", cri.patience_s)


@both_ways
@pytest.mark.breach(puts("PortForward.pod_sandbox_id", "no-such-pod"))
def test_port_forward_into_a_pod_on_the_host_network(transport: str, cri: CriTrial) -> None:
    pod = served(cri, Network.HOST)
    streams = cri.open_port(pod, 8080, transport)
    streams.send(b"there and back\n", "data")
    streams.read(b"there and back\n", "data", cri.patience_s)


@both_ways
@pytest.mark.breach(puts("PortForward.pod_sandbox_id", "no-such-pod"))
def test_much_goes_through_a_port(transport: str, cri: CriTrial) -> None:
    """Nothing is lost in either direction, with both open at once."""
    pod = served(cri)
    streams = cri.open_port(pod, 8080, transport)
    cargo = b"1234567\n" * 40_000
    for at in range(0, len(cargo), 16_000):
        streams.send(cargo[at : at + 16_000], "data")
        streams.until(lambda sent=at + 16_000: len(streams.output("data")) >= sent, "the echo")  # type: ignore[misc]
    assert streams.output("data") == cargo


@both_ways
@pytest.mark.breach(puts("CreateContainer.config.command", ["/bin/nc", "-ll", "-p", "8099", "-e", "/bin/cat"]))
def test_closed_port_says_so(transport: str, cri: CriTrial) -> None:
    """What went wrong comes on the channel ``error``."""
    pod = served(cri)
    streams = cri.open_port(pod, 8099, transport)
    streams.until(lambda: streams.output("error") != b"" or streams.closed, "word of the closed port", cri.patience_s)
    assert b"8099" in streams.output("error")
