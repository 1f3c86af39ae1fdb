"""Exec over a WebSocket, and what comes over one that makes no sense."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from cri_api.v1 import api_pb2 as api
from hypothesis import given
from hypothesis import strategies as st
from minirt_daemon import Daemon, running
from minirt_registry import busybox_layer, serving_registry
from minirt_streams import WebSocketClient, ask, connect, exit_code
from wsproto.events import CloseConnection, Ping, TextMessage

from harness.clock import wait_until
from harness.minirt.streaming.channels import Arrived, Ended
from harness.minirt.streaming.frames import ProtocolError
from harness.minirt.streaming.websocket import Messages, WebSocketChannels

FOREVER = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
MASK = b"\1\2\3\4"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A daemon with a running container."""
    with running(Daemon(tmp_path_factory.mktemp("websocket"))) as daemon:
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["true"]})
            image = daemon.pull(f"{registry.address}/busybox:1")
        pod = daemon.pod("websocket")
        yield daemon, daemon.run(pod, image, FOREVER)
        daemon.remove_pod(pod)


def url(box: tuple[Daemon, str], *words: str, **streams: bool) -> str:
    daemon, id = box
    return str(daemon.runtime.Exec(api.ExecRequest(container_id=id, cmd=words, **streams)).url)


def masked(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A client's frame (RFC 6455, section 5.2)."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    body = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | opcode]) + size + MASK + body


def test_a_command_has_two_outputs_and_a_status(box: tuple[Daemon, str]) -> None:
    words = ("sh", "-c", "echo out; echo err >&2; exit 42")
    with WebSocketClient(url(box, *words, stdout=True, stderr=True)) as client:
        status = client.read_to_end()
        assert (client.text("stdout"), client.text("stderr"), exit_code(status)) == ("out\n", "err\n", 42)
        assert (client.subprotocol, client.closed) == ("v5.channel.k8s.io", 1000)


def test_input_has_an_end(box: tuple[Daemon, str]) -> None:
    with WebSocketClient(url(box, "cat", stdin=True, stdout=True)) as client:
        client.send("stdin", b"x" * 300_000)
        client.send("stdin", b"end")
        client.end("stdin")
        assert exit_code(client.read_to_end()) == 0
        assert client.received["stdout"] == b"x" * 300_000 + b"end"


def test_the_older_protocol_is_spoken_too(box: tuple[Daemon, str]) -> None:
    offered = ("v9.channel.k8s.io", "v4.channel.k8s.io")
    with WebSocketClient(url(box, "sh", "-c", "head -c 200000 /dev/zero", stdout=True), offered) as client:
        assert exit_code(client.read_to_end()) == 0
        assert client.subprotocol == "v4.channel.k8s.io"
        assert client.received["stdout"] == bytes(200_000)


def test_a_terminal_is_resized(box: tuple[Daemon, str]) -> None:
    with WebSocketClient(url(box, "sh", stdin=True, stdout=True, tty=True)) as client:
        client.send("resize", b'{"Width":99,"Height":33}')
        client.send("stdin", b"stty size; exit 2\n")
        assert exit_code(client.read_to_end()) == 2
        assert "33 99\r\n" in client.text()


def test_pings_are_answered(box: tuple[Daemon, str]) -> None:
    with WebSocketClient(url(box, "cat", stdin=True, stdout=True)) as client:
        client.send_event(Ping(payload=b"are you there"))
        client.read_until(lambda: client.pongs == [b"are you there"])
        client.end("stdin")
        assert exit_code(client.read_to_end()) == 0


@pytest.mark.parametrize(
    "event", [CloseConnection(code=1000), TextMessage(data="no"), None], ids=["bye", "text", "gone"]
)
def test_the_command_is_hung_up_when_its_client_goes(box: tuple[Daemon, str], event: object) -> None:
    daemon, id = box
    mark = "54321.5"
    with WebSocketClient(url(box, "sh", "-c", f"cat; : {mark}", stdin=True, stdout=True)) as client:
        wait_until(lambda: mark in daemon.exec(id, "ps").stdout.decode(), 20, "the command")
        if event is None:
            client.socket.close()
        else:
            client.send_event(event)  # type: ignore[arg-type]
        wait_until(lambda: mark not in daemon.exec(id, "ps").stdout.decode(), 20, "the end of the command")


@pytest.mark.parametrize(
    ("changes", "method", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, "GET", 426),
        ({"Sec-WebSocket-Key": ""}, "GET", 400),
        ({"Sec-WebSocket-Protocol": "v9.channel.k8s.io"}, "GET", 403),
        ({}, "POST", 405),
        ({"Connection": "keep-alive"}, "GET", 400),
        ({}, "GET", 101),
    ],
)
def test_the_request_has_to_be_right(
    box: tuple[Daemon, str], changes: dict[str, str], method: str, status: int
) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "v5.channel.k8s.io",
        **changes,
    }
    connection, path = connect(url(box, "true", stdout=True))
    with connection:
        found, head, _ = ask(connection, path, headers, method)
    assert found == status
    if status == 101:  # the example of RFC 6455, section 1.3
        assert re.search("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK\\+xOo=", head, re.IGNORECASE)


def test_messages_come_in_pieces_and_are_one() -> None:
    channels = WebSocketChannels(frozenset({"stdin", "stdout", "error"}))
    sent = masked(2, b"\0one ", fin=False) + masked(9, b"ping") + masked(0, b"two") + masked(2, b"\0 three")
    found = [event for at in range(len(sent)) for event in channels.receive(sent[at : at + 1])]
    assert all(isinstance(event, Arrived) and event.channel == "stdin" for event in found)
    assert b"".join(event.data for event in found if isinstance(event, Arrived)) == b"one two three"
    assert channels.outgoing == b"\x8a\4ping"
    assert list(channels.receive(masked(2, b"\4size") + masked(2, b"\xff\0\1\7") + masked(2, b""))) == [
        Ended("stdin"),
        Ended("stdout"),
    ]


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=200))))
def test_whatever_comes_is_read_or_refused(pieces: list[bytes], frames: list[tuple[int, bytes]]) -> None:
    for sent in (pieces, [masked(opcode, payload) for opcode, payload in frames]):
        messages = Messages()
        try:
            for piece in sent:
                list(messages.receive(piece))
        except (ProtocolError, ConnectionAbortedError):
            pass
