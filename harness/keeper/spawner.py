"""Start processes on request, and tell how each ended: the loop that the keeper and its spawners share.

A request brings the new process's stdin, stdout and stderr and a socket of its own for the answers: first its pid (or the
errno that kept it from starting), later its status. The conversation needs no numbering, and several threads of the
harness can hold one each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import Any, NoReturn

from harness.keeper import wire
from harness.linux import syscalls

# What the interpreter ignores would stay ignored across an exec.
DEFAULTED = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Spawner:
    """Serves one socket until its other end is closed. Not to be used by several threads."""

    def __init__(self, requests: socket.socket) -> None:
        self.requests = requests
        self._children: dict[int, socket.socket] = {}
        self._wakeup, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Answer requests until end of file."""
        waiting = select.poll()
        waiting.register(self.requests, select.POLLIN)
        waiting.register(self._wakeup, select.POLLIN)
        while True:
            for fd, _ in waiting.poll():
                if fd == self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 4096)
                    self.reap()
                    if self.ended():
                        return
                else:
                    received = wire.receive(self.requests)
                    if received is None:
                        return
                    if self.handle(*received):
                        return

    def ended(self) -> bool:
        """Whether a signal asked for the end."""
        return False

    def handle(self, request: dict[str, Any], fds: list[int]) -> bool:
        """Do what one request says, and close its descriptors. True: that was the last."""
        if request["op"] == "start":
            self._start(request, fds)
        elif request["op"] == "signal" and request["pid"] in self._children:
            # A child in the table is not reaped yet, so its number is still its own.
            deliver = os.killpg if request["group"] else os.kill
            with contextlib.suppress(ProcessLookupError):
                deliver(request["pid"], request["signal"])
        return False

    def reap(self) -> None:
        """Collect every child that ended, and orphans handed down to us; report the former."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            answers = self._children.pop(pid, None)
            if answers is not None:
                with answers, contextlib.suppress(OSError):
                    wire.send(
                        answers,
                        {
                            "status": os.waitstatus_to_exitcode(status),
                            "cpu_ns": int((usage.ru_utime + usage.ru_stime) * 1e9),
                        },
                    )

    def _start(self, request: dict[str, Any], fds: list[int]) -> None:
        stdin, stdout, stderr, talk = fds
        answers = socket.socket(fileno=talk)
        argv, program, env = request["argv"], request["program"], request["env"]
        if env is None:
            env = os.environ
        try:
            if request["cgroups"]:
                pid = _fork_into(request["cgroups"], program, argv, env, (stdin, stdout, stderr))
            else:
                # Shares our memory until the exec: no page tables to copy, and nothing of ours on the child's account.
                pid = os.posix_spawn(
                    program,
                    argv,
                    env,
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds[:3])],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=DEFAULTED,
                )
        except (OSError, ValueError) as error:  # ValueError: a NUL in a word
            with answers, contextlib.suppress(OSError):
                wire.send(answers, {"errno": getattr(error, "errno", errno.EINVAL)})
        else:
            self._children[pid] = answers
            with contextlib.suppress(OSError):
                wire.send(answers, {"pid": pid})
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)


def _fork_into(
    cgroups: list[str], program: str, argv: list[str], env: dict[str, str], stdio: tuple[int, int, int]
) -> int:
    """Start a process that enters `cgroups` (folders) before its exec. Raises `OSError` for any step of it."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        _become(cgroups, program, argv, env, stdio, tell)
    os.close(tell)
    with open(told, "rb") as failure:
        number = failure.read()
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)))
    return pid


def _become(
    cgroups: list[str], program: str, argv: list[str], env: dict[str, str], stdio: tuple[int, int, int], tell: int
) -> NoReturn:
    try:
        os.setsid()
        enter(cgroups)
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        syscalls.reset_signals()
        os.execve(program, argv, env)
    except (OSError, ValueError) as error:
        os.write(tell, str(getattr(error, "errno", errno.EINVAL) or errno.EIO).encode())
    finally:
        os._exit(127)


def enter(cgroups: list[str]) -> None:
    """Move the calling process into the cgroups that these folders are. Raises `OSError`."""
    for folder in cgroups:
        with open(os.path.join(folder, "cgroup.procs"), "wb", buffering=0) as procs:
            procs.write(b"0")
