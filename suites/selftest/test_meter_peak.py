"""The peak of a command is its own: what another process held, or this one, is not in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.meter.peak import parse_peak

MB = 1_000_000


def weigh(folder: Path, *command: str) -> tuple[int, int]:
    """Status and peak of a command."""
    file = folder / "peak"
    done = subprocess.run([sys.executable, "-m", "harness.meter.peak", str(file), *command], timeout=60)
    return done.returncode, int(file.read_text())


def test_a_small_command_has_a_small_peak(tmp_path: Path) -> None:
    """Smaller than the Python that runs it."""
    status, peak = weigh(tmp_path, "/bin/true")
    assert status == 0
    assert 100_000 < peak < 6 * MB


def test_what_was_held_for_a_moment_counts(tmp_path: Path) -> None:
    status, peak = weigh(tmp_path, sys.executable, "-c", "held = b'x' * 80_000_000; del held")
    assert status == 0
    assert 80 * MB < peak < 120 * MB


def test_children_are_not_counted(tmp_path: Path) -> None:
    big = f"{sys.executable} -c 'held = b\"x\" * 80_000_000'"
    status, peak = weigh(tmp_path, "/bin/sh", "-c", f"{big}; true")
    assert status == 0
    assert peak < 8 * MB


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -TERM $$", 143), ("trap 'exit 3' USR1; kill -USR1 $$; sleep 1", 3)]
)
def test_a_command_ends_as_it_would(tmp_path: Path, script: str, status: int) -> None:
    """Signals reach it."""
    assert weigh(tmp_path, "/bin/sh", "-c", script)[0] == status


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert weigh(tmp_path, "/not/there") == (127, 0)


def test_parse() -> None:
    assert parse_peak("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n") == 1234 * 1024
    assert parse_peak("Name:\tkthreadd\n") == 0
