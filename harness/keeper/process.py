"""The keeper's own process: namespaces, then requests, then the end of everything it held."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
from typing import Any

from harness.keeper import ladder, runs, tidy, wire
from harness.keeper.spawner import Spawner, enter
from harness.linux import mounts, syscalls

PASSED_THROUGH = ("systemd/resolve", "resolvconf", "NetworkManager", "nscd")
"""What of the host's /run an arena still sees: /etc/resolv.conf is often a symlink into the first three."""

SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1


def main(fd: int) -> None:
    """Serve the harness at the other end of socket `fd`; never raises, and leaves nothing."""
    requests = socket.socket(fileno=fd)
    requests.set_inheritable(False)
    received = wire.receive(requests)
    if received is None:
        return
    plan, fds = received
    keeper = Keeper(requests, plan, fds)
    try:
        try:
            keeper.settle()
        except OSError as error:
            wire.send(requests, {"error": f"{error.filename or 'namespaces'}: {error.strerror}"})
            return
        with contextlib.suppress(BrokenPipeError):
            wire.send(requests, {"pid": os.getpid()})
        keeper.serve()
    finally:
        keeper.leave()


class Keeper(Spawner):
    """A spawner that holds namespaces, makes further spawners, and takes everything down at the end."""

    def __init__(self, requests: socket.socket, plan: dict[str, Any], held: list[int]) -> None:
        super().__init__(requests)
        self._plan = plan
        self._held = held
        self._site = ladder.Site(tuple(plan["cgroups"]), tuple(plan["folders"]))
        self._known: frozenset[int] | None = None
        self._terminated = False
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def settle(self) -> None:
        """Make the namespaces and the private mounts, unless the arena is attached to the host's. Raises `OSError`."""
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        # Some write where they are: conmon a file "oom" for each container that ran out of memory.
        os.chdir(self._plan["folders"][0])
        if not self._plan["private"]:
            return
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        _raise_loopback()
        if self._plan["unified"]:
            tidy.hide_tree(self._plan["unified"])
        # Not before: the kernel gives the number of a mount that is gone to the next one.
        self._known = frozenset(mount.id for mount in mounts.read_mounts())
        _hide_run(self._plan["state"])
        for source, target in self._plan["binds"]:
            os.makedirs(source, mode=0o755, exist_ok=True)
            syscalls.mount(source, target, None, syscalls.MS_BIND)

    def ended(self) -> bool:
        return self._terminated

    def handle(self, request: dict[str, Any], fds: list[int]) -> bool:
        if request["op"] == "spawner":
            self._spawn(request, fds)
            return False
        if request["op"] == "close":
            with contextlib.suppress(OSError):
                wire.send(self.requests, {"complaints": self.leave()})
            return True
        return super().handle(request, fds)

    def leave(self) -> list[str]:
        """Take everything down; a second call finds nothing to do. What could not be done comes back."""
        known = self._known
        complaints = ladder.climb(
            self._site,
            unmount=None if known is None else lambda: ladder.unmount_since(known),
            descendants_of=os.getpid(),
            reap=self.reap,
        )
        runs.sweep(self._plan["run"], self._plan["bases"])
        return complaints

    def _spawn(self, request: dict[str, Any], fds: list[int]) -> None:
        """Fork a spawner into cgroups: what it starts is born there, and pays nothing for a move between cgroups."""
        pid = os.fork()
        if pid:
            for fd in fds:
                os.close(fd)
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            for fd in self._held:
                os.close(fd)
            self.requests.close()
            requests = socket.socket(fileno=fds[0])
            enter(request["cgroups"])
            wire.send(requests, {"pid": os.getpid()})
            Spawner(requests).serve()
        except BrokenPipeError:
            pass
        finally:
            os._exit(0)

    def _terminate(self, *_: object) -> None:
        self._terminated = True


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def _hide_run(state: str) -> None:
    """Cover /run: every runtime keeps sockets and locks there, at paths that few options reach.

    The arena's own state folder and `PASSED_THROUGH` stay visible, at the same paths.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    kept = {state: os.open(state, flags)}
    for name in PASSED_THROUGH:
        with contextlib.suppress(FileNotFoundError):
            kept[f"/run/{name}"] = os.open(f"/run/{name}", flags | os.O_DIRECTORY)
    syscalls.mount("seatrial", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755")
    for path, fd in kept.items():
        os.makedirs(path, mode=0o755, exist_ok=True)
        syscalls.mount(f"/proc/self/fd/{fd}", path, None, syscalls.MS_BIND | syscalls.MS_REC)
        os.close(fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
