"""One container that the supervisor looks after: its init process, its output, its end."""

from __future__ import annotations

import os
import time
from fcntl import ioctl
from sys import byteorder

from harness.linux import syscalls
from harness.minirt.container import document
from harness.minirt.container.files import read_file
from harness.minirt.errors import CgroupError
from harness.minirt.supervisor.log import LogFile, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.seccomp import Compiled
    from harness.minirt.supervisor.attachment import Attachment
    from harness.minirt.supervisor.execution import Place
    from harness.minirt.supervisor.loop import Loop, Timer

_READ_BYTES = 1 << 16
_CLD_EXITED = 1
UNKNOWN_EXIT_CODE = 255
_AGAIN_S = 0.005
_LONGEST_END_S = 10.0
"""for which what is left in a container's cgroup is killed again and again"""
_MOST_LAST_READS = 64
"""of an output, when a container has ended: what a pipe can hold"""
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO_BYTES = 64
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_BYTES << 16 | 0xFF << 8 | 11


def reap(pidfd: int) -> int:
    """The exit code of a child that has ended, as a shell tells it: 128 + n for signal n. 255 where it is not our child."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return UNKNOWN_EXIT_CODE
    if result is None:
        return UNKNOWN_EXIT_CODE
    return result.si_status if result.si_code == _CLD_EXITED else 128 + result.si_status


def exit_code_of_stranger(pid: int, pidfd: int) -> int | None:
    """The same for somebody else's child: of a zombie /proc tells, of one that is reaped the descriptor (Linux 6.15)."""
    # struct pidfd_info (linux/pidfd.h): mask, cgroupid, eleven ids, exit_code
    info = bytearray(_PIDFD_INFO_EXIT.to_bytes(8, byteorder) + bytes(_PIDFD_INFO_BYTES - 8))
    try:
        ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        info = bytearray(_PIDFD_INFO_BYTES)
    if int.from_bytes(info[:8], byteorder) & _PIDFD_INFO_EXIT:
        return _code(int.from_bytes(info[60:64], byteorder))
    try:
        fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return None
    return _code(int(fields[49])) if fields[0] == "Z" else None


def _code(status: int) -> int:
    return 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF


def oom_kills(cgroup: Cgroup) -> int:
    """How often the kernel has killed a process of the cgroup because its memory was used up."""
    if cgroup.version == 2:
        path = f"{cgroup.folders['']}/memory.events"
    elif "memory" in cgroup.folders:
        path = f"{cgroup.folders['memory']}/memory.oom_control"
    else:
        return 0
    with open(path, "rb", buffering=0) as file:
        for line in file.read(4096).split(b"\n"):
            if line.startswith(b"oom_kill "):
                return int(line[9:])
    return 0


class Container:
    """A container that has been started. `facts` is what the daemon is told of it."""

    def __init__(self, loop: Loop, id: str, folder: str, cgroup: Cgroup, log: LogFile) -> None:
        self.id = id
        self.folder = folder
        self.cgroup = cgroup
        self.log = log
        self.pid = 0
        self.pidfd = -1
        self.stdin = -1
        """the end of a pipe to write to, or -1"""
        self.terminal = -1
        """the master of its terminal, or -1"""
        self.adopted = False
        """whether another supervisor had started it: it is nobody's child that we know"""
        self.attachments: list[Attachment] = []
        self.left: list[Place] = []
        """of commands that have ended, and left something running"""
        self.started_ns = 0
        self.finished_ns = 0
        self.exit_code = 0
        self.exit_known = True
        """whether `exit_code` is the container's own"""
        self.oom_killed = False
        self.told_to_stop = False
        self.seccomp: Compiled | None = None
        """the filter, which further processes get too"""
        self._loop = loop
        self._streams: dict[int, Stream] = {}
        self._held: set[int] = set()
        """outputs that are not read until who follows them has caught up"""
        self._waiting: list[Callable[[dict[str, Any]], None]] = []
        self._timer: Timer | None = None

    @property
    def running(self) -> bool:
        return self.pidfd >= 0

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "pid": self.pid if self.running else 0,
            "started_ns": self.started_ns,
            "finished_ns": self.finished_ns,
            "exit_code": self.exit_code,
            "oom_killed": self.oom_killed,
            "exit_known": self.exit_known,
        }

    def watch(self, pid: int, pidfd: int, outputs: dict[int, str]) -> None:
        """Look after a process that has just been started. The descriptors are the container's from now on.

        `outputs`: ends to read from → the name of their stream.
        """
        self.pid, self.pidfd = pid, pidfd
        self.started_ns = time.time_ns()
        self._loop.add(pidfd, self._ended)
        for fd, name in outputs.items():
            os.set_blocking(fd, False)
            self._streams[fd] = Stream(self.log, name)
            self._loop.add(fd, self._pumping(fd))

    def attach(self, attachment: Attachment) -> None:
        """Have somebody follow the output from now on; `detach` or the container's end ends it."""
        self.attachments.append(attachment)

    def detach(self, attachment: Attachment) -> None:
        """Let go of who followed the output."""
        attachment.close()
        if attachment in self.attachments:
            self.attachments.remove(attachment)
        self.let_go()

    def let_go(self) -> None:
        """Read on from outputs for which nobody needs to be waited for any more."""
        for fd in list(self._held):
            if not any(attachment.is_full(self._streams[fd].name) for attachment in self.attachments):
                self._held.discard(fd)
                self._loop.add(fd, self._pumping(fd))

    def sweep(self) -> None:
        """Remove the places of commands of which nothing is left by now."""
        self.left[:] = [place for place in self.left if not place.remove()]

    def close_stdin(self) -> None:
        """Let the container read the end of its input; nothing happens where that has been."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def when_ended(self, call: Callable[[dict[str, Any]], None]) -> None:
        """Call `call` with the facts once the container has ended: at once, if it has."""
        if self.running:
            self._waiting.append(call)
        else:
            call(self.facts)

    def signal(self, number: int) -> None:
        """Send a signal to the init process; nothing happens where it has ended."""
        if self.running:
            try:
                syscalls.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def kill_after(self, seconds: float, kill: Callable[[Container], None]) -> None:
        """Call `kill` in `seconds`, unless the container ends before; an earlier time wins over a later one."""
        due_ns = time.monotonic_ns() + int(seconds * 1e9)
        if self._timer is None or due_ns < self._timer.due_ns:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.after(seconds, lambda: kill(self))

    def _pumping(self, fd: int) -> Callable[[], None]:
        def pump() -> None:
            self._pump(fd)

        return pump

    def _pump(self, fd: int) -> bool:
        """Move what is there from a pipe to the log; False where nothing was."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process let go of a terminal
            data = b""
        if data:
            stream = self._streams[fd]
            stream.feed(data, time.time_ns())
            for attachment in self.attachments:
                attachment.feed(stream.name, data)
                if attachment.is_full(stream.name) and fd not in self._held:
                    self._held.add(fd)
                    self._loop.remove(fd)
            return True
        self._close_stream(fd)
        return False

    def _close_stream(self, fd: int) -> None:
        self._loop.remove(fd)
        self._held.discard(fd)
        self._streams.pop(fd).finish(time.time_ns())
        os.close(fd)
        if fd == self.terminal:
            self.terminal = -1

    def _ended(self) -> None:
        self._loop.remove(self.pidfd)
        self.finished_ns = time.time_ns()
        if self._timer is not None:
            self._timer.cancel()
        if self.adopted:
            code = exit_code_of_stranger(self.pid, self.pidfd)
            self.exit_code, self.exit_known = (UNKNOWN_EXIT_CODE, False) if code is None else (code, True)
        else:
            self.exit_code = reap(self.pidfd)
        try:
            # Of any process, not of the first alone: that one may have lived on, and ended as it wanted.
            self.oom_killed = oom_kills(self.cgroup) > 0
        except OSError as error:
            print(f"container {self.id}: {error}", flush=True)
        self._clear(time.monotonic() + _LONGEST_END_S)

    def _clear(self, until: float) -> None:
        """Kill what a shared pid namespace let live, and remove the cgroup."""
        try:
            self.end_cgroup()
        except CgroupError as error:
            if time.monotonic() < until:
                self._loop.after(_AGAIN_S, lambda: self._clear(until))
                return
            print(f"container {self.id}: {error}", flush=True)
        self._finish()

    def end_cgroup(self) -> None:
        """Kill who is in the cgroup and remove it, without waiting. Raises `CgroupError` where that takes longer."""
        self.cgroup.kill_all(0)
        self.cgroup.remove(0)

    def _finish(self) -> None:
        for fd in list(self._streams):
            # All that its processes wrote is in the pipe now; whoever else holds it does not belong to the container.
            for _ in range(_MOST_LAST_READS):
                if not self._pump(fd):
                    break
            if fd in self._streams:
                self._close_stream(fd)
        self.log.close()
        os.close(self.pidfd)
        self.pidfd = -1
        self.close_stdin()
        self._record()
        attachments, self.attachments = self.attachments, []
        for attachment in attachments:
            attachment.finish()
            attachment.ended(self.facts)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(self.facts)

    def _record(self) -> None:
        """Keep the end where a daemon finds it, should this process be killed too."""
        temporary = f"{self.folder}/.exit.json"
        try:
            with open(temporary, "wb", buffering=0) as file:
                file.write(document.render(self.facts).encode())
            os.rename(temporary, f"{self.folder}/exit.json")
        except OSError:
            pass  # a full disk: the facts are still here, in memory
