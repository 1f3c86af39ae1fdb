"""A run that is killed: its keepers clean up, and where they were killed too, `seatrial clean` does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena_traces import fresh_run, processes, traces

from harness.arena import Arena, leftovers
from harness.clock import wait_until
from harness.keeper import runs

pytestmark = pytest.mark.xdist_group("leftovers")
"""``seatrial clean``, tried elsewhere, would remove what these tests leave on purpose"""

VICTIM = """
import sys, time
from harness.arena import Arena
arena = Arena.open(sys.argv[1], "one")
(arena.root / "mnt").mkdir()
(arena.root / "upper").mkdir()
(arena.root / "work").mkdir()
arena.run(["mount", "-t", "overlay", "overlay", "-o",
           f"lowerdir=/etc,upperdir={arena.root}/upper,workdir={arena.root}/work", f"{arena.root}/mnt"],
          timeout_s=10).check()
arena.run(["rm", f"{arena.root}/mnt/passwd"], timeout_s=10).check()
arena.run(["sh", "-c", "trap '' TERM; setsid sleep 1000 & echo"], timeout_s=10).check()
with open("/dev/null", "w") as log:
    arena.start(["sleep", "1000"], stdout_fd=log.fileno(), stderr_fd=log.fileno())
print(arena.keeper_pid, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def victim() -> Iterator[tuple[str, subprocess.Popen[str], int]]:
    """A harness with an open arena: run id, process, keeper."""
    run = fresh_run()
    with subprocess.Popen([sys.executable, "-c", VICTIM, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        keeper = int(process.stdout.readline())
        yield run, process, keeper
        process.kill()
    wait_until(lambda: traces(run) == [], 20, "the run to be gone")
    assert Path("/etc/passwd").exists()


def test_a_killed_harness_leaves_nothing(victim: tuple[str, subprocess.Popen[str], int]) -> None:
    run, process, keeper = victim
    assert len(processes(run)) >= 4
    process.kill()
    leftovers.await_and_remove(run)
    assert traces(run) == []
    wait_until(lambda: not Path(f"/proc/{keeper}").exists(), 10, "the keeper to end")


def test_a_killed_harness_and_keeper_leave_what_clean_removes(victim: tuple[str, subprocess.Popen[str], int]) -> None:
    run, process, keeper = victim
    assert run not in {left.run for left in leftovers.find_leftovers()}
    os.kill(keeper, signal.SIGSTOP)
    process.kill()
    process.wait()
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not runs.is_alive(run), 10, "the keeper to die")
    (left,) = [left for left in leftovers.find_leftovers() if left.run == run]
    assert left.arenas == ("one",)
    assert left.pids
    assert left.folders
    assert left.cgroups
    assert run in str(left)
    assert "processes" in str(left)
    leftovers.remove(left)
    assert traces(run) == []
    leftovers.remove(left)


def test_a_terminated_keeper_cleans_up(victim: tuple[str, subprocess.Popen[str], int]) -> None:
    run, process, keeper = victim
    os.kill(keeper, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{keeper}/exe").exists(), 20, "the keeper to end")
    assert [trace for trace in traces(run) if trace != f"process {process.pid}"] == []


def test_a_live_run_is_not_touched() -> None:
    run = fresh_run()
    with Arena.open(run, "one") as arena:
        assert run not in {left.run for left in leftovers.find_leftovers()}
        leftovers.remove(leftovers.Leftover(run, ("one",), (str(arena.root),), (), ()))
        assert arena.run(["true"], timeout_s=10).status == 0
        assert arena.root.is_dir()
    assert traces(run) == []


def test_nothing_to_wait_for() -> None:
    leftovers.await_and_remove(fresh_run())
