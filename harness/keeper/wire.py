"""Messages between the harness and a keeper: JSON objects with open descriptors, over a SOCK_SEQPACKET socket."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence
from typing import Any

LONGEST = 1 << 20
"""Bytes of the longest message; an argv and an environment have to fit."""

MOST_FDS = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, close-on-exec, each message of which arrives whole or not at all."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (here, there):
        # Without CAP_NET_ADMIN the kernel's own limit has to do: 200 KiB, which few environments reach.
        try:
            end.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_SNDBUFFORCE", 32), LONGEST)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
    return here, there


def send(to: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message. Raises `OSError`: EPIPE or ECONNRESET where nobody is there any more, EMSGSIZE when too long."""
    socket.send_fds(to, [json.dumps(message).encode()], fds, socket.MSG_NOSIGNAL)


def receive(source: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors (close-on-exec), None at the end of the conversation."""
    fds = array.array("i")
    try:
        # socket.recv_fds drops its flags: the descriptors would be inherited by every child.
        data, controls, _, _ = source.recvmsg(
            LONGEST, socket.CMSG_SPACE(MOST_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None
    for level, kind, payload in controls:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return (json.loads(data), fds.tolist()) if data else None
