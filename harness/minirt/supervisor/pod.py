"""The namespaces of a pod, kept alive without a process: made in a short-lived child, bind-mounted below the pod's folder.

``<folder>/ns/{user,net,ipc,uts}`` and, where the pod has an ipc namespace of its own, the tmpfs ``<folder>/shm`` that its
containers share as /dev/shm. The kernel, not a record, tells what is there: `remove` unmounts whatever it finds. All of it
is below one private mount of the folder on itself: it goes at once, and other mount namespaces hold nothing of it. A pid
namespace that is shared needs a process as well: see `pause`.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as Socket
from fcntl import ioctl

from harness.linux import namespaces, syscalls
from harness.minirt.container.files import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_KINDS = ("net", "ipc", "uts", "pid", "user")
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

    `request` has ``namespaces`` (kinds), ``hostname``, ``sysctls``, ``default_sysctls`` (the kernel may lack those),
    ``shm_bytes`` (0: no shm) and ``user``: None, or the mappings of uids and gids that a user namespace around all others
    has. The child writes to the pipe what went wrong, nothing where all is well, and exits.
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
    owner = 0, 0
    yield "making a mount of its folder"
    syscalls.mount(folder, folder, None, syscalls.MS_BIND)
    syscalls.mount(None, folder, None, syscalls.MS_PRIVATE)
    if request["user"] is None:
        yield "making namespaces"
        namespaces.unshare(kinds)
        for kind in kinds:
            yield f"keeping the {kind} namespace"
            namespaces.bind_namespace(f"{folder}/ns/{kind}", kind)
    else:
        uids, gids = request["user"]
        owner = uids[1], gids[1]
        yield "making namespaces in a user namespace"
        yield from _keep_from_holder(folder, kinds, uids, gids)
        yield "entering the namespaces"
        for kind in kinds:
            fd = os.open(f"{folder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd)
            os.close(fd)
    if "uts" in kinds and request["hostname"]:
        yield "setting the hostname"
        syscalls.sethostname(request["hostname"])
    if "net" in kinds:
        yield "bringing up the loopback interface"
        set_loopback_up()
    for name, value in request["default_sysctls"].items():
        yield f"setting sysctl {name}"
        try:
            _write_sysctl(name, value)
        except FileNotFoundError:
            pass
    for name, value in request["sysctls"].items():
        yield f"setting sysctl {name}"
        _write_sysctl(name, value)
    if request["shm_bytes"]:
        yield "mounting /dev/shm"
        os.makedirs(f"{folder}/shm", 0o1777, exist_ok=True)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        options = f"mode=1777,size={request['shm_bytes']},uid={owner[0]},gid={owner[1]}"
        syscalls.mount("shm", f"{folder}/shm", "tmpfs", flags, options)


def _keep_from_holder(folder: str, kinds: Sequence[str], uids: Sequence[int], gids: Sequence[int]) -> Any:
    """Keep namespaces that belong to a new user namespace.

    Who is in that has no power over the machine's mounts: one process makes the namespaces and waits, this one keeps them.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = syscalls.clone3(namespaces.flags_of(("user", *kinds)))
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        for name, mapping in (("uid_map", uids), ("gid_map", gids)):
            yield f"writing {name}"
            write_file(f"/proc/{pid}/{name}", " ".join(map(str, mapping)))
        for kind in ("user", *kinds):
            yield f"keeping the {kind} namespace"
            namespaces.bind_namespace(f"{folder}/ns/{kind}", kind, pid)
    finally:
        os.close(writing)
        os.waitpid(pid, 0)
        os.close(pidfd)


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
    try:
        # With everything below: each by itself would wait for a grace period of its own.
        syscalls.umount2(folder, syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno not in (2, 22):  # ENOENT; EINVAL: not a mount
            raise
    for kind in _KINDS:
        namespaces.unbind_namespace(f"{folder}/ns/{kind}")
    for path in (f"{folder}/shm", f"{folder}/ns"):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
