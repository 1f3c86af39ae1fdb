"""What pods hold while they are not being asked about: their namespaces, and the first process of a shared pid namespace."""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument, MinirtError, WrongState
from harness.minirt.supervisor import pause, pod
from harness.minirt.supervisor.container import reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.supervisor.loop import Loop

_SIGKILL = 9


class Pods:
    """The pods below ``<state>/pods``. `lost` is told the id of a pod whose first process ended without having been asked to."""

    def __init__(self, loop: Loop, state: str, lost: Callable[[str], None]) -> None:
        self._loop = loop
        self._folder = f"{state}/pods"
        self._lost = lost
        self._pauses: dict[str, int] = {}
        """pods whose pid namespace is kept → pidfd of the process that does"""

    def _ids(self) -> list[str]:
        return os.listdir(self._folder) if os.path.isdir(self._folder) else []

    def adopt(self) -> None:
        """Look after what another supervisor has left."""
        for id in self._ids():
            pid, pidfd = pause.find(f"{self._folder}/{id}")
            if pid:
                self._watch(id, pidfd, lambda id=id: self._lost(id))  # type: ignore[misc]

    def create(self, request: dict[str, Any], done: Callable[[MinirtError | None], None]) -> None:
        """Make the namespaces of a pod; `done` is told how that went. See `pod.begin`."""
        id = request["id"]
        folder = f"{self._folder}/{id}"
        pidfd, pipe = pod.begin(folder, request)

        def ended() -> None:
            self._loop.remove(pidfd)
            killed = reap(pidfd) != 0
            os.close(pidfd)
            problem = os.read(pipe, 4096) or (b"the process that made its namespaces was killed" if killed else b"")
            os.close(pipe)
            if problem:
                try:
                    pod.remove(folder)
                except OSError as error:
                    problem += f"; and it cannot be taken back: {error}".encode()
            done(InvalidArgument(f"pod {id}: {problem.decode(errors='replace')}") if problem else None)

        self._loop.add(pidfd, ended)

    def hold_pids(self, id: str) -> None:
        """Keep a pid namespace for a pod's containers to share; nothing happens where that is done."""
        folder = f"{self._folder}/{id}"
        if id not in self._pauses:
            if os.path.exists(f"{folder}/pause"):
                raise WrongState(f"pod {id} has lost its first process")
            self._watch(id, pause.start(folder)[1], lambda: self._lost(id))

    def remove(self, id: str, done: Callable[[MinirtError | None], None]) -> None:
        """Let go of all that a pod holds; `done` is told how that went."""
        folder = f"{self._folder}/{id}"

        def remove() -> None:
            try:
                pause.kill(folder)
                pod.remove(folder)
            except OSError as error:
                done(MinirtError(f"remove pod: {error}"))
            else:
                done(None)

        pidfd = self._pauses.get(id, -1)
        if pidfd < 0:
            remove()
            return
        # What else is in its namespace is reaped by the loop: nobody must wait here.
        self._watch(id, pidfd, remove)
        try:
            syscalls.pidfd_send_signal(pidfd, _SIGKILL)
        except ProcessLookupError:
            pass  # about to be noticed

    def remove_all(self) -> None:
        """Let go of everything, and wait for it."""
        for id in self._ids():
            pause.kill(f"{self._folder}/{id}")
            pod.remove(f"{self._folder}/{id}")

    def _watch(self, id: str, pidfd: int, call: Callable[[], None]) -> None:
        def ended() -> None:
            self._loop.remove(pidfd)
            reap(pidfd)
            os.close(pidfd)
            del self._pauses[id]
            call()

        self._loop.remove(pidfd)
        self._pauses[id] = pidfd
        self._loop.add(pidfd, ended)
