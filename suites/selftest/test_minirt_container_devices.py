"""The device filter of cgroup v2: the program, run here by a small machine of our own, and accepted by the kernel."""

from __future__ import annotations

import os
import struct

import pytest

from harness.linux import syscalls
from harness.minirt.container.device_filter import assemble
from harness.minirt.container.limits import DEFAULT_DEVICES, device_rules
from harness.minirt.container.resources import DeviceRule, Resources


def _ask(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Interpret the program for one access."""
    wanted = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    context = {0: {"b": 1, "c": 2}[kind] | wanted << 16, 4: major, 8: minor}
    registers = [0] * 11
    at = 0
    while True:
        code, names, jump, value = struct.unpack_from("<BBhI", program, at * 8)
        target, source = names & 15, names >> 4
        at += 1
        if code == 0x61:
            registers[target] = context[jump]
        elif code == 0xB7:
            registers[target] = value
        elif code == 0xBC:
            registers[target] = registers[source]
        elif code == 0x54:
            registers[target] &= value
        elif code == 0x74:
            registers[target] >>= value
        elif code == 0x56:
            at += jump if registers[target] != value else 0
        elif code == 0x5E:
            at += jump if registers[target] != registers[source] else 0
        elif code == 0x16:
            at += jump if registers[target] == value else 0
        else:
            assert code == 0x95
            return bool(registers[0])


RULES = device_rules(
    Resources(
        devices=(
            DeviceRule(True, "c", 10, None, "rwm"),
            DeviceRule(False, "c", 10, 5, "w"),
            DeviceRule(True, "b", 8, 0, "r"),
        )
    )
)


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "allowed"),
    [
        ("c", 1, 3, "rw", True),
        ("c", 1, 11, "r", False),
        ("c", 136, 77, "rw", True),
        ("c", 10, 4, "rw", True),
        ("c", 10, 5, "r", True),
        ("c", 10, 5, "rw", False),
        ("b", 8, 0, "r", True),
        ("b", 8, 0, "rw", False),
        ("b", 8, 1, "r", False),
        ("b", 9, 9, "m", True),
        ("c", 8, 0, "r", False),
    ],
)
def test_last_rule_that_speaks_of_it_decides(kind: str, major: int, minor: int, access: str, allowed: bool) -> None:
    assert _ask(assemble(RULES), kind, major, minor, access) is allowed


def test_rule_for_all_ends_the_program() -> None:
    everything = (DeviceRule(False, "a", None, None, "rwm"), DeviceRule(True, "a", None, None, "rwm"))
    assert _ask(assemble(everything), "b", 1, 1, "rwm")
    assert len(assemble(everything)) == 8 * 8


def test_nothing_said_is_refused() -> None:
    assert not _ask(assemble(DEFAULT_DEVICES), "b", 8, 0, "r")


@pytest.mark.parametrize("rules", [RULES, DEFAULT_DEVICES, (), (DeviceRule(True, "a", None, None, "rwm"),)])
def test_kernel_accepts_the_program(rules: tuple[DeviceRule, ...]) -> None:
    program = syscalls.load_device_program(assemble(rules))
    try:
        assert not os.get_inheritable(program)
    finally:
        os.close(program)
