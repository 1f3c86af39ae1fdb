"""Staying with a process: hand on signals, relay its terminal, and end with its exit status."""

from __future__ import annotations

import gc
import os
import select
import signal
import struct
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socketpair

from harness.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.launch import Launched

_NOT_HANDED_ON = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH}
_HANDED_ON = {number for number in signal.valid_signals() if number < 32} - _NOT_HANDED_ON


def hold_signals() -> None:
    """Keep signals waiting from just before the process can run until `see_through` hands them on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)


def release_signals() -> None:
    """Undo `hold_signals`, where no process came of it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)


def adopt_orphans() -> None:
    """Become the parent of whatever the container leaves behind in our own pid namespace, so that it can be reaped."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)


class Relay:
    """A terminal of ours for a process that has one: `fd` is the console socket to give to `launch` or `enter`."""

    def __init__(self) -> None:
        self._ours, self._theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self.fd = self._theirs.fileno()
        self.end = self._theirs
        self.master = -1

    def open(self) -> int:
        """Receive the master, once; its descriptor. Lines end in it as they are written: ours is the terminal that adds a CR."""
        if self.master >= 0:
            return self.master
        import termios

        self._theirs.close()
        _, rights, _, _ = self._ours.recvmsg(256, 64)
        self._ours.close()
        (self.master,) = struct.unpack("i", rights[0][2][:4])
        os.set_inheritable(self.master, False)
        settings = termios.tcgetattr(self.master)
        settings[1] &= ~termios.ONLCR
        termios.tcsetattr(self.master, termios.TCSANOW, settings)
        return self.master


def see_through(launched: Launched, relay: Relay | None) -> int:
    """Wait for the process; its exit status, 128 + signal for one that was ended by a signal. Closes the pidfd."""

    def hand_on(number: int, _: object) -> None:
        try:
            syscalls.pidfd_send_signal(launched.pidfd, number)
        except ProcessLookupError:
            return

    for number in _HANDED_ON:
        signal.signal(number, hand_on)
    release_signals()
    try:
        if relay is not None:
            _relay(relay.open(), launched.pidfd)
        status = os.waitstatus_to_exitcode(_reap(launched.pid))
    finally:
        os.close(launched.pidfd)
    return status if status >= 0 else 128 - status


def _reap(awaited: int) -> int:
    """Reap children until it was the one that is waited for; its wait status."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == awaited:
            return status


def _relay(master: int, pidfd: int) -> None:
    """Copy between our stdio and the terminal until the process has ended and all it wrote is out."""
    import termios
    import tty

    gc.enable()
    saved = None
    if os.isatty(0):
        saved = termios.tcgetattr(0)
        tty.setraw(0)
        settings = termios.tcgetattr(0)
        settings[1] |= termios.OPOST  # it is here that lines get their CR
        termios.tcsetattr(0, termios.TCSANOW, settings)
        _copy_size(master)
        signal.signal(signal.SIGWINCH, lambda *_: _copy_size(master))
    poll = select.poll()
    for fd in (0, master, pidfd):
        poll.register(fd, select.POLLIN)
    try:
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if 0 in ready:
                typed = os.read(0, 65536)
                if typed:
                    os.write(master, typed)
                else:
                    poll.unregister(0)
                    os.write(master, b"\x04")
            if master in ready:
                if not _copy(master):
                    return
            elif pidfd in ready:
                return
    finally:
        os.close(master)
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _copy(master: int) -> bool:
    try:
        text = os.read(master, 65536)
    except OSError:  # EIO: the last process that had the terminal is gone
        return False
    while text:
        text = text[os.write(1, text) :]
    return True


def _copy_size(master: int) -> None:
    from harness.minirt.container.terminal import resize

    columns, rows = os.get_terminal_size(0)
    resize(master, rows, columns)
