"""Rules for devices of a cgroup in use: v1 by the difference of two lists, v2 by one program in the place of another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.linux import syscalls
from harness.minirt.container import device_filter
from harness.minirt.container.cgroup import read_layout
from harness.minirt.container.device_list import changes, effect, parse_list, restored
from harness.minirt.container.limits import DEFAULT_DEVICES, device_rules
from harness.minirt.container.resources import DeviceRule, Resources

NOTHING = DeviceRule(False, "a", None, None, "rwm")
EVERYTHING = DeviceRule(True, "a", None, None, "rwm")
DISK = DeviceRule(True, "b", 8, 0, "r")


def test_effect_of_rules_is_what_the_kernel_makes_of_them() -> None:
    """A refusal takes letters from the entry with the same numbers, and from no other."""
    rules = [EVERYTHING, NOTHING, DeviceRule(True, "c", 1, 3, "rwm"), DeviceRule(False, "c", 1, None, "r")]
    assert effect(rules) == (False, {("c", "1:3"): {"r", "w", "m"}})
    assert effect([*rules, DeviceRule(False, "c", 1, 3, "wm")]) == (False, {("c", "1:3"): {"r"}})
    assert effect([*rules, EVERYTHING, DeviceRule(False, "b", 8, 0, "w")]) == (True, {("b", "8:0"): {"w"}})


def test_only_the_difference_is_written_and_allowances_come_first() -> None:
    now = "c *:* m\nc 1:3 rwm\nb 8:0 r\n"
    rules = [NOTHING, DeviceRule(True, "c", None, None, "m"), DeviceRule(True, "c", 1, 3, "rw"), DISK]
    assert changes(now, rules) == [("devices.deny", "c 1:3 m")]
    more = [*rules, DeviceRule(True, "b", 8, 0, "w"), DeviceRule(True, "c", 10, None, "rw")]
    assert changes(now, more) == [
        ("devices.allow", "b 8:0 w"),
        ("devices.allow", "c 10:* rw"),
        ("devices.deny", "c 1:3 m"),
    ]
    assert changes(now, [NOTHING]) == [
        ("devices.deny", "c *:* m"),
        ("devices.deny", "c 1:3 rwm"),
        ("devices.deny", "b 8:0 r"),
    ]


def test_to_and_from_everything() -> None:
    assert changes("c 1:3 rwm\n", [EVERYTHING]) == [("devices.allow", "a")]
    assert changes("a *:* rwm\n", [NOTHING, DISK]) == [("devices.deny", "a"), ("devices.allow", "b 8:0 r")]
    assert changes("a *:* rwm\n", [EVERYTHING, DeviceRule(False, "b", 8, 0, "w")]) == [
        ("devices.allow", "a"),
        ("devices.deny", "b 8:0 w"),
    ]


def test_a_list_can_be_had_back() -> None:
    before = "c 1:3 rwm\nb 8:0 r\n"
    assert restored(before, "c 1:3 rw\nc 9:9 rwm\n") == [
        ("devices.allow", "c 1:3 rwm"),
        ("devices.allow", "b 8:0 r"),
        ("devices.deny", "c 9:9 rwm"),
    ]
    assert restored("a *:* rwm\n", before) == [("devices.allow", "a")]
    assert parse_list(before) == (False, {("c", "1:3"): {"r", "w", "m"}, ("b", "8:0"): {"r"}})


@pytest.fixture
def unified() -> Iterator[Path]:
    """A v2 cgroup of our own; programs can be put on one in a mixed layout too."""
    layout = read_layout()
    if layout.unified is None:
        pytest.skip("no cgroup v2 is mounted")
    folder = Path(layout.unified.folder) / f"seatrial-test-devices-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def _attached(folder: Path) -> list[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return syscalls.attached_device_programs(fd)
    finally:
        os.close(fd)


def test_a_v2_program_takes_the_place_of_all_others(unified: Path) -> None:
    """One that was left beside would go on refusing, for all have to agree."""
    device_filter.attach(str(unified), Resources())
    device_filter.attach(str(unified), Resources(devices=(DISK,)))
    before = _attached(unified)
    assert len(before) == 2
    device_filter.replace(str(unified), Resources(devices=(EVERYTHING,)))
    after = _attached(unified)
    assert len(after) == 1
    assert not set(after) & set(before)


def test_a_v2_program_can_be_the_first(unified: Path) -> None:
    device_filter.replace(str(unified), Resources())
    assert len(_attached(unified)) == 1


def test_rules_begin_with_nothing_and_end_with_the_defaults() -> None:
    everything, exceptions = effect(device_rules(Resources(devices=(EVERYTHING,))))
    assert everything
    assert exceptions == {}
    assert len(effect(device_rules(Resources()))[1]) == len(DEFAULT_DEVICES)
