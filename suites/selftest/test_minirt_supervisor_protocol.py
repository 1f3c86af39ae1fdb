"""Frames and descriptors between daemon and supervisor."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.minirt.supervisor.protocol import LARGEST_FRAME_BYTES, Inbox, ProtocolError, frame, send


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_messages_come_whole_and_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    messages = [{"op": "x", "n": number, "text": "ü\0\n" * number} for number in range(20)]
    raw = b"".join(frame(message) for message in messages)
    inbox = Inbox()
    found = []
    for at in range(0, len(raw), 7):
        ours.sendall(raw[at : at + 7])
        assert inbox.receive(theirs)
        while taken := inbox.take():
            found.append(taken)
    assert found == [(message, []) for message in messages]


def test_descriptors_belong_to_their_message(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reading, writing = os.pipe()
    try:
        send(ours, {"op": "first"})
        send(ours, {"op": "second"}, (writing,))
        inbox = Inbox()
        found = []
        while len(found) < 2:
            inbox.receive(theirs)
            while taken := inbox.take():
                found.append(taken)
        assert found[0] == ({"op": "first"}, [])
        message, (fd,) = found[1]
        assert message == {"op": "second"}
        assert not os.get_inheritable(fd)
        os.write(fd, b"here")
        os.close(fd)
        assert os.read(reading, 10) == b"here"
    finally:
        os.close(reading)
        os.close(writing)


def test_descriptors_that_nobody_claims_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reading, writing = os.pipe()
    socket.send_fds(ours, [b"\0"], [writing])
    os.close(writing)
    inbox = Inbox()
    inbox.receive(theirs)
    inbox.close()
    assert os.read(reading, 1) == b""  # the last writer is gone
    os.close(reading)


def test_the_end_of_a_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    assert not Inbox().receive(theirs)


@pytest.mark.parametrize(
    "raw",
    [
        (LARGEST_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\2[]",
        b"\0\0\0\3abc",
        b"\0\0\0\2\xff\xff",
        frame({"fds": 3}),
        frame({"fds": -1}),
        frame({"fds": "x"}),
    ],
)
def test_nonsense_ends_the_connection(pair: tuple[socket.socket, socket.socket], raw: bytes) -> None:
    ours, theirs = pair
    ours.sendall(raw)
    inbox = Inbox()
    inbox.receive(theirs)
    with pytest.raises(ProtocolError):
        inbox.take()


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError):
        frame({"text": "x" * LARGEST_FRAME_BYTES})


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_nonsense(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox()
        if raw:
            ours.sendall(raw)
            inbox.receive(theirs)
        try:
            taken = inbox.take()
        except ProtocolError:
            return
        assert taken is None or isinstance(taken[0], dict)
