"""Terminals: a pseudo terminal of the container's own devpts, handed to whoever asked for it over a console socket."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from harness.linux import syscalls
from harness.minirt.container import rootfs
from harness.minirt.container.operations import Operation, Stage

_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCGPTN = 0x80045430
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_INSIDE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


def connect_console(path: str) -> socket:
    """The console socket at `path`, connected. Raises `OSError`."""
    end = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    node = -1
    try:
        # By way of a descriptor the address stays below the 108 bytes that a socket's may have; and with a socket on which
        # nobody listens there is no waiting.
        node = os.open(path, os.O_PATH | os.O_CLOEXEC)
        end.setblocking(False)
        end.connect(rootfs.magic(node))
        end.setblocking(True)
    except OSError as error:
        end.close()
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        if node >= 0:
            os.close(node)
    return end


def resize(master: int, rows: int, columns: int) -> None:
    """Set the size of a terminal; its foreground processes get SIGWINCH."""
    fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _open_devpts(root: int) -> int:
    """The container's ``/dev/pts``, which has to be a devpts: nothing else is asked for a terminal."""
    missing = OSError(errno.ENOENT, "a terminal needs a devpts on /dev/pts", "/dev/pts/ptmx")
    try:
        pts = rootfs.find(root, "/dev/pts", os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise missing from None
    if syscalls.filesystem_type(pts) != syscalls.DEVPTS_SUPER_MAGIC:
        os.close(pts)
        raise missing
    return pts


def _make_console(root: int) -> int:
    """The container's ``/dev/console``, made where missing: a mount on a symbolic link would hide something else."""
    dev = rootfs.make_folder(root, "/dev")
    try:
        os.close(os.open("console", os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=dev))
    except FileExistsError:
        pass
    try:
        return syscalls.openat2(dev, "console", os.O_PATH, syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise OSError(error.errno, "has to be an ordinary file", "/dev/console") from None
    finally:
        os.close(dev)


class OpenTerminal(Operation):
    """Open a terminal, send its master away, make it stdin, stdout and stderr, and the session's controlling terminal."""

    uid: int
    size: tuple[int, int] | None
    as_console: bool
    """whether it is also mounted on /dev/console"""

    @property
    def title(self) -> str:
        return "open a terminal"

    def perform(self, stage: Stage) -> None:
        root = stage.root
        if root < 0:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        pts = _open_devpts(root)
        master = syscalls.openat2(pts, "ptmx", os.O_RDWR | os.O_NOCTTY, _INSIDE)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, struct.pack("i", 0)))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if self.size is not None and all(self.size):
            resize(master, *self.size)
        os.fchown(slave, self.uid, -1)
        if self.as_console:
            target = _make_console(root)
            node = syscalls.openat2(pts, str(number), os.O_PATH, _INSIDE)
            flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH
            tree = syscalls.open_tree(node, "", flags)
            attach = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
            syscalls.move_mount(tree, "", target, "", attach)
            for fd in (target, node, tree):
                os.close(fd)
        os.close(pts)
        if stage.console < 0:
            raise OSError(errno.ENOTCONN, "a terminal is asked for, but there is no console socket to send it to")
        end = socket(AF_UNIX, SOCK_STREAM, 0, os.dup(stage.console))
        rights = (SOL_SOCKET, SCM_RIGHTS, struct.pack("i", master))
        end.sendmsg([f"/dev/pts/{number}".encode()], [rights])
        end.close()
        os.close(master)
        fcntl.ioctl(slave, _TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            os.dup2(slave, fd)
        os.close(slave)
