"""The trampoline executes what it is told, tells what it cannot, and stands only where it is let through."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.clock import wait_until
from harness.minirt.container.trampoline import CALLS_TO_WAIT, Jump, image, passes

JUMP = """
import os, sys
from harness.minirt.container.trampoline import Jump, execute, open_trampoline
report = os.dup2(int(sys.argv[1]), int(sys.argv[2]))
jump = Jump(sys.argv[3], ("called", "one", "two words"), ("COLOUR=blue",), sys.argv[4:] != [])
execute(open_trampoline(report, jump), report)
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


def test_a_trampoline_takes_many_arguments() -> None:
    report = os.dup(1)
    for count in (253, 254, 255, 256, 5000):
        code = JUMP.replace('("called", "one", "two words")', f'("sh", "-c", "echo $#", *["x"] * {count})')
        argv = [sys.executable, "-c", code, str(report), "10", "/bin/sh"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, pass_fds=(report,))
        assert done.stdout == f"{count - 1}\n", done.stderr
    os.close(report)
    with pytest.raises(ValueError, match="null byte"):
        image("x86_64", 3, Jump("/bin/sh", ("sh", "a\0b"), (), wait=False))


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
    code = "import os, sys; from harness.minirt.container.trampoline import Jump, open_trampoline as o; fd = o(9, Jump('/x', (), (), False)); os.pwrite(fd, b'x', 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "PermissionError" in done.stderr


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "gate"))
        listener.listen(8)
        yield listener


@contextlib.contextmanager
def started(argv: list[str], listener: socket.socket, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, pass_fds=(listener.fileno(),), **options) as process:
        try:
            yield process
        finally:
            process.kill()


def connected(tmp_path: Path) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.settimeout(30)
    end.connect(str(tmp_path / "gate"))
    return end


@pytest.mark.parametrize("number", [10, 255, 700])
def test_a_trampoline_waits_until_somebody_says_start(listener: socket.socket, tmp_path: Path, number: int) -> None:
    argv = [sys.executable, "-c", JUMP, str(listener.fileno()), str(number), "/bin/echo", "wait"]
    with started(argv, listener) as process:
        wait_until(lambda: "memfd" in str(Path(f"/proc/{process.pid}/exe").readlink()), 20, "the trampoline")
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 200
        assert b"echo" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()  # it does not run yet
        assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""
        for _ in range(3):
            connected(tmp_path).close()  # who says nothing has not started it
        with connected(tmp_path) as end:
            assert process.poll() is None
            end.send(b"start")
            assert end.recv(10) == b""  # closed by the exec
        assert process.communicate(timeout=20)[0] == "one two words\n"


def test_a_trampoline_that_waited_tells_its_starter(listener: socket.socket, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", JUMP, str(listener.fileno()), "20", "/etc/passwd", "wait"]
    with started(argv, listener) as process, connected(tmp_path) as end:
        end.send(b"start")
        assert int.from_bytes(end.recv(10), sys.byteorder, signed=True) == -13
        assert process.wait(20) == 127


EMULATOR = shutil.which("qemu-aarch64")


def emulated(tmp_path: Path, report: int, wait: bool) -> list[str]:
    program = tmp_path / "trampoline"
    program.write_bytes(image("aarch64", report, Jump("/not/there", ("word",), ("COLOUR=blue",), wait)))
    program.chmod(0o755)
    return [EMULATOR or "", str(program)]


@pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is not on PATH: seatrial setup qemu-user")
def test_the_other_architecture(tmp_path: Path) -> None:
    """Under emulation: the error of an exec arrives."""
    reading, writing = os.pipe()
    status = subprocess.run(emulated(tmp_path, writing, wait=False), pass_fds=(writing,), timeout=60).returncode
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    assert (status, int.from_bytes(told, "little", signed=True)) == (127, -2)


@pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is not on PATH: seatrial setup qemu-user")
def test_the_other_architecture_executes(tmp_path: Path) -> None:
    """Under emulation, which hands the exec to the machine: path, arguments and environment are where they should be."""
    program = tmp_path / "trampoline"
    report = os.dup(1)
    jump = Jump("/bin/sh", ("sh", "-c", 'echo "$COLOUR $1"', "-", "one"), ("COLOUR=blue",), wait=False)
    program.write_bytes(image("aarch64", report, jump))
    program.chmod(0o755)
    argv = [EMULATOR or "", str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, pass_fds=(report,), timeout=60)
    os.close(report)
    assert done.stdout == "blue one\n"


@pytest.mark.skipif(EMULATOR is None, reason="qemu-aarch64 is not on PATH: seatrial setup qemu-user")
def test_the_other_architecture_waits(listener: socket.socket, tmp_path: Path) -> None:
    """Under emulation: it passes by who hangs up, and tells who says start of the error."""
    with started(emulated(tmp_path, listener.fileno(), wait=True), listener) as process:
        connected(tmp_path).close()
        with connected(tmp_path) as end:
            end.send(b"start")
            assert int.from_bytes(end.recv(10), "little", signed=True) == -2
        assert process.wait(60) == 127


ALLOW, DENY = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


@pytest.mark.parametrize(
    ("profile", "lets"),
    [
        ({"defaultAction": ALLOW}, True),
        ({"defaultAction": DENY}, False),
        ({"defaultAction": ALLOW, "syscalls": [{"names": ["execveat"], "action": DENY}]}, False),
        ({"defaultAction": ALLOW, "syscalls": [{"names": ["fcntl"], "action": DENY, "args": [{}]}]}, False),
        (
            {"defaultAction": DENY, "syscalls": [{"names": ["execve", "execveat", "fcntl", "write"], "action": ALLOW}]},
            True,
        ),
        (
            {
                "defaultAction": DENY,
                "syscalls": [{"names": ["execve", "execveat", "fcntl", "write"], "action": ALLOW, "args": [{}]}],
            },
            False,
        ),
        ({"defaultAction": DENY, "syscalls": [{"names": ["execve", "fcntl"], "action": ALLOW}]}, False),
    ],
)
def test_whether_a_profile_lets_a_trampoline_work(profile: dict[str, Any], lets: bool) -> None:
    assert passes(profile) is lets


def test_to_wait_takes_more_calls() -> None:
    profile = {
        "defaultAction": DENY,
        "syscalls": [{"names": ["execve", "execveat", "fcntl", "write"], "action": ALLOW}],
    }
    assert passes(profile)
    assert not passes(profile, CALLS_TO_WAIT)
    profile["syscalls"].append({"names": ["accept4", "read", "close"], "action": ALLOW})
    assert passes(profile, CALLS_TO_WAIT)
