"""The cgroup hierarchies of the machine under trial."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from harness.linux.cgroups import Layout, Mode, layout_of

NEEDED = ("cpu", "memory", "pids")


@pytest.fixture
def layout(host: Host) -> Layout:
    """Where the controllers are, seen from a process of the machine."""
    text = host.file("/proc/self/mountinfo").content_string
    unified = "/sys/fs/cgroup"
    controllers = host.file(f"{unified}/cgroup.controllers")
    return layout_of(
        text, host.file("/proc/self/cgroup").content_string, controllers.content_string if controllers.exists else ""
    )


def test_mode_is_one_that_can_be_measured(layout: Layout) -> None:
    assert layout.mode in set(Mode)


@pytest.mark.parametrize("name", NEEDED)
def test_controller(layout: Layout, name: str) -> None:
    assert name in layout.controllers, f"{name} is not mounted: no limits, or no cost, can be read"


def test_cpu_time_is_counted(layout: Layout) -> None:
    """v2 counts in every cgroup; v1 in the controller cpuacct, which is a mount of its own."""
    assert layout.mode is Mode.V2 or "cpuacct" in layout.controllers


def test_processes_can_be_frozen(layout: Layout) -> None:
    assert layout.mode is Mode.V2 or "freezer" in layout.controllers
