"""The trampoline executes what it is told, tells what it cannot, and stands only where it is let through."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.minirt.container.trampoline import image, passes

JUMP = """
import os, sys
from harness.minirt.container.trampoline import jump, open_trampoline
report = os.dup2(int(sys.argv[1]), int(sys.argv[2]))
jump(open_trampoline(), report, sys.argv[3], ["called", "one", "two words"], {"COLOUR": "blue"})
"""


def jump(program: str, number: int, **options: Any) -> tuple[subprocess.CompletedProcess[str], bytes]:
    """What a program that is executed by a trampoline says, and what comes out of the descriptor `number` of its process."""
    reading, writing = os.pipe()
    argv = [sys.executable, "-c", JUMP, str(writing), str(number), program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, pass_fds=(writing,), **options)
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    return done, told


@pytest.mark.parametrize("number", [4, 10, 253, 254, 255, 256, 509, 510, 900])
def test_a_trampoline_executes_a_program(number: int, tmp_path: Path) -> None:
    """With its arguments and environment; the descriptor is closed by that, whatever its number is."""
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\necho "$0|$1|$2|$COLOUR|$(ls /proc/self/fd | grep -c "^{number}$")"\n')
    script.chmod(0o755)
    done, told = jump(str(script), number)
    assert (done.stdout.strip().split("|")[1:], done.stderr) == (["one", "two words", "blue", "0"], "")
    assert told == b""


@pytest.mark.parametrize(("program", "error"), [("/not/there", 2), ("/etc/passwd", 13), ("/proc/self/mem", 13)])
def test_a_trampoline_tells_why_it_cannot(program: str, error: int) -> None:
    done, told = jump(program, 300)
    assert int.from_bytes(told, sys.byteorder, signed=True) == -error
    assert done.returncode == 127


def test_what_a_program_calls_itself_is_not_the_runtime(tmp_path: Path) -> None:
    """A script for the interpreter /proc/self/exe gets the trampoline as that, which fails with what it is given."""
    script = tmp_path / "script"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    done, _ = jump(str(script), 10)
    assert done.returncode in (127, -11)
    assert "Python" not in done.stderr


def test_a_trampoline_is_sealed() -> None:
    """Nobody can write to it, however it is got hold of."""
    code = "import os, sys; from harness.minirt.container.trampoline import open_trampoline as o; fd = o(); os.pwrite(fd, b'x', 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "PermissionError" in done.stderr


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="qemu-user-static is not installed")
def test_the_other_architecture(tmp_path: Path) -> None:
    """Under emulation: the error of an exec arrives."""
    program = tmp_path / "trampoline"
    program.write_bytes(image("aarch64"))
    program.chmod(0o755)
    reading, writing = os.pipe()
    high, low = divmod(writing, 255)
    qemu = ["qemu-aarch64-static", "-0", os.fsdecode(bytes((low + 1, high + 1))), str(program), "/not/there", "word"]
    status = subprocess.run(qemu, pass_fds=(writing,), timeout=60).returncode
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    assert (status, int.from_bytes(told, "little", signed=True)) == (127, -2)


ALLOW, DENY = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


@pytest.mark.parametrize(
    ("profile", "lets"),
    [
        ({"defaultAction": ALLOW}, True),
        ({"defaultAction": DENY}, False),
        ({"defaultAction": ALLOW, "syscalls": [{"names": ["execveat"], "action": DENY}]}, False),
        ({"defaultAction": ALLOW, "syscalls": [{"names": ["fcntl"], "action": DENY, "args": [{}]}]}, False),
        ({"defaultAction": DENY, "syscalls": [{"names": ["execve", "execveat", "fcntl"], "action": ALLOW}]}, True),
        (
            {
                "defaultAction": DENY,
                "syscalls": [{"names": ["execve", "execveat", "fcntl"], "action": ALLOW, "args": [{}]}],
            },
            False,
        ),
        ({"defaultAction": DENY, "syscalls": [{"names": ["execve", "fcntl"], "action": ALLOW}]}, False),
    ],
)
def test_whether_a_profile_lets_a_trampoline_work(profile: dict[str, Any], lets: bool) -> None:
    assert passes(profile) is lets
