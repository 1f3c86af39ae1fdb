"""The end of everything that a daemon and its supervisor hold."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.resources import Resources
from harness.minirt.cri.containers import end_cgroup
from harness.minirt.cri.lock import end_holder
from harness.minirt.cri.options import Options
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import Container, Folder
from harness.minirt.errors import TimedOut, Unavailable
from harness.minirt.network.cni import Networks
from harness.minirt.supervisor import pause
from harness.minirt.supervisor import pod as namespaces
from harness.minirt.supervisor.client import Supervisor

_DAEMON_END_S = 30.0
_SUPERVISOR_END_S = 30.0


def shut_down(options: Options) -> str:
    """End the daemon, remove every container and every pod with its network and namespaces, end the supervisor.

    Gives a sentence about what was ended. Pulled images stay. May be done again, and works where daemon or supervisor were
    killed. Takes a bounded time; raises `MinirtError` and `OSError` for what does not end or cannot be removed.
    """
    root, state = Path(options.root), Path(options.state)
    if not root.is_dir() and not state.is_dir():
        return "nothing to end"
    ended = ["the daemon"] if end_holder(state, _DAEMON_END_S) else []
    ended += [f"{_count(root / kind)} {kind}" for kind in ("containers", "pods") if _count(root / kind)]
    supervisor = Supervisor(options.supervisor_socket, _SUPERVISOR_END_S)
    networks = Networks(Path(options.cni_conf_dir), options.bin_dirs)
    try:
        with contextlib.suppress(Unavailable, TimedOut):  # a supervisor that is stuck is asked once more below
            supervisor.call("kill all")
        _end_orphans(root)
        pods = Pods(root, state, supervisor, networks, options.cgroup_parent)
        pods.detach_all()
        with contextlib.suppress(Unavailable):
            supervisor.call("shut down")
            ended.append("the supervisor")
    finally:
        supervisor.close()
    for id in os.listdir(state / "pods"):
        pause.kill(str(state / "pods" / id))
        namespaces.remove(str(state / "pods" / id))
    for folder in (root, state):
        shutil.rmtree(folder / "containers", ignore_errors=True)
    pods.discard_all()
    _remove_cgroup(options.cgroup_parent)
    return f"ended: {', '.join(ended)}" if ended else "nothing to end"


def _count(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _end_orphans(root: Path) -> None:
    """Kill what a supervisor that was killed has left, by its cgroup."""
    for _, container in Folder(root / "containers", "container.json").read(Container):
        if container is not None and container.cgroup:
            end_cgroup(container.cgroup)


def _remove_cgroup(path: str) -> None:
    """Remove the default parent, where it is empty."""
    for folder in cgroups.place_of(cgroups.read_layout(), path, "", Resources()).distinct:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
