"""Layouts and files of cgroup v1, v2 and the mix of both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.linux.cgroups import (
    UNIFIED,
    Mode,
    cgroup_of,
    is_frozen,
    is_populated,
    layout_of,
    parse_flat,
    parse_limit,
    parse_mounts,
    parse_paths,
    parse_pids,
    path_of,
    read_cpu_ns,
    read_layout,
    read_memory_stat,
    read_paths,
    read_pids,
)

CAPTURED = Path(__file__).parent / "captured"
HYBRID = (CAPTURED / "v1/mountinfo").read_text()
PURE = (CAPTURED / "v2/mountinfo").read_text()


def hybrid():
    return layout_of(HYBRID, (CAPTURED / "v1/cgroup").read_text(), "hugetlb\n")


def pure():
    return layout_of(PURE, (CAPTURED / "v2/cgroup").read_text(), (CAPTURED / "v2/cgroup.controllers").read_text())


def test_hybrid_layout() -> None:
    layout = hybrid()
    assert layout.mode is Mode.HYBRID
    assert layout.controllers["memory"] == Path("/sys/fs/cgroup/memory")
    assert layout.controllers["hugetlb"] == layout.unified == Path("/sys/fs/cgroup/unified")
    assert layout.own["memory"] == "/seatrial/r/s/engine"
    assert layout.own["pids"] == "/"
    assert "hugetlb" not in layout.v1_controllers
    assert "name=systemd" not in layout.controllers
    assert not layout.is_v2("memory")
    assert path_of(layout, "cpuacct", "/a/b") == Path("/sys/fs/cgroup/cpuacct/a/b")


def test_v1_layout_without_a_v2_tree() -> None:
    text = "".join(line + "\n" for line in HYBRID.splitlines() if " - cgroup2 " not in line)
    layout = layout_of(text, (CAPTURED / "v1/cgroup").read_text())
    assert (layout.mode, layout.unified) == (Mode.V1, None)
    with pytest.raises(ValueError, match="'net_cls' is not mounted"):
        path_of(layout, "net_cls", "/a")


def test_v2_layout_serves_every_controller() -> None:
    layout = pure()
    assert layout.mode is Mode.V2
    assert layout.v1_controllers == ()
    assert layout.own[UNIFIED] == "/system.slice/docker.service"
    for controller in ("memory", "cpuacct", "freezer"):
        assert layout.is_v2(controller)
        assert path_of(layout, controller, "/a") == Path("/sys/fs/cgroup/a")


def test_controllers_mounted_together() -> None:
    text = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct,xattr\n"
    layout = layout_of(text, "2:cpu,cpuacct:/user.slice\n")
    assert layout.controllers == dict.fromkeys(("cpu", "cpuacct"), Path("/sys/fs/cgroup/cpu,cpuacct"))
    assert layout.own == {"cpu": "/user.slice", "cpuacct": "/user.slice"}


def test_a_part_of_a_hierarchy_mounted() -> None:
    """As in a container with a private view: the mount shows one cgroup and what is below it."""
    text = "33 31 0:30 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    layout = layout_of(text, "2:memory:/docker/1f\n")
    assert path_of(layout, "memory", "/docker/1f/child") == Path("/sys/fs/cgroup/memory/child")
    with pytest.raises(ValueError, match="is no part"):
        path_of(layout, "memory", "/docker/2e")


def test_the_mount_that_shows_all_wins_and_a_hidden_one_is_left_out() -> None:
    part = "40 31 0:30 /a /mnt/part rw - cgroup cgroup rw,memory\n"
    whole = "41 31 0:30 / /mnt/my\\040cgroups rw - cgroup cgroup rw,memory\n"
    assert layout_of(part + whole, "").controllers == {"memory": Path("/mnt/my cgroups")}
    hidden = "42 31 0:50 / /mnt/my\\040cgroups rw - tmpfs tmpfs rw\n"
    assert layout_of(part + whole + hidden, "").controllers == {"memory": Path("/mnt/part")}


@pytest.mark.parametrize("text", ["nonsense\n", "1 2 3\n", "31 23 0:28 / /sys rw,relatime tmpfs tmpfs rw\n"])
def test_what_is_no_mountinfo(text: str) -> None:
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        parse_mounts(text)


def test_no_hierarchy_at_all() -> None:
    with pytest.raises(ValueError, match="no cgroup hierarchy"):
        layout_of("22 27 0:21 / /proc rw - proc proc rw\n", "")


def test_paths() -> None:
    text = "4:memory:/a:b\n3:cpu,cpuacct:/c (deleted)\n1:name=systemd:/s\n0::/u\n"
    assert parse_paths(text) == {"memory": "/a:b", "cpu": "/c", "cpuacct": "/c", "name=systemd": "/s", "": "/u"}
    for broken in ("4:memory\n", "x\n", "4:memory:relative\n"):
        with pytest.raises(ValueError, match="not a line of /proc/PID/cgroup"):
            parse_paths(broken)


def test_flat_keyed_files() -> None:
    assert parse_flat((CAPTURED / "v2/cpu.stat").read_text())["usage_usec"] == 13806793
    assert parse_flat((CAPTURED / "v1/memory.stat").read_text())["total_rss"] > 0
    assert parse_flat("") == {}
    for broken in ("anon\n", "anon x\n", "\n"):
        with pytest.raises(ValueError, match=r"."):
            parse_flat(broken)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("-1\n", None), ("9223372036854771712\n", None), ("0\n", 0), ("33554432\n", 33554432)],
)
def test_limits(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_pids_of_another_namespace_are_left_out() -> None:
    assert parse_pids("12\n0\n7\n") == [12, 7]


def fake(tmp_path: Path, mountinfo: str, own: str, controllers: str = "") -> Path:
    """A folder with the kernel's text, in which /sys/fs/cgroup stands for a folder below `tmp_path`."""
    proc = tmp_path / "proc/7"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(mountinfo.replace("/sys/fs/cgroup", str(tmp_path / "cgroup")))
    (proc / "cgroup").write_text(own)
    (proc / "root").symlink_to("/")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cgroup.controllers").write_text(controllers)
    return tmp_path / "proc"


def test_reading_v2(tmp_path: Path) -> None:
    layout = read_layout(7, fake(tmp_path, PURE, "0::/\n", "cpu memory"))
    assert set(layout.controllers) == {"cpu", "memory"}
    folder = path_of(layout, "memory", "/a")
    (folder / "b").mkdir(parents=True)
    for name in ("cpu.stat", "memory.stat", "cgroup.events"):
        (folder / name).write_text((CAPTURED / "v2" / name).read_text())
    (folder / "cgroup.procs").write_text("")
    assert not is_populated(layout, "memory", "/a")
    (folder / "b/cgroup.procs").write_text("30\n4\n")
    assert read_cpu_ns(layout, "/a") == 13806793000
    assert read_memory_stat(layout, "/a")["slab_unreclaimable"] == 170976
    assert read_pids(folder) == [4, 30]
    assert is_populated(layout, "memory", "/a")
    assert not is_frozen(layout, "/a")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert is_frozen(layout, "/a")


def test_reading_v1(tmp_path: Path) -> None:
    layout = read_layout(7, fake(tmp_path, HYBRID, (CAPTURED / "v1/cgroup").read_text()))
    for controller, name, text in (
        ("cpuacct", "cpuacct.usage", "123456789\n"),
        ("memory", "memory.stat", (CAPTURED / "v1/memory.stat").read_text()),
        ("freezer", "freezer.state", "FREEZING\n"),
    ):
        folder = path_of(layout, controller, "/a")
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
    assert read_cpu_ns(layout, "/a") == 123456789
    assert read_memory_stat(layout, "/a")["total_shmem"] > 0
    assert not is_frozen(layout, "/a"), "on its way, not there"
    (path_of(layout, "freezer", "/a") / "freezer.state").write_text("FROZEN\n")
    assert is_frozen(layout, "/a")


def test_processes_of_a_folder_that_is_gone(tmp_path: Path) -> None:
    assert read_pids(tmp_path / "gone") == []


def test_this_machine() -> None:
    layout = read_layout()
    own = cgroup_of(layout, "cpuacct", os.getpid())
    assert own == read_paths()[UNIFIED if layout.is_v2("cpuacct") else "cpuacct"]
    assert os.getpid() in read_pids(path_of(layout, "cpuacct", own))
