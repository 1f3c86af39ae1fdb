"""What a child and the parent that started it say to each other: one packet a word, over a pair of sockets.

The child's end is close-on-exec, so the end of the conversation without an error means that the exec succeeded. Words of
the child: ``ready`` (set up, waiting to be started), ``error`` with a document, ``jump`` with the name of the program that a
trampoline is to execute, and others that the parent does and answers.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from sys import byteorder

from harness.linux import lean as os
from harness.minirt.container import document
from harness.minirt.errors import CommandError, HookError, MinirtError, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_LONGEST = 8192
ERROR_BYTES = 4
"""what a trampoline sends: the negative number of an error, in place of a word"""
_LONGEST_TEXT = 1200
"""letters of an error: each may become six bytes of JSON, and a packet is never taken in parts"""


class Channel:
    """One end; close it when done."""

    __slots__ = ("_program", "socket")

    def __init__(self, end: socket, program: str = "") -> None:
        self.socket = end
        self._program = program

    @property
    def fd(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, word: str, content: Any = None) -> None:
        # write(2) gets through filters that know no sendto(2).
        os.write(self.socket.fileno(), document.render([word, content]).encode())

    def receive(self) -> tuple[str, Any]:
        """The next word; ``("", None)`` when the other side has hung up."""
        try:
            packet = self.socket.recv(_LONGEST)
        except ConnectionResetError:
            packet = b""
        if not packet:
            return "", None
        if len(packet) == ERROR_BYTES:
            number = -int.from_bytes(packet, byteorder, signed=True)
            return "error", describe("", CommandError(self._program, number, os.strerror(number).lower()))
        word, content = document.parse(packet.decode())
        if word == "jump":
            self._program = content
            return self.receive()
        return word, content

    def ask(self, word: str) -> None:
        """Send a word and wait for the answer. Raises `BrokenPipeError` when the parent has gone."""
        self.send(word)
        if self.receive()[0] != "go":
            raise BrokenPipeError(32, "the runtime has gone away")

    def report(self, step: str, error: BaseException) -> None:
        """Tell why the child cannot go on; never raises."""
        try:
            self.send("error", describe(step, error))
        except OSError:
            pass

    def follow(self, answers: Mapping[str, Callable[[Any], None]]) -> bool:
        """Answer the child until it is ready (True) or has executed its program (False); raises what it reports."""
        while True:
            word, content = self.receive()
            if word in answers:
                answers[word](content)
                self.send("go")
            elif word == "error":
                raise restore(content)
            else:
                return word == "ready"


def pair() -> tuple[Channel, Channel]:
    """Two ends of a new channel."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)


def describe(step: str, error: BaseException) -> dict[str, Any]:
    """An error as a document that `restore` understands."""
    if isinstance(error, HookError):
        return {"hook": f"{error}"[:_LONGEST_TEXT]}
    if isinstance(error, CommandError):
        return {"command": error.command, "errno": error.errno, "reason": error.reason}
    if isinstance(error, StepError):
        return {"step": error.step, "errno": error.errno, "reason": error.reason}
    if isinstance(error, OSError) and error.errno:
        about = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        known = os.strerror(error.errno)
        text = error.strerror if error.strerror and error.strerror != known else known.lower()
        return {"step": step, "errno": error.errno, "reason": f"{text}{about}"}
    return {"step": step, "errno": 0, "reason": f"{error}"[:_LONGEST_TEXT] or type(error).__name__}


def restore(content: dict[str, Any]) -> MinirtError:
    """The error that a child described."""
    if "hook" in content:
        return HookError(content["hook"])
    if "command" in content:
        return CommandError(content["command"], content["errno"], content["reason"])
    return StepError(content["step"], content["errno"], content["reason"])
