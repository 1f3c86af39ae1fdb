"""linux.intelRdt: groups of a resctrl file system, here a folder that behaves like one (config-linux.md "IntelRdt")."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.minirt.container import rdt
from harness.minirt.container.rdt import IntelRdt, find_resctrl, group_below, parse_rdt
from harness.minirt.container.reader import Reader
from harness.minirt.errors import SpecError, StepError, Unsupported


@pytest.fixture
def resctrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a new folder has files, as the kernel gives them to a group."""
    make, drop = os.mkdir, os.rmdir

    def make_group(path: os.PathLike[str] | str, mode: int = 0o777) -> None:
        path = os.fspath(path)
        make(path, mode)
        for name in ("schemata", "tasks"):
            Path(path, name).touch()
        if not path.rpartition("/")[0].endswith("mon_groups"):
            make(f"{path}/mon_groups", mode)

    def drop_group(path: str) -> None:
        for below, folders, files in os.walk(path, topdown=False):
            for name in files:
                Path(below, name).unlink()
            for name in folders:
                drop(Path(below, name))
        drop(path)

    monkeypatch.setattr(os, "mkdir", make_group)
    monkeypatch.setattr(os, "rmdir", drop_group)
    top = tmp_path / "resctrl"
    os.mkdir(str(top))  # noqa: PTH102
    (top / "info").mkdir()
    (top / "info/last_cmd_status").write_text("ok\n")
    return top


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle


def test_a_group_of_the_containers_own(resctrl: Path) -> None:
    """l3CacheSchema first, memBwSchema second, schemata last; the group goes with the container."""
    content = {"schemata": ["L2:0=f"], "memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=7f0", "enableMonitoring": True}
    group = group_below(str(resctrl), parse_rdt(Reader(content, "linux.intelRdt")), "box")
    assert not (resctrl / "box").exists()
    rdt.create(group)
    assert (resctrl / "box/schemata").read_text() == "L3:0=7f0\nMB:0=20\nL2:0=f\n"
    rdt.assign((group.folder, group.monitor), 77)
    assert (resctrl / "box/tasks").read_text() == (resctrl / "box/mon_groups/box/tasks").read_text() == "77"
    assert group.removed == str(resctrl / "box")
    rdt.remove(group.removed)
    assert not (resctrl / "box").exists()
    rdt.remove(group.removed)


def test_a_group_that_others_share_is_made_and_stays(resctrl: Path) -> None:
    asked = IntelRdt("shared", ("L3:0=7f0;1=1f",), monitoring=True)
    group = group_below(str(resctrl), asked, "one")
    rdt.create(group)
    assert group.removed == str(resctrl / "shared/mon_groups/one")
    # A second container agrees with what is there, in other words, and changes nothing.
    (resctrl / "shared/schemata").write_text("MB:0=100;1=100\nL3:0=7F0;1=01f\n")
    again = IntelRdt("shared", ("L3:1=1f",))
    group = group_below(str(resctrl), again, "two")
    rdt.create(group)
    assert (resctrl / "shared/schemata").read_text().startswith("MB")
    assert group.removed == ""
    with pytest.raises(Unsupported, match="does not have the schema 'L3:0=1'"):
        group_below(str(resctrl), IntelRdt("shared", ("L3:0=1",)), "three")


def test_groups_that_have_to_be_there_or_must_not(resctrl: Path) -> None:
    with pytest.raises(Unsupported, match="does not exist"):
        group_below(str(resctrl), IntelRdt("gone"), "box")
    assert group_below(str(resctrl), IntelRdt("/"), "box").folder == str(resctrl)
    os.mkdir(str(resctrl / "box"))  # noqa: PTH102
    assert group_below(str(resctrl), IntelRdt("box"), "other").folder == str(resctrl / "box")
    with pytest.raises(Unsupported, match="is there already"):
        group_below(str(resctrl), IntelRdt(), "box")


def test_a_group_that_cannot_be_made_leaves_nothing(resctrl: Path) -> None:
    group = group_below(str(resctrl), IntelRdt(schemata=("L3:0=f",), monitoring=True), "box")
    (resctrl / "info/last_cmd_status").write_text("no space for it\n")
    blocked = rdt.Group(group.top, group.folder, group.own, group.schemata, f"{group.folder}/no/such/place")
    with pytest.raises(StepError, match="no space for it"):
        rdt.create(blocked)
    assert not (resctrl / "box").exists()


def test_where_resctrl_is_mounted() -> None:
    lines = "26 25 0:23 / /sys rw - sysfs sysfs rw\n30 26 0:27 / /sys/fs/resctrl rw,relatime - resctrl resctrl rw\n"
    assert find_resctrl(lines) == "/sys/fs/resctrl"
    assert find_resctrl(lines.splitlines()[0]) == ""


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"closID": ".."}, "closID"),
        ({"closID": "a/b"}, "closID"),
        ({"memBwSchema": "L3:0=1"}, "memBwSchema"),
        ({"memBwSchema": "MB:0=1\nL3:0=1"}, "memBwSchema"),
        ({"l3CacheSchema": "L3:0=1\n"}, "l3CacheSchema"),
        ({"schemata": ["L3:0=1", "L2:0=1\n"]}, "schemata[1]"),
        ({"enableMonitoring": 1}, "enableMonitoring"),
    ],
)
def test_what_is_refused(content: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_rdt(Reader(content, "linux.intelRdt"))
    assert caught.value.path == f"linux.intelRdt.{where}"


@pytest.mark.skipif(find_resctrl(Path("/proc/self/mountinfo").read_text()) != "", reason="this machine has resctrl")
def test_without_resctrl_nothing_is_created(bundle: Bundle) -> None:
    """No resctrl is mounted: "the runtime MUST generate an error"."""
    bundle.config["linux"]["intelRdt"] = {"schemata": ["L3:0=f"]}
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert "linux.intelRdt: no resctrl file system is mounted" in done.stderr
    assert bundle.leftovers() == []
