"""The process that keeps a pod's pid namespace: its first one, so it adopts orphans, and its end is the pod's end.

It is a program of a few machine instructions that sleeps for ever, so that it costs next to no memory: SIGCHLD is ignored,
so the kernel itself reaps what it adopts. It has no privileges, an empty root, and no file but what it is executed from.
``<folder>/pause`` tells which process it is, to who comes after a supervisor that was killed.
"""

from __future__ import annotations

import os
import select
from _signal import SIG_IGN, SIGCHLD, pause, signal  # type: ignore[import-not-found]

from harness.linux import namespaces, syscalls
from harness.minirt.container.detour import clone_by_detour
from harness.minirt.container.files import read_file
from harness.minirt.container.state import start_ticks
from harness.minirt.errors import MinirtError

_PR_SET_SECUREBITS = 28
_NOROOT_LOCKED = 0b11
_MFD_EXEC = 0x10
_SIGKILL = 9
_PROGRAMS = {
    # ELF machine, then: pause() for ever
    "x86_64": (62, "6a22580f05ebf9"),
    # ... ppoll(0, 0, 0, 0) for ever, where there is no pause()
    "aarch64": (183, "000080d2010080d2020080d2030080d2280980d2010000d4faffff17"),
}
_HEADERS_BYTES = 120
_BASE = 0x400000


def program(machine: str) -> bytes:
    """An ELF executable that does nothing for ever; empty for a machine that is not known. See elf(5)."""
    if machine not in _PROGRAMS:
        return b""
    number, text = _PROGRAMS[machine]
    code = bytes.fromhex(text)
    size = _HEADERS_BYTES + len(code)

    def words(*rows: tuple[int, int]) -> bytes:
        return b"".join(value.to_bytes(width, "little") for width, value in rows)

    elf = b"\x7fELF\2\1\1".ljust(16, b"\0") + words(
        (2, 2), (2, number), (4, 1), (8, _BASE + _HEADERS_BYTES), (8, 64), (8, 0), (4, 0), (2, 64), (2, 56), (2, 1),
        (2, 0), (2, 0), (2, 0),
    )  # fmt: skip
    segment = words((4, 1), (4, 5), (8, 0), (8, _BASE), (8, _BASE), (8, size), (8, size), (8, 0x1000))
    return elf + segment + code


_executable = -1


def _open_executable() -> int:
    """A descriptor of the program, made once; -1 where there is none for this machine."""
    global _executable
    content = program(os.uname().machine)
    if _executable < 0 and content:
        try:
            _executable = os.memfd_create("pause", os.MFD_CLOEXEC | _MFD_EXEC)
        except OSError:  # before Linux 6.3 the flag was not known
            _executable = os.memfd_create("pause", os.MFD_CLOEXEC)
        os.write(_executable, content)
    return _executable


def start(folder: str) -> tuple[int, int]:
    """Start it and keep its namespace as ``<folder>/ns/pid``: ``(pid, pidfd)``, a child of the caller's.

    It belongs to the pod's user namespace, where there is ``<folder>/ns/user``. Raises `MinirtError`, `OSError`; nothing is left.
    """
    os.makedirs(f"{folder}/ns", 0o711, exist_ok=True)
    executable = _open_executable()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    flags = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS
    detours = os.path.exists(f"{folder}/ns/user")
    try:
        if detours:
            pid, pidfd = clone_by_detour(lambda: _go(folder, writing), flags)
        else:
            pid, pidfd = syscalls.clone3(flags)
        if pid == 0:
            _be_pause("" if detours else f"{folder}/ns", executable, writing)
    except ChildProcessError:
        pid, pidfd = 0, -1
    finally:
        os.close(writing)
        with open(reading, "rb", buffering=0) as pipe:
            problem = pipe.read().decode(errors="replace")
    try:
        if problem or not pid:
            raise MinirtError(f"the pod's first process cannot be started: {problem or 'it ended'}")
        namespaces.bind_namespace(f"{folder}/ns/pid", "pid", pid)
        with open(f"{folder}/.pause", "wb", buffering=0) as file:
            file.write(f"{pid} {start_ticks(pid)}".encode())
        os.rename(f"{folder}/.pause", f"{folder}/pause")
    except BaseException:
        if pid:
            syscalls.pidfd_send_signal(pidfd, _SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
        raise
    return pid, pidfd


def _go(folder: str, complaints: int) -> None:
    """Into the pod's user namespace; the folder that we are in comes along."""
    try:
        os.chdir(f"{folder}/ns")
        fd = os.open("user", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.setns(fd)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except BaseException as error:
        os.write(complaints, f"entering the user namespace: {error}".encode())
        os._exit(1)


def _be_pause(folder: str, executable: int, complaints: int) -> None:
    """Never returns. `folder`: where to mount the empty root; none: we are there already."""
    try:
        signal(SIGCHLD, SIG_IGN)
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        if folder:
            os.chdir(folder)
        _empty_root()
        # Not even as root it gets a privilege back: what is in the same namespace may well trace it.
        syscalls.prctl(_PR_SET_SECUREBITS, _NOROOT_LOCKED)
        syscalls.capset(0, 0, 0)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if executable >= 0:
            os.dup2(executable, 3, inheritable=False)
            os.dup2(complaints, 4, inheritable=False)
            syscalls.close_range(5)
            complaints = 4
            os.execve(3, ["/pause"], {})
        os.close(complaints)
        while True:
            pause()
    except BaseException as error:
        os.write(complaints, f"{error}".encode())
    finally:
        os._exit(1)


def _empty_root() -> None:
    """Replace everything by an empty file system: ``/proc/1/root`` of the pod's containers leads to it."""
    syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("none", ".", "tmpfs", flags, "nr_blocks=1,nr_inodes=1,mode=555")
    os.chdir("../ns")
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def find(folder: str) -> tuple[int, int]:
    """``(pid, pidfd)`` of the process that an earlier supervisor has started for a pod; ``(0, -1)`` where it has ended."""
    try:
        words = read_file(f"{folder}/pause").split()
        pid, ticks = int(words[0]), int(words[1])
        pidfd = syscalls.pidfd_open(pid)
    except (OSError, ValueError, IndexError):
        return 0, -1
    # Looked at after the descriptor was there, so that it is that process and not a later one.
    if start_ticks(pid) == ticks:
        return pid, pidfd
    os.close(pidfd)
    return 0, -1


def has_died(folder: str) -> bool:
    """Whether a pod had such a process, and has it no more."""
    if not os.path.exists(f"{folder}/pause"):
        return False
    pid, pidfd = find(folder)
    if pid:
        os.close(pidfd)
    return not pid


def kill(folder: str, timeout_s: float = 5.0) -> None:
    """End what an earlier supervisor has started for a pod, and wait for it; nothing happens where there is nothing."""
    pid, pidfd = find(folder)
    if pid:
        try:
            syscalls.pidfd_send_signal(pidfd, _SIGKILL)
            waiter = select.poll()
            waiter.register(pidfd, select.POLLIN)
            waiter.poll(timeout_s * 1000)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
    try:
        os.unlink(f"{folder}/pause")
    except FileNotFoundError:
        pass
