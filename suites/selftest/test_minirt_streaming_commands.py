"""Exec and attach over SPDY/3.1, as a client of ``minirt serve`` sees them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running
from minirt_registry import busybox_layer, serving_registry
from minirt_streams import SpdyClient, ask, connect, exit_code

from harness.clock import wait_until

FOREVER = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
IMAGE = [""]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(Daemon(tmp_path_factory.mktemp("streams"))) as daemon:
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["true"]})
            IMAGE[0] = daemon.pull(f"{registry.address}/busybox:1")
        yield daemon
        for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
            daemon.remove_pod(pod.id)


@pytest.fixture
def pod(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    """A pod on the machine's network, gone afterwards."""
    id = daemon.pod(re.sub(r"\W", "-", request.node.name))
    yield id
    daemon.remove_pod(id)


@pytest.fixture
def box(daemon: Daemon, pod: str) -> str:
    """A running container."""
    return daemon.run(pod, IMAGE[0], FOREVER)


def exec_url(daemon: Daemon, id: str, *words: str, **streams: bool) -> str:
    streams = streams or {"stdout": True, "stderr": True}
    return str(daemon.runtime.Exec(api.ExecRequest(container_id=id, cmd=words, **streams)).url)


def run(daemon: Daemon, id: str, script: str) -> tuple[str, str, dict[str, Any]]:
    """stdout, stderr and status of a script."""
    with SpdyClient(exec_url(daemon, id, "sh", "-c", script), ("error", "stdout", "stderr")) as client:
        status = client.read_to_end()
        return client.text("stdout"), client.text("stderr"), status


def processes(word: str) -> list[str]:
    """Those of the machine that have `word` on their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and word.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined,no-any-return]


def test_a_command_has_two_outputs_and_a_status(daemon: Daemon, box: str) -> None:
    out, err, status = run(daemon, box, "echo out; echo err >&2; echo $FROM; exit 42")
    assert (out, err) == ("out\nimage\n", "err\n")
    assert exit_code(status) == 42
    assert exit_code(run(daemon, box, "true")[2]) == 0
    assert exit_code(run(daemon, box, "kill -9 $$")[2]) == 137


def test_the_best_protocol_is_chosen_and_all_is_said_before_the_end(daemon: Daemon, box: str) -> None:
    with SpdyClient(exec_url(daemon, box, "true"), ("error", "stdout", "stderr")) as client:
        client.read_to_end()
        assert "x-stream-protocol-version: v4.channel.k8s.io" in client.head.lower()
        assert client.accepted == set(client.streams.values())
        assert client.ended == {"error", "stdout", "stderr"}
        assert client.said_goodbye


def test_an_old_protocol_gets_words(daemon: Daemon, box: str) -> None:
    url = exec_url(daemon, box, "sh", "-c", "exit 3")
    with SpdyClient(url, ("error", "stdout", "stderr"), offered=("v2.channel.k8s.io",)) as client:
        with pytest.raises(ValueError, match="Expecting value"):
            client.read_to_end()
        assert "exit status 3" in client.text("error")


def test_input_reaches_the_command_with_its_end(daemon: Daemon, box: str) -> None:
    data = os.urandom(3_000_000)
    url = exec_url(daemon, box, "cat", stdin=True, stdout=True)
    with SpdyClient(url, ("error", "stdin", "stdout")) as client:
        client.send("stdin", data[:1])
        client.read_until(lambda: len(client.received["stdout"]) == 1)  # before the end of the input
        for at in range(1, len(data), 100_000):
            client.send("stdin", data[at : at + 100_000])
            client.read_until(lambda at=at: len(client.received["stdout"]) + 900_000 > at)
        client.end("stdin")
        assert exit_code(client.read_to_end()) == 0
        assert client.received["stdout"] == data


def test_input_that_nobody_reads_does_no_harm(daemon: Daemon, box: str) -> None:
    url = exec_url(daemon, box, "sh", "-c", "exec <&-; echo deaf; exit 5", stdin=True, stdout=True)
    with SpdyClient(url, ("error", "stdin", "stdout")) as client:
        client.read_until(lambda: client.text() == "deaf\n")
        client.send("stdin", bytes(200_000), fin=True)
        assert exit_code(client.read_to_end()) == 5


def test_much_output_arrives_whole_at_a_slow_client(daemon: Daemon, box: str) -> None:
    with SpdyClient(
        exec_url(daemon, box, "head", "-c", "20000000", "/dev/zero"), ("error", "stdout", "stderr")
    ) as client:
        client.read_until(lambda: len(client.received["stdout"]) > 0)
        # Its buffers fill up meanwhile: the command has to wait, and is still there.
        assert processes("head\0-c\0" + "20000000")
        assert exit_code(client.read_to_end()) == 0
        assert len(client.received["stdout"]) == 20_000_000


def test_a_child_that_is_left_behind_is_heard_for_a_moment_and_not_waited_for(daemon: Daemon, box: str) -> None:
    out, _, status = run(daemon, box, "(sleep 0.2; echo late; sleep 123) & echo done")
    assert (out, exit_code(status)) == ("done\nlate\n", 0)


def test_pings_are_answered_during_a_command(daemon: Daemon, box: str) -> None:
    with SpdyClient(exec_url(daemon, box, "cat", stdin=True, stdout=True), ("error", "stdin", "stdout")) as client:
        client.socket.sendall(client.writer.ping(1) + client.writer.ping(3))
        client.read_until(lambda: client.pings == [1, 3])
        client.end("stdin")
        assert exit_code(client.read_to_end()) == 0


def test_a_missing_command_is_an_error_in_words(daemon: Daemon, box: str) -> None:
    with SpdyClient(exec_url(daemon, box, "/no/such"), ("error", "stdout", "stderr")) as client:
        status = client.read_to_end()
    assert (status["status"], status["reason"], status["code"]) == ("Failure", "InternalError", 500)
    assert "/no/such" in status["message"] and "no such file" in status["message"]


@pytest.mark.parametrize(("tty", "word"), [(True, "HUP"), (False, "end")])
def test_a_command_whose_client_goes_is_hung_up(daemon: Daemon, box: str, tty: bool, word: str) -> None:
    # A terminal tells by a signal, a pipe by its end; a command that cares for neither goes on (nohup).
    script = f"trap 'echo HUP > /told{tty}; exit' HUP; echo up; read line || echo end > /told{tty}"
    channels = ("error", "stdin", "stdout", "resize") if tty else ("error", "stdin", "stdout")
    with SpdyClient(exec_url(daemon, box, "sh", "-c", script, stdin=True, stdout=True, tty=tty), channels) as client:
        client.read_until(lambda: "up" in client.text())
    wait_until(lambda: daemon.exec(box, "cat", f"/told{tty}").stdout.decode().strip() == word, 20, "the hang-up")
    wait_until(lambda: not processes(f"told{tty}"), 20, "the end of the command")


def test_a_command_that_wants_nothing_of_its_client_goes_on_without_it(daemon: Daemon, box: str) -> None:
    with SpdyClient(exec_url(daemon, box, "sleep", "98765"), ("error", "stdout", "stderr")) as client:
        wait_until(lambda: bool(processes("sleep\x0098765")), 20, "the command")
        client.socket.sendall(b"\x80\x02" + b"\xff" * 30)
        client.read_to_end()
    assert processes("sleep\x0098765")
    daemon.stop(box)
    assert not processes("sleep\x0098765")


def test_a_terminal_has_a_size_that_changes(daemon: Daemon, box: str) -> None:
    url = exec_url(daemon, box, "sh", stdin=True, stdout=True, tty=True)
    with SpdyClient(url, ("error", "stdin", "stdout", "resize")) as client:
        client.resize(123, 45)
        client.send("stdin", b"stty size; tty; echo $TERM; echo to stderr >&2\n")
        client.read_until(lambda: "to stderr\r\n" in client.text().split("echo $TERM", 1)[-1].partition("\n")[2])
        assert "45 123\r\n/dev/pts/" in client.text() and "\r\nxterm\r\n" in client.text()
        client.resize(80, 24)
        client.send("stdin", b"stty size\n")
        client.read_until(lambda: "24 80\r\n" in client.text())
        client.send("stdin", b"exit 6\n")
        assert exit_code(client.read_to_end()) == 6


def test_ctrl_c_reaches_the_terminals_foreground(daemon: Daemon, box: str) -> None:
    script = "trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done"
    url = exec_url(daemon, box, "sh", "-c", script, stdin=True, stdout=True, tty=True)
    with SpdyClient(url, ("error", "stdin", "stdout", "resize")) as client:
        client.read_until(lambda: "ready" in client.text())
        client.send("stdin", b"\x03")
        assert exit_code(client.read_to_end()) == 8


def test_what_makes_no_sense_is_refused(daemon: Daemon, box: str, pod: str) -> None:
    for streams in ({"tty": True, "stderr": True}, {"tty": True}):
        with pytest.raises(grpc.RpcError) as error:
            exec_url(daemon, box, "true", **streams)
        assert code(error) == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        exec_url(daemon, box)
    assert code(error) == grpc.StatusCode.INVALID_ARGUMENT
    created = daemon.create(pod, IMAGE[0], FOREVER, "created")
    for call in (
        lambda: exec_url(daemon, created, "true"),
        lambda: daemon.runtime.Attach(api.AttachRequest(container_id=created, stdout=True)),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert code(error) == grpc.StatusCode.FAILED_PRECONDITION


def test_a_container_that_ended_meanwhile_is_an_error(daemon: Daemon, box: str) -> None:
    url = exec_url(daemon, box, "true")
    daemon.stop(box)
    with SpdyClient(url, ("error", "stdout", "stderr")) as client:
        status = client.read_to_end()
    assert status["status"] == "Failure" and "not running" in status["message"]


UPGRADE = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}


def test_nothing_is_given_without_a_token(daemon: Daemon, box: str) -> None:
    url = exec_url(daemon, box, "true")
    assert url.startswith("http://127.0.0.1:")
    _, path = connect_and_close(url)
    token = path.rsplit("/", 1)[1]
    for wrong in ("/", "/exec/", "/exec/wrong", f"/exec/{token}x", f"/{token}", "/metrics", "/exec/../" + token):
        assert request(url, wrong) == 404
    assert request(url, path, {}) == 400
    assert request(url, path) == 404, "a token is good once, whatever came of it"
    url = exec_url(daemon, box, "true")
    assert request(url, connect_and_close(url)[1].replace("/exec/", "/attach/")) == 404


def test_a_protocol_that_nobody_speaks_is_refused(daemon: Daemon, box: str) -> None:
    url = exec_url(daemon, box, "true")
    assert request(url, connect_and_close(url)[1], {**UPGRADE, "X-Stream-Protocol-Version": "v9.channel.k8s.io"}) == 403


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\r\n\r\n", id="nothing"),
        pytest.param(b"GET\r\n\r\n", id="no target"),
        pytest.param(b"\x80\x03\x00\x01", id="SPDY at once"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 99999, id="a head without an end"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789", id="a body"),
    ],
)
def test_what_is_no_request_is_refused(daemon: Daemon, box: str, sent: bytes) -> None:
    connection, _ = connect(exec_url(daemon, box, "true"))
    with connection:
        connection.sendall(sent + b"\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_crowd_that_shows_no_token_keeps_nobody_out(daemon: Daemon, box: str) -> None:
    """Silent ones, slow ones, and those who talk nonsense: each of a thousand is gone, soon or when others come."""
    assert daemon.process is not None
    tasks, url = Path(f"/proc/{daemon.process.pid}/task"), exec_url(daemon, box, "true")
    with contextlib.ExitStack() as crowd:
        for number in range(1000):
            connection, _ = connect(url)
            crowd.enter_context(connection)
            with contextlib.suppress(ConnectionError):
                connection.sendall((b"", b"GET /exec/", b"\xff" * 9, b"GET / HTTP/1.1\r\nx: y\r\n")[number % 4])
            if number % 200 == 0:
                assert exit_code(run(daemon, box, "exit 9")[2]) == 9
        assert exit_code(run(daemon, box, "exit 9")[2]) == 9
        assert len(list(tasks.iterdir())) < 200
    wait_until(lambda: len(list(tasks.iterdir())) < 60, 20, "their threads to end")


def connect_and_close(url: str) -> tuple[str, str]:
    connection, path = connect(url)
    connection.close()
    return url, path


def request(url: str, path: str, headers: dict[str, str] = UPGRADE) -> int:
    connection, _ = connect(url)
    with connection:
        return ask(connection, path, headers)[0]


# -- attach ------------------------------------------------------------------------------------------------------------


def attach_url(daemon: Daemon, id: str, **streams: bool) -> str:
    return str(daemon.runtime.Attach(api.AttachRequest(container_id=id, **streams)).url)


ECHO = "while read line; do echo got $line; echo err $line >&2; done; echo end; exit 4"


def test_attach_is_the_containers_own_streams(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], ECHO, "echo", stdin=True, stdin_once=True)
    url = attach_url(daemon, id, stdin=True, stdout=True, stderr=True)
    with SpdyClient(url, ("error", "stdin", "stdout", "stderr")) as client:
        client.send("stdin", b"one\n")
        client.read_until(lambda: client.text() == "got one\n" and client.text("stderr") == "err one\n")
        client.send("stdin", b"two\n", fin=True)
        assert client.read_to_end() == {"metadata": {}, "status": "Success"}
        assert client.text() == "got one\ngot two\nend\n"
    assert daemon.wait_exited(id).exit_code == 4
    assert ("stdout", "F", "got two") in daemon.log_lines("echo"), "what is attached to is logged as well"


def test_input_stays_open_for_the_next_who_attaches(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], ECHO, "open", stdin=True)
    for word in ("one", "two"):
        with SpdyClient(attach_url(daemon, id, stdin=True, stdout=True), ("error", "stdin", "stdout")) as client:
            client.send("stdin", f"{word}\n".encode(), fin=True)
            client.read_until(lambda word=word: f"got {word}\n" in client.text())
    assert daemon.status(id).state == api.CONTAINER_RUNNING


def test_several_may_attach_and_leave(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], ECHO, "several", stdin=True)
    with (
        SpdyClient(attach_url(daemon, id, stdout=True), ("error", "stdout")) as first,
        SpdyClient(attach_url(daemon, id, stdin=True, stdout=True), ("error", "stdin", "stdout")) as second,
    ):
        # Who attaches hears what is said from then on: it is said again until the first has heard it, too.
        sent = 0

        def heard() -> bool:
            nonlocal sent
            sent += 1
            second.send("stdin", b"a\n")
            second.read_until(lambda: second.text() == "got a\n" * sent)
            first.read_for(0.1)
            return first.text().startswith("got a\n")

        wait_until(heard, 20, "the first who is attached")
        first.socket.close()
        second.send("stdin", b"c\n")
        second.read_until(lambda: second.text().endswith("got a\ngot c\n"))
    daemon.stop(id)
    said = [text for _, _, text in daemon.log_lines("several") if text.startswith("got")]
    assert said == ["got a"] * sent + ["got c"]


def test_a_container_waits_for_who_is_attached_and_loses_nothing(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], "read x; head -c 5000000 /dev/zero | tr '\\0' x; echo; echo end", "much", stdin=True)
    with SpdyClient(attach_url(daemon, id, stdin=True, stdout=True), ("error", "stdin", "stdout")) as client:
        client.send("stdin", b"go\n")
        client.read_until(lambda: len(client.received["stdout"]) > 0)
        client.read_to_end()
        assert client.received["stdout"] == b"x" * 5_000_000 + b"\nend\n"
    assert daemon.wait_exited(id).exit_code == 0
    assert sum(len(text) for _, _, text in daemon.log_lines("much")) == 5_000_003


def test_a_container_with_a_terminal(daemon: Daemon, pod: str) -> None:
    script = "while read word; do stty size; echo got $word; [ $word = bye ] && exit 9; done"
    id = daemon.run(pod, IMAGE[0], script, "tty", stdin=True, tty=True)
    for columns in (111, 112):
        url = attach_url(daemon, id, stdin=True, stdout=True, tty=True)
        with SpdyClient(url, ("error", "stdin", "stdout", "resize")) as client:
            client.resize(columns, 22)
            client.send("stdin", b"hello\n")
            client.read_until(lambda columns=columns: f"22 {columns}\r\ngot hello\r\n" in client.text())
    with SpdyClient(
        attach_url(daemon, id, stdin=True, stdout=True, tty=True), ("error", "stdin", "stdout", "resize")
    ) as client:
        client.send("stdin", b"bye\n")
        client.read_to_end()
        assert client.text().endswith("got bye\r\n")
    assert daemon.wait_exited(id).exit_code == 9
    assert b"stdout F got hello\r\n" in (daemon.logs / "tty.log").read_bytes()


def test_attach_goes_on_with_the_daemon_started_again(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], ECHO, "again", stdin=True)
    with SpdyClient(attach_url(daemon, id, stdin=True, stdout=True), ("error", "stdin", "stdout")) as client:
        client.send("stdin", b"one\n")
        client.read_until(lambda: client.text() == "got one\n")
        assert daemon.end() == 0
        client.read_to_end()
    daemon.start()
    with SpdyClient(attach_url(daemon, id, stdin=True, stdout=True), ("error", "stdin", "stdout")) as client:
        client.send("stdin", b"two\n")
        client.read_until(lambda: client.text() == "got two\n")
