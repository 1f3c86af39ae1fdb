"""A process inside an arena: child of the keeper or of one of its spawners, with a conversation of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence

from harness.command import Completed
from harness.errors import ArenaError, CommandTimeout, MachineError
from harness.keeper import wire

CHUNK = 1 << 16
DEATH_S = 10.0
"""How long a killed process may take to be gone."""


class ArenaProcess:
    """What `Arena.start` gives. Belongs to whoever started it; the arena ends it at the latest."""

    def __init__(self, argv: Sequence[str], channel: socket.socket, answers: socket.socket) -> None:
        self.argv = tuple(argv)
        self.cpu_ns: int | None = None
        """CPU time of it and of the children it waited for; known once it ended"""
        self._channel, self._answers = channel, answers
        self._status: int | None = None
        try:
            self._pid = self._first_answer()
        except BaseException:
            answers.close()
            raise

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def answers(self) -> socket.socket:
        return self._answers

    def poll(self) -> int | None:
        if self._status is None and self._readable(0):
            self.collect()
        return self._status

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while self._status is None:
            if not self._readable(max(0.0, deadline - time.monotonic())):
                raise CommandTimeout(self.argv, timeout_s)
            self.collect()
        return self._status

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to the whole process group if asked; nothing happens where it has ended."""
        if self._status is None:
            with contextlib.suppress(OSError):
                wire.send(self._channel, {"op": "signal", "pid": self._pid, "signal": int(number), "group": group})

    def stop(self, grace_s: float = 5.0) -> int:
        self.signal(signal.SIGTERM)
        with contextlib.suppress(CommandTimeout):
            return self.wait(grace_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to its process group; its status."""
        self.signal(signal.SIGKILL, group=True)
        return self.wait(DEATH_S)

    def collect(self) -> None:
        """Read the answer that is there: the exit status."""
        received = wire.receive(self._answers)
        if received is None:
            self._answers.close()
            self._status = -signal.SIGKILL
            raise ArenaError(f"the keeper died, and with it {self.argv[0]} (process {self._pid})")
        self._status, self.cpu_ns = received[0]["status"], received[0]["cpu_ns"]
        self._answers.close()

    def close(self) -> None:
        """Forget it; what it is asked for from now on is its last known status."""
        self._answers.close()
        if self._status is None:
            self._status = -signal.SIGKILL

    def _readable(self, timeout_s: float) -> bool:
        waiting = select.poll()
        waiting.register(self._answers, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1000))

    def _first_answer(self) -> int:
        received = wire.receive(self._answers)
        if received is None:
            raise ArenaError(f"the keeper died before it could start {self.argv[0]}")
        answer = received[0]
        if "errno" in answer:
            raise MachineError(f"cannot run {self.argv[0]}: {os.strerror(answer['errno'])}")
        return int(answer["pid"])


def request_start(
    channel: socket.socket,
    argv: Sequence[str],
    program: str,
    env: Mapping[str, str] | None,
    cgroups: Sequence[str],
    stdio: tuple[int, int, int],
) -> ArenaProcess:
    """Ask the other end of `channel` to start a process. Raises `ArenaError`, `MachineError`."""
    here, there = wire.pair()
    request = {
        "op": "start",
        "argv": list(argv),
        "program": program,
        "env": None if env is None else dict(env),
        "cgroups": list(cgroups),
    }
    try:
        with there:
            wire.send(channel, request, [*stdio, there.fileno()])
    except OSError as error:
        here.close()
        raise ArenaError(f"the keeper does not answer: {error.strerror}") from error
    return ArenaProcess(argv, channel, here)


class Capture:
    """Pipes between the harness and a command: feeds its stdin, collects its stdout and stderr."""

    def __init__(self, input: bytes, stdout_fd: int | None, stderr_fd: int | None) -> None:
        self._theirs: list[int] = []
        self._ours: list[int] = []
        self._input = memoryview(input)
        self.feed = -1
        self._sinks: dict[int, bytearray] = {}
        self.stdout, self.stderr = bytearray(), bytearray()
        try:
            if input:
                stdin, self.feed = self._pipe()
                os.set_blocking(self.feed, False)
                self._ours.append(self.feed)
            else:
                stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            self._theirs.append(stdin)
            self.stdio = (stdin, self._sink(self.stdout, stdout_fd), self._sink(self.stderr, stderr_fd))
        except BaseException:
            self.close()
            raise

    def hand_over(self) -> None:
        """The command has its ends: close our copies of them."""
        while self._theirs:
            os.close(self._theirs.pop())

    def close(self) -> None:
        """Close everything that is still open."""
        self.hand_over()
        while self._ours:
            os.close(self._ours.pop())

    def run(self, process: ArenaProcess, timeout_s: float) -> Completed:
        """Carry data until the process ends, then take what it had printed by then.

        A daemon that it left behind may hold the pipes open: that is not waited for. Raises `CommandTimeout`; the
        process is killed then, and whenever anything else is raised.
        """
        try:
            self._carry(process, timeout_s)
        except BaseException as error:
            with contextlib.suppress(ArenaError, CommandTimeout):
                process.kill()
            if isinstance(error, CommandTimeout):
                raise CommandTimeout(process.argv, timeout_s, self.stderr.decode(errors="replace")) from None
            raise
        for fd in list(self._sinks):
            while self._take(fd):
                pass
        return Completed(process.argv, process.wait(0), bytes(self.stdout), bytes(self.stderr))

    def _carry(self, process: ArenaProcess, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        waiting = select.poll()
        answers = process.answers.fileno()
        waiting.register(answers, select.POLLIN)
        for fd in self._sinks:
            waiting.register(fd, select.POLLIN)
        if self.feed >= 0:
            waiting.register(self.feed, select.POLLOUT)
        while True:
            left_s = deadline - time.monotonic()
            ready = waiting.poll(max(0.0, left_s) * 1000)
            if not ready or left_s < 0:
                raise CommandTimeout(process.argv, timeout_s)
            for fd, _ in ready:
                if fd == self.feed:
                    if self._give():
                        waiting.unregister(fd)
                        self._drop(fd)
                elif fd in self._sinks and not self._take(fd) and fd not in self._sinks:
                    waiting.unregister(fd)
            if any(fd == answers for fd, _ in ready):
                process.collect()
                return

    def _give(self) -> bool:
        try:
            self._input = self._input[os.write(self.feed, self._input[:CHUNK]) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return not self._input

    def _take(self, fd: int) -> bool:
        """Read once; False when there is nothing more for now, or for ever (then `fd` is no sink any longer)."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            del self._sinks[fd]
            self._drop(fd)
            return False
        self._sinks[fd] += data
        return True

    def _sink(self, into: bytearray, given: int | None) -> int:
        if given is not None:
            return given
        ours, theirs = self._pipe()
        os.set_blocking(ours, False)
        self._ours.append(ours)
        self._theirs.append(theirs)
        self._sinks[ours] = into
        return theirs

    @staticmethod
    def _pipe() -> tuple[int, int]:
        return os.pipe2(os.O_CLOEXEC)

    def _drop(self, fd: int) -> None:
        self._ours.remove(fd)
        os.close(fd)
