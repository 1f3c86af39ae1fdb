"""One connection from its request to its end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from harness.minirt.errors import MinirtError
from harness.minirt.streaming import status
from harness.minirt.streaming.channels import ERROR, RESIZE, STDERR, STDIN, STDOUT, Channels
from harness.minirt.streaming.command import Client, carry
from harness.minirt.streaming.frames import ProtocolError
from harness.minirt.streaming.process import Process, Streams
from harness.minirt.streaming.spdy import SpdyChannels
from harness.minirt.streaming.tokens import Tokens
from harness.minirt.streaming.upgrade import Refusal, Upgrade, refuse

SPDY: Final = "spdy/3.1"
WEBSOCKET: Final = "websocket"
PROTOCOL_HEADER: Final = "x-stream-protocol-version"
PROTOCOLS: Final = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
"""of commands over SPDY, the best first"""
_OPENING_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Command:
    """What a token of Exec or Attach stands for. `begin` starts the process, or finds it."""

    kind: str
    """the first word of its path"""
    streams: Streams
    begin: Callable[[], AbstractContextManager[Process]]
    failure: str
    """what could not be done, if it fails: "error executing command in container" """
    tells_exit: bool
    """whether the client learns the exit code"""


@dataclass(frozen=True, slots=True)
class Forward:
    """What a token of PortForward stands for: a network namespace by its path, "" for the machine's own."""

    netns: str
    kind: str = "portforward"


Grant = Command | Forward


def serve(connection: socket.socket, tokens: Tokens[Grant], admit: Callable[[], bool]) -> None:
    """Serve one connection; it stays its owner's. `admit` is asked whether there is room, once a token was shown.

    Raises `OSError` and `ProtocolError` where the client is to blame.
    """
    try:
        upgrade = Upgrade(connection)
        kind, _, token = upgrade.path.removeprefix("/").partition("/")
        grant = tokens.take(token)
        if grant is None or grant.kind != kind:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such stream, or not any more")
        if not admit():
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many streams")
        if upgrade.method not in ("GET", "POST"):
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and POST can be upgraded", [("allow", "GET, POST")])
        if upgrade.protocol not in (SPDY, WEBSOCKET):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"an upgrade to {SPDY} or to {WEBSOCKET} is needed")
        if isinstance(grant, Forward):
            _serve_forward(upgrade, grant)
        else:
            _serve_command(upgrade, grant)
    except Refusal as refusal:
        refuse(connection, refusal)


def negotiate(offered: list[str], known: tuple[str, ...]) -> str:
    """The best of ours that the client offers; who offers nothing means the oldest. Raises `Refusal`."""
    if not offered:
        return known[-1]
    for protocol in known:
        if protocol in offered:
            return protocol
    accepted = [("x-accepted-stream-protocol-versions", protocol) for protocol in known]
    raise Refusal(HTTPStatus.FORBIDDEN, f"none of the protocols {', '.join(offered)} is spoken here", accepted)


def _serve_command(upgrade: Upgrade, grant: Command) -> None:
    channels: Channels
    if upgrade.protocol == WEBSOCKET:
        from harness.minirt.streaming import websocket

        protocol = negotiate(upgrade.values(websocket.PROTOCOL_HEADER), websocket.PROTOCOLS)
        wanted = wanted_channels(grant.streams, protocol)
        first = websocket.accept(upgrade, protocol)
        channels = websocket.WebSocketChannels(wanted)
    else:
        protocol = negotiate(upgrade.values(PROTOCOL_HEADER), PROTOCOLS)
        wanted = wanted_channels(grant.streams, protocol)
        first = _accept_spdy(upgrade, protocol)
        channels = SpdyChannels(wanted.__contains__)
    client = Client(upgrade.socket, channels, first)
    client.flush()
    if not client.wait_for(wanted, _OPENING_S):
        raise ProtocolError(f"only {', '.join(sorted(client.channels.opened))} of {', '.join(sorted(wanted))} came")
    try:
        with grant.begin() as process:
            result = carry(client, process)
    except ConnectionError:  # the client has gone: there is nobody to tell
        raise
    except (MinirtError, OSError) as error:
        verdict = status.of_failure(f"{grant.failure}: {error}")
    else:
        verdict = status.of_exit(result["exit_code"] if grant.tells_exit else 0)
    client.finish(protocol, verdict)


def _serve_forward(upgrade: Upgrade, grant: Forward) -> None:
    from harness.minirt.streaming import forward

    wire: forward.Wire
    if upgrade.protocol == WEBSOCKET:
        from harness.minirt.streaming import websocket

        protocol = negotiate(upgrade.values(websocket.PROTOCOL_HEADER), (f"SPDY/3.1+{forward.PROTOCOL}",))
        first = websocket.accept(upgrade, protocol)
        wire = forward.Tunnel()
    else:
        first = _accept_spdy(upgrade, negotiate(upgrade.values(PROTOCOL_HEADER), (forward.PROTOCOL,)))
        wire = forward.PlainWire()
    forward.Forwarder(upgrade.socket, wire, grant.netns).run(first)


def _accept_spdy(upgrade: Upgrade, protocol: str) -> bytes:
    return upgrade.switch([("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), (PROTOCOL_HEADER, protocol)])


def wanted_channels(streams: Streams, protocol: str) -> frozenset[str]:
    """The channels that a client opens."""
    wanted = {STDIN: streams.stdin, STDOUT: streams.stdout, STDERR: streams.stderr and not streams.tty}
    # The first two protocols know no resizing.
    wanted[RESIZE] = streams.tty and not protocol.startswith(("v2.", "channel."))
    return frozenset({ERROR, *(name for name, is_wanted in wanted.items() if is_wanted)})
