"""Ports of a pod, forwarded to a client: over SPDY/3.1, and over SPDY/3.1 in a WebSocket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running
from minirt_streams import SpdyClient, WebSocketClient

from harness.linux import syscalls
from harness.minirt.streaming.frames import Data, Reader, SynReply, Writer

PROTOCOL = "portforward.k8s.io"


class Service:
    """A server on loopback of the machine: each connection in a thread, which is told to it."""

    def __init__(self, serve: Callable[[socket.socket], None], family: socket.AddressFamily = socket.AF_INET) -> None:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        self._socket = socket.create_server((host, 0), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._serve = serve
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._run, args=(connection,)))
            self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            self._serve(connection)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(20)


def echo(connection: socket.socket) -> None:
    """Send everything back, and then the end."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def greet(connection: socket.socket) -> None:
    """Speak first, and hang up."""
    connection.sendall(b"ahoy")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(Daemon(tmp_path_factory.mktemp("forward"))) as daemon:
        yield daemon
        for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
            daemon.remove_pod(pod.id)


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> str:
    """A pod on the machine's network, so that what listens here listens in it."""
    return daemon.pod("forward")


def url(daemon: Daemon, pod: str) -> str:
    return str(daemon.runtime.PortForward(api.PortForwardRequest(pod_sandbox_id=pod)).url)


class Forwarding(SpdyClient):
    """A client of forwarded ports."""

    def __init__(self, url: str) -> None:
        super().__init__(url, (), (PROTOCOL,))

    def connect(self, port: int, id: str) -> None:
        for kind in ("error", "data"):
            self.open(f"{kind} {id}", {"streamType": kind, "port": str(port), "requestID": id})


def test_a_connection_goes_both_ways_and_ends(daemon: Daemon, pod: str) -> None:
    with Service(echo) as service, Forwarding(url(daemon, pod)) as client:
        client.connect(service.port, "0")
        client.send("data 0", b"ahoy")
        client.read_until(lambda: client.text("data 0") == "ahoy")
        client.end("data 0")
        client.read_until(lambda: {"data 0", "error 0"} <= client.ended)
        assert client.text("error 0") == ""


def test_many_connections_at_a_time(daemon: Daemon, pod: str) -> None:
    data = {str(number): os.urandom(400_000) for number in range(8)}
    with Service(echo) as service, Forwarding(url(daemon, pod)) as client:
        for id in data:
            client.connect(service.port, id)
        for at in range(0, 400_000, 40_000):
            for id, content in data.items():
                client.send(f"data {id}", content[at : at + 40_000])
            client.read_until(lambda at=at: all(len(client.received[f"data {id}"]) + 80_000 > at for id in data))
        for id in data:
            client.end(f"data {id}")
        client.read_until(lambda: all(f"data {id}" in client.ended for id in data))
        assert {id: bytes(client.received[f"data {id}"]) for id in data} == data


def test_who_hangs_up_first_is_the_pod(daemon: Daemon, pod: str) -> None:
    with Service(greet) as service, Forwarding(url(daemon, pod)) as client:
        client.connect(service.port, "a")
        client.read_until(lambda: {"data a", "error a"} <= client.ended)
        assert (client.text("data a"), client.text("error a")) == ("ahoy", "")
        client.socket.sendall(client.writer.reset(client.streams["data a"], 5))
        client.connect(service.port, "b")
        client.read_until(lambda: "data b" in client.ended)


def test_localhost_is_also_ipv6(daemon: Daemon, pod: str) -> None:
    with Service(greet, socket.AF_INET6) as service, Forwarding(url(daemon, pod)) as client:
        client.connect(service.port, "6")
        client.read_until(lambda: client.text("data 6") == "ahoy")


def test_a_client_without_request_ids(daemon: Daemon, pod: str) -> None:
    with Service(greet) as service, Forwarding(url(daemon, pod)) as client:
        for kind in ("error", "data"):
            client.open(kind, {"streamType": kind, "port": str(service.port)})
        client.read_until(lambda: client.text("data") == "ahoy")


def test_a_port_where_nobody_listens_is_an_error_in_words(daemon: Daemon, pod: str) -> None:
    with Service(greet) as service:
        closed = service.port
    with Forwarding(url(daemon, pod)) as client:
        client.connect(closed, "0")
        client.read_until(lambda: "error 0" in client.ended)
        assert f"error forwarding port {closed}" in client.text("error 0")
        assert "refused" in client.text("error 0")
        assert client.streams["data 0"] in client.resets


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"streamType": "data"},
        {"streamType": "x", "port": "1"},
        {"streamType": "data", "port": "0"},
        {"streamType": "data", "port": "65536"},
    ],
)
def test_streams_that_make_no_sense_are_reset(daemon: Daemon, pod: str, headers: dict[str, str]) -> None:
    with Forwarding(url(daemon, pod)) as client:
        number = client.open("odd", headers)
        client.read_until(lambda: number in client.resets)


def test_a_service_that_does_not_read_has_the_client_wait(daemon: Daemon, pod: str) -> None:
    go = threading.Event()
    total: list[int] = []

    def lazy(connection: socket.socket) -> None:
        assert go.wait(20)
        count = 0
        while data := connection.recv(1 << 16):
            count += len(data)
        total.append(count)
        connection.sendall(b"done")

    with Service(lazy) as service, Forwarding(url(daemon, pod)) as client:
        client.connect(service.port, "0")
        client.socket.settimeout(0.5)
        chunk, sent, waiting = bytes(1 << 16), 0, False
        frame = client.writer.data(client.streams["data 0"], chunk)
        left = b""
        while not waiting and sent < 64 << 20:
            left = left or frame
            try:
                left = left[client.socket.send(left) :]
            except TimeoutError:
                waiting = True
            sent += 0 if left or waiting else len(chunk)
        assert waiting, "the client could send without an end"
        go.set()
        client.socket.settimeout(20)
        client.socket.sendall(left)
        sent += len(chunk) if left else 0
        client.end("data 0")
        client.read_until(lambda: client.text("data 0") == "done")
    assert total == [sent]


def test_a_pod_has_a_loopback_of_its_own(daemon: Daemon, tmp_path: Path) -> None:
    """What is reached is in the pod's network namespace, and the daemon's thread comes back from it."""
    (daemon.top / "net.d").mkdir(exist_ok=True)
    config = '{"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]}'
    (daemon.top / "net.d" / "lo.conflist").write_text(config)
    own = daemon.pod("own", api.NamespaceMode.POD)
    netns = daemon.state / "pods" / own / "ns" / "net"
    ready: list[Service] = []

    def listen() -> None:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        os.close(fd)
        ready.append(Service(greet))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join(20)
    (service,) = ready
    with service, Forwarding(url(daemon, own)) as client:
        client.connect(service.port, "0")
        client.read_until(lambda: client.text("data 0") == "ahoy")
    host = daemon.pod("host")
    with Forwarding(url(daemon, host)) as client:
        client.connect(service.port, "0")
        client.read_until(lambda: "refused" in client.text("error 0"))


def test_forwarding_through_a_websocket(daemon: Daemon, pod: str) -> None:
    with Service(echo) as service, WebSocketClient(url(daemon, pod), (f"SPDY/3.1+{PROTOCOL}",)) as client:
        writer, reader = Writer(), Reader()
        headers = {"port": str(service.port), "requestid": "0"}
        sent = writer.syn_stream(1, {**headers, "streamtype": "error"})
        sent += writer.syn_stream(3, {**headers, "streamtype": "data"}) + writer.data(3, b"ahoy", fin=True)
        for at in range(0, len(sent), 20):  # frames need not keep to messages
            client.send_message(sent[at : at + 20])
        frames = []

        def done() -> bool:
            while client.messages:
                frames.extend(reader.feed(client.messages.pop(0)))
            return Data(3, b"", True) in frames

        client.read_until(done)
    assert [frame for frame in frames if isinstance(frame, SynReply)] == [SynReply(1, {}), SynReply(3, {})]
    assert b"".join(frame.data for frame in frames if isinstance(frame, Data) and frame.stream == 3) == b"ahoy"


def test_a_pod_that_is_not_there_or_not_ready(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as error:
        url(daemon, "nothing")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    stopped = daemon.pod("stopped")
    daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=stopped))
    with pytest.raises(grpc.RpcError) as error:
        url(daemon, stopped)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
