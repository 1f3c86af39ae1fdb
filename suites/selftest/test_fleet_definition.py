"""harness.fleet.definition and room: machines as data, and what is said before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import BadConfig, MachineError, UsageError
from harness.fleet.definition import find_definition, read_definitions
from harness.fleet.room import require_disk, require_memory
from harness.linux.cgroups import Mode
from harness.model.subject import BUILT_IN, parse_subject

GOOD = """
defaults: {cpus: 2, memory_mb: 512, cgroup: v2}
machines:
  one: {box: seatrial/some, attach: {"mine:grpc:runc": "containerd:grpc:runc@/run/x.sock"}, quick: [oci:crun, "mine:grpc:runc"]}
  two: {box: debian/bookworm64, cpus: 4, cgroup: hybrid}
boxes:
  defaults: {disk_gb: 3, packages: [a, "linux-{arch}"]}
  some: {suite: trixie, more: [b]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "machines.yaml"
    path.write_text(text)
    return path


def test_machines_and_boxes(tmp_path: Path) -> None:
    known = read_definitions(write(tmp_path, GOOD))
    assert list(known) == ["one", "two"]
    one, two = known.values()
    assert one.recipe is not None and two.recipe is None
    assert one.recipe.packages[0] == "a" and one.recipe.packages[2] == "b"
    assert one.recipe.packages[1].startswith("linux-") and "{" not in one.recipe.packages[1]
    mine, known = "mine:grpc:runc=containerd:grpc:runc@/run/x.sock", tuple(row.name for row in BUILT_IN)
    assert one.subjects(quick=False) == (*known, mine)
    assert one.subjects(quick=True) == ("oci:crun", mine)
    assert (two.cpus, two.memory_mb, two.cgroup) == (4, 512, Mode.HYBRID)
    assert two.subjects(quick=True) == two.subjects(quick=False) == known


def test_the_machines_that_come_with_it() -> None:
    known = read_definitions()
    assert {"bookworm", "trixie", "sid"} <= {name for name, row in known.items() if row.recipe}
    assert any(row.recipe is None for row in known.values())
    assert {row.cgroup for row in known.values()} >= {Mode.V2, Mode.HYBRID}
    for row in known.values():
        for words in row.attach.values():
            assert parse_subject(f"mine={words}").socket
        assert set(row.quick) > set(row.attach)
        assert {"minirt:grpc", "containerd:grpc:runc"} <= set(row.quick)


@pytest.mark.parametrize(
    ("old", "new", "where", "reason"),
    [
        ("box: seatrial/some, ", "", "machines.one", "lacks 'box'"),
        ("seatrial/some", "seatrial/other", "machines.one", "lacks 'other'"),
        ("cgroup: hybrid", "cgroup: v3", "machines.two", "v3"),
        ("oci:crun", "oci:cruns", "machines.one", "does not know the subjects oci:cruns of 'quick'"),
        ("cpus: 4", "cpus: many", "machines.two", "many"),
        ("cpus: 4", "cores: 4", "machines.two", "does not know the key 'cores'; known: box, cpus"),
        ("suite: trixie", "release: trixie", "boxes.some", "does not know the key 'release'"),
        ("machines:", "devices:", "machines", "must be a table"),
        ("{cpus: 2", "{cpus: 2}}", "file", "expected"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_place(
    tmp_path: Path, old: str, new: str, where: str, reason: str
) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(BadConfig) as caught:
        read_definitions(path)
    assert caught.value.where == where
    assert reason in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="No such file"):
        read_definitions(tmp_path / "none.yaml")


def test_unknown_machine_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'trixie'.*ssh://user@host"):
        find_definition("trixy", read_definitions())


def test_not_enough_memory_is_said_with_both_numbers(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 2097152 kB\n")
    require_memory(1536, "the machine x", meminfo)
    with pytest.raises(MachineError, match=r"machine x takes 1537 MB .* 2048 MB are.*memory_mb"):
        require_memory(1537, "the machine x", meminfo)


def test_not_enough_disk_is_said_before_a_folder_is_made(tmp_path: Path) -> None:
    require_disk(tmp_path / "a" / "b", 1, "the box x")
    with pytest.raises(MachineError, match=r"the box x takes 1000000\.0 GB of disk, and .* has .* GB free"):
        require_disk(tmp_path / "a" / "b", 10**15, "the box x")
    assert not (tmp_path / "a").exists()
