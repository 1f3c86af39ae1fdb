"""Who follows a container's output gets all of it, at their own pace, and is let go of."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pytest

from harness.minirt.supervisor.attachment import Attachment
from harness.minirt.supervisor.loop import Loop

MUCH = os.urandom(1 << 20)


class Follower:
    """A pipe whose end belongs to an attachment, and what is read from it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reading, False)
        self.received = bytearray()
        self.has_ended = False
        self.drained = 0
        self.facts: list[dict[str, Any]] = []
        self.attachment = Attachment(loop, {"stdout": self.writing}, self._drained, self.facts.append)

    def _drained(self) -> None:
        self.drained += 1

    def follow(self) -> None:
        """Read in the loop until the end, which stops the loop."""
        self.loop.add(self.reading, self._read)

    def _read(self) -> None:
        data = os.read(self.reading, 4096)
        self.received += data
        if not data:
            self.has_ended = True
            self.loop.remove(self.reading)
            self.loop.stop()

    def writing_is_open(self) -> bool:
        try:
            fcntl.fcntl(self.writing, fcntl.F_GETFD)
        except OSError:
            return False
        return True


@pytest.fixture
def follower() -> Iterator[Follower]:
    loop = Loop()
    follower = Follower(loop)
    yield follower
    follower.attachment.close()
    with contextlib.suppress(OSError):
        os.close(follower.reading)
    loop.close()


def test_what_fits_is_handed_on_at_once(follower: Follower) -> None:
    follower.attachment.feed("stdout", b"ahoy")
    follower.attachment.feed("stderr", b"nobody follows this one")
    assert os.read(follower.reading, 100) == b"ahoy"
    assert not follower.attachment.is_full("stdout")


def test_what_does_not_fit_is_kept_and_sent_later_in_order(follower: Follower) -> None:
    follower.attachment.feed("stdout", MUCH)
    assert follower.attachment.is_full("stdout")
    follower.attachment.feed("stdout", b"the end")
    follower.attachment.finish()
    assert follower.writing_is_open(), "not all of it is in the pipe"
    follower.follow()
    follower.loop.run()
    assert follower.received == MUCH + b"the end"
    assert (follower.drained, follower.attachment.is_full("stdout"), follower.has_ended) == (1, False, True)


def test_the_end_is_told_at_once_where_nothing_is_kept(follower: Follower) -> None:
    follower.attachment.feed("stdout", b"last words")
    follower.attachment.finish()
    assert os.read(follower.reading, 100) == b"last words"
    assert os.read(follower.reading, 100) == b""


@pytest.mark.parametrize("kept", [False, True])
def test_a_reader_that_has_gone_holds_nobody_up(follower: Follower, kept: bool) -> None:
    if kept:
        follower.attachment.feed("stdout", MUCH)
    os.close(follower.reading)
    if kept:
        follower.loop.after(20, follower.loop.stop)  # should it never come to it
        follower.attachment._drained = follower.loop.stop
        follower.loop.run()
    else:
        follower.attachment.feed("stdout", b"x")
    assert not follower.attachment.is_full("stdout")
    assert not follower.writing_is_open()


def test_who_is_let_go_of_gets_nothing_more(follower: Follower) -> None:
    follower.attachment.feed("stdout", MUCH)
    follower.attachment.close()
    follower.attachment.feed("stdout", b"more")
    assert not follower.attachment.is_full("stdout")
    assert not follower.writing_is_open()
