"""The namespaces of a pod, kept alive without a process: made in a short-lived child, bind-mounted below the pod's folder.

``<folder>/ns/{net,ipc,uts}`` and, where the pod has an ipc namespace of its own, the tmpfs ``<folder>/shm`` that its
containers share as /dev/shm. The kernel, not a record, tells what is there: `remove` unmounts whatever it finds.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as Socket
from fcntl import ioctl

from harness.linux import namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_NAME_BYTES = 16
_REQUEST_BYTES = 40


def set_loopback_up() -> None:
    """Bring up ``lo`` of the network namespace that the caller is in."""
    control = Socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        request = bytearray(b"lo".ljust(_REQUEST_BYTES, b"\0"))
        ioctl(control.fileno(), _SIOCGIFFLAGS, request)
        flags = int.from_bytes(request[_NAME_BYTES : _NAME_BYTES + 2], sys.byteorder) | _IFF_UP
        request[_NAME_BYTES : _NAME_BYTES + 2] = flags.to_bytes(2, sys.byteorder)
        ioctl(control.fileno(), _SIOCSIFFLAGS, request)
    finally:
        control.close()


def begin(folder: str, request: dict[str, Any]) -> tuple[int, int]:
    """Start making the namespaces of a pod: ``(pidfd, pipe)`` of the child that does it.

    `request` has ``namespaces`` (kinds), ``hostname``, ``sysctls`` and ``shm_bytes`` (0: no shm). The child writes to the
    pipe what went wrong, nothing where all is well, and exits.
    """
    os.makedirs(f"{folder}/ns", 0o711, exist_ok=True)
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pid, pidfd = syscalls.clone3(0)
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid == 0:
        steps = [""]
        try:
            for step in _make(folder, request):
                steps[0] = step
        except BaseException as error:  # it must not return into the parent's loop
            os.write(writing, f"{steps[0]}: {error}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    return pidfd, reading


def _make(folder: str, request: dict[str, Any]) -> Any:
    """What the child does; yields, before each step, what it is about to do."""
    kinds: Sequence[str] = request["namespaces"]
    yield "making namespaces"
    namespaces.unshare(kinds)
    if "uts" in kinds and request["hostname"]:
        yield "setting the hostname"
        syscalls.sethostname(request["hostname"])
    if "net" in kinds:
        yield "bringing up the loopback interface"
        set_loopback_up()
    for name, value in request["sysctls"].items():
        yield f"setting sysctl {name}"
        _write_sysctl(name, value)
    for kind in kinds:
        yield f"keeping the {kind} namespace"
        namespaces.bind_namespace(f"{folder}/ns/{kind}", kind)
    if request["shm_bytes"]:
        yield "mounting /dev/shm"
        os.makedirs(f"{folder}/shm", 0o1777, exist_ok=True)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("shm", f"{folder}/shm", "tmpfs", flags, f"mode=1777,size={request['shm_bytes']}")


def _write_sysctl(name: str, value: str) -> None:
    fd = os.open(f"/proc/sys/{sysctl_path(name)}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def sysctl_path(name: str) -> str:
    """A sysctl's path below /proc/sys: either separator may be used, and then the other is an ordinary character."""
    first = min((at for mark in "./" if (at := name.find(mark)) >= 0), default=-1)
    if first >= 0 and name[first] == ".":
        return name.replace("/", "\0").replace(".", "/").replace("\0", ".")
    return name


def remove(folder: str) -> None:
    """Undo what `begin` had made, also by halves; nothing happens where nothing is there. Raises `OSError`."""
    for kind in ("net", "ipc", "uts"):
        namespaces.unbind_namespace(f"{folder}/ns/{kind}")
    try:
        syscalls.umount2(f"{folder}/shm", syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno not in (2, 22):  # ENOENT; EINVAL: not a mount
            raise
    for path in (f"{folder}/shm", f"{folder}/ns"):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
