"""The end of everything that a daemon and its supervisor hold."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from harness.linux.cgroups import read_layout as read_linux_layout
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.resources import Resources
from harness.minirt.cri.lock import end_holder
from harness.minirt.cri.options import Options
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import Folder
from harness.minirt.errors import Unavailable
from harness.minirt.network.cni import Networks
from harness.minirt.supervisor import pod as namespaces
from harness.minirt.supervisor.client import Supervisor

_DAEMON_END_S = 30.0


def shut_down(options: Options) -> None:
    """End the daemon, remove every container and every pod with its network and namespaces, end the supervisor.

    Pulled images stay. May be done again, and works where daemon or supervisor were killed.
    """
    root, state = Path(options.root), Path(options.state)
    end_holder(state, _DAEMON_END_S)
    supervisor = Supervisor(options.supervisor_socket)
    networks = Networks(
        Path(options.cni_conf_dir), [Path(folder) for folder in options.cni_bin_dir.split(":") if folder]
    )
    try:
        with contextlib.suppress(Unavailable):
            supervisor.call("kill all")
        _end_orphans(root)
        pods = Pods(root, state, supervisor, networks, read_linux_layout(), options.cgroup_parent)
        pods.detach_all()
        with contextlib.suppress(Unavailable):
            supervisor.call("shut down")
    finally:
        supervisor.close()
    for id in os.listdir(state / "pods"):
        namespaces.remove(str(state / "pods" / id))
    for folder in (root, state):
        shutil.rmtree(folder / "containers", ignore_errors=True)
    pods.discard_all()
    _remove_cgroup(options.cgroup_parent)


def _end_orphans(root: Path) -> None:
    """Kill what a supervisor that was killed has left, by its cgroup."""
    layout = cgroups.read_layout()
    for _, row in Folder(root / "containers", "container.json").read():
        if row is not None and row.get("cgroup"):
            place = cgroups.find(layout, row["cgroup"])
            place.kill_all()
            place.remove()


def _remove_cgroup(path: str) -> None:
    """Remove the default parent, where it is empty."""
    for folder in cgroups.place_of(cgroups.read_layout(), path, "", Resources()).distinct:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
