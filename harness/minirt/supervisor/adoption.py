"""Containers that a supervisor has left, which was killed: the next one looks after what lives, and clears away what is half made."""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import document
from harness.minirt.container import state as states
from harness.minirt.container.seccomp import compile_profile
from harness.minirt.errors import CgroupError, MinirtError
from harness.minirt.supervisor.container import Container
from harness.minirt.supervisor.log import LogFile
from harness.minirt.supervisor.stdio import find_log, find_outputs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.minirt.container.cgroup import Layout
    from harness.minirt.supervisor.loop import Loop

_CLEAR_S = 1.0


def adopt(loop: Loop, state: str, layout: Layout, open_log: Callable[[str, str], LogFile]) -> Iterator[Container]:
    """The containers below ``<state>/containers`` that live. Of those that do not, no process and no cgroup is left.

    Lost with the other supervisor are terminals, the end of stdin to write to, and the beginning of a line whose end had
    not come yet. The exit code of somebody else's child can be had on Linux 6.15 and newer.
    """
    root = f"{state}/containers"
    for id in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        folder = f"{root}/{id}"
        if os.path.exists(f"{folder}/exit.json"):
            continue
        try:
            container = _find(loop, state, id, open_log)
            if container is None:
                _clear(layout, folder)
            else:
                yield container
        except (MinirtError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"container {id} cannot be looked after: {error}", flush=True)


def _find(loop: Loop, state: str, id: str, open_log: Callable[[str, str], LogFile]) -> Container | None:
    folder = f"{state}/containers/{id}"
    if not os.path.exists(f"{folder}/state.json"):
        return None
    known = states.load(f"{state}/containers", id)
    try:
        pidfd = syscalls.pidfd_open(known.pid)
    except OSError:
        return None
    # Looked at after the descriptor was there, so that it is the container's process and not a later one.
    if not states.is_alive(known):
        os.close(pidfd)
        return None
    try:
        log = open_log(id, find_log(folder))
    except OSError as error:
        print(f"container {id} has no log any more: {error}", flush=True)
        log = LogFile("")
    container = Container(loop, id, folder, known.cgroup, log)
    if known.seccomp is not None:
        container.seccomp = compile_profile(known.seccomp, f"{state}/seccomp")
    container.adopted = True
    known.cgroup.thaw_parts()
    container.watch(known.pid, pidfd, find_outputs(folder))
    container.started_ns = os.stat(f"{folder}/state.json").st_mtime_ns
    return container


def _clear(layout: Layout, folder: str) -> None:
    """End what is left of a container that was being started, or whose first process has ended meanwhile."""
    try:
        path = document.read_file(f"{folder}/config.json")["linux"]["cgroupsPath"]
    except (OSError, ValueError, KeyError):
        return
    place = cgroups.find(layout, path)
    try:
        place.kill_all(_CLEAR_S)
        place.remove(_CLEAR_S)
    except CgroupError as error:
        print(f"{folder}: {error}", flush=True)
