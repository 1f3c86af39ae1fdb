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
from harness.minirt.streaming.channels import ERROR, RESIZE, STDERR, STDIN, STDOUT
from harness.minirt.streaming.command import Client, carry
from harness.minirt.streaming.frames import ProtocolError
from harness.minirt.streaming.process import Process, Streams
from harness.minirt.streaming.spdy import SpdyChannels
from harness.minirt.streaming.tokens import Tokens
from harness.minirt.streaming.upgrade import Refusal, Upgrade, refuse

SPDY: Final = "spdy/3.1"
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


def serve(connection: socket.socket, tokens: Tokens[Command]) -> None:
    """Serve one connection; it stays its owner's. Raises `OSError` and `ProtocolError` where the client is to blame."""
    try:
        upgrade = Upgrade(connection)
        kind, _, token = upgrade.path.removeprefix("/").partition("/")
        grant = tokens.take(token)
        if grant is None or grant.kind != kind:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such stream, or not any more")
        if upgrade.method not in ("GET", "POST"):
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and POST can be upgraded", [("allow", "GET, POST")])
        if upgrade.protocol != SPDY:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"an upgrade to {SPDY} is needed")
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
    protocol = negotiate(upgrade.values(PROTOCOL_HEADER), PROTOCOLS)
    wanted = wanted_channels(grant.streams, protocol)
    first = upgrade.switch([("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), (PROTOCOL_HEADER, protocol)])
    client = Client(upgrade.socket, SpdyChannels(wanted.__contains__), first)
    client.flush()
    if not client.wait_for(wanted, _OPENING_S):
        raise ProtocolError(f"only {', '.join(sorted(client.channels.opened))} of {', '.join(sorted(wanted))} came")
    try:
        with grant.begin() as process:
            result = carry(client, process)
    except MinirtError as error:
        verdict = status.of_failure(f"{grant.failure}: {error}")
    else:
        verdict = status.of_exit(result["exit_code"] if grant.tells_exit else 0)
    client.finish(protocol, verdict)


def wanted_channels(streams: Streams, protocol: str) -> frozenset[str]:
    """The channels that a client opens."""
    wanted = {STDIN: streams.stdin, STDOUT: streams.stdout, STDERR: streams.stderr and not streams.tty}
    # The first two protocols know no resizing.
    wanted[RESIZE] = streams.tty and not protocol.startswith(("v2.", "channel."))
    return frozenset({ERROR, *(name for name, is_wanted in wanted.items() if is_wanted)})
