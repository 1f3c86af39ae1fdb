"""The scratch folder of a run goes with it, by itself or by hand."""

from __future__ import annotations

import signal
import sys

import pytest
from arena_traces import fresh_run, traces

from harness.arena import Arena
from harness.arena.leftovers import find_leftovers, remove
from harness.arena.scratch import open_scratch
from harness.clock import wait_until
from harness.command import HostRunner
from harness.keeper import runs

pytestmark = pytest.mark.xdist_group("leftovers")

VICTIM = """
import sys, time
from harness.arena.scratch import open_scratch
with open_scratch(sys.argv[1]) as folder:
    (folder / "image").write_text("x")
    print("there", flush=True)
    time.sleep(1000)
"""


def test_it_goes_with_the_run() -> None:
    run = fresh_run()
    with open_scratch(run) as folder:
        (folder / "images").mkdir()
        (folder / "images" / "one").write_text("x")
        assert runs.is_alive(run)
        assert run not in [leftover.run for leftover in find_leftovers()]
    assert not folder.exists()
    assert not traces(run)


def test_between_two_arenas_the_run_is_alive() -> None:
    """Else whoever cleans up then would take the folder away from the run."""
    run = fresh_run()
    with open_scratch(run) as folder:
        for name in ("one", "two"):
            Arena.open(run, name).close()
            assert runs.is_alive(run)
            assert run not in [leftover.run for leftover in find_leftovers()]
        assert folder.is_dir()
    assert not traces(run)


def test_a_killed_run_leaves_it_to_clean(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = fresh_run()
    log = tmp_path_factory.mktemp("victim") / "log"
    with log.open("wb") as out:
        victim = HostRunner().start([sys.executable, "-c", VICTIM, run], stdout_fd=out.fileno(), stderr_fd=out.fileno())
    wait_until(lambda: "there" in log.read_text(), 20, "the victim's scratch folder")
    victim.signal(signal.SIGKILL)
    victim.wait(10)
    (left,) = [leftover for leftover in find_leftovers() if leftover.run == run]
    remove(left)
    assert not traces(run)
