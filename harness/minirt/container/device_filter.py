"""Device rules on cgroup v2: there is no file for them, but a BPF program that the kernel asks at each access and mknod.

The last rule that speaks of an access decides, as on v1; what no rule speaks of is refused.
"""

from __future__ import annotations

import os
import struct

from harness.linux import syscalls
from harness.minirt.container.limits import device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.resources import DeviceRule, Resources

_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_LOAD_WORD, _MOVE, _COPY, _AND, _SHIFT_RIGHT = 0x61, 0xB7, 0xBC, 0x54, 0x74
_UNLESS_EQUAL, _UNLESS_EQUAL_REGISTER, _IF_EQUAL, _EXIT = 0x56, 0x5E, 0x16, 0x95
_RESULT, _CONTEXT, _TYPE, _WANTED, _MAJOR, _MINOR = range(6)


def _instruction(code: int, target: int = 0, source: int = 0, jump: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", code, target | source << 4, jump, value & 0xFFFFFFFF)


def assemble(rules: tuple[DeviceRule, ...]) -> bytes:
    """The program for rules in the order of their config; 1 allows, 0 refuses."""
    code = [
        _instruction(_LOAD_WORD, _TYPE, _CONTEXT, 0),
        _instruction(_COPY, _WANTED, _TYPE),
        _instruction(_AND, _TYPE, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, _WANTED, value=16),
        _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in reversed(rules):
        block = _block(rule)
        code += block
        if len(block) == 2:  # speaks of everything: whatever follows could never be reached, which the kernel refuses
            break
    else:
        code += [_instruction(_MOVE, _RESULT, value=0), _instruction(_EXIT)]
    return b"".join(code)


def _block(rule: DeviceRule) -> list[bytes]:
    """Decide if the rule speaks of the access, else jump past the block's end."""
    tests: list[tuple[int, int, int, int]] = []
    prelude_at = -1
    mask = 0
    for letter in rule.access:
        mask |= _ACCESS[letter]
    if rule.kind in _TYPES:
        tests.append((_UNLESS_EQUAL, _TYPE, 0, _TYPES[rule.kind]))
    if mask != 7:
        prelude_at = len(tests)
        # An allowance has to cover all that is wanted, a refusal any of it.
        tests.append((_UNLESS_EQUAL_REGISTER, _CONTEXT, _WANTED, 0) if rule.allow else (_IF_EQUAL, _CONTEXT, 0, 0))
    if rule.major is not None:
        tests.append((_UNLESS_EQUAL, _MAJOR, 0, rule.major))
    if rule.minor is not None:
        tests.append((_UNLESS_EQUAL, _MINOR, 0, rule.minor))
    size = len(tests) + 2 + (2 if prelude_at >= 0 else 0)
    block: list[bytes] = []
    for index, (code, target, source, value) in enumerate(tests):
        if index == prelude_at:
            block += [_instruction(_COPY, _CONTEXT, _WANTED), _instruction(_AND, _CONTEXT, value=mask)]
        block.append(_instruction(code, target, source, size - len(block) - 1, value))
    return [*block, _instruction(_MOVE, _RESULT, value=int(rule.allow)), _instruction(_EXIT)]


def attach(folder: str, resources: Resources) -> None:
    """Put the rules on a v2 cgroup; they stay as long as it does. Raises `OSError`."""
    program = syscalls.load_device_program(assemble(device_rules(resources)))
    try:
        cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.attach_device_program(cgroup, program)
        finally:
            os.close(cgroup)
    finally:
        os.close(program)


def replace(folder: str, resources: Resources) -> None:
    """Put other rules in the place of all that a v2 cgroup has; at no moment is there none. Raises `OSError`."""
    program = syscalls.load_device_program(assemble(device_rules(resources)))
    old: list[int] = []
    try:
        cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            old += [syscalls.open_bpf_program(number) for number in syscalls.attached_device_programs(cgroup)]
            # Of several all have to agree, so the new one alone gives nothing that was not had, until the others are gone.
            syscalls.attach_device_program(cgroup, program, instead_of=old[0] if old else -1)
            for other in old[1:]:
                syscalls.detach_device_program(cgroup, other)
        finally:
            os.close(cgroup)
    finally:
        for fd in (program, *old):
            os.close(fd)
