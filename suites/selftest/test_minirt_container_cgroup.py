"""What a cgroup must be like for a container to be put into it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import CGROUP, Bundle, open_bundle

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.resources import Resources

RUNC = pytest.param(
    "runc", False, marks=pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")
)
"""which would wait for ever below a cgroup that is frozen"""


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle


@pytest.fixture
def place() -> Iterator[cgroups.Cgroup]:
    """Where the bundle's container would be; what a test puts there is taken away again."""
    place = cgroups.place_of(cgroups.read_layout(), f"{CGROUP}/box", "box", Resources())
    yield place
    place.kill_all()
    place.remove()


@pytest.mark.parametrize(("runtime", "above"), [("minirt", True), ("minirt", False), RUNC])
def test_a_frozen_cgroup_is_refused(bundle: Bundle, place: cgroups.Cgroup, runtime: str, above: bool) -> None:
    layout = cgroups.read_layout()
    upper = cgroups.place_of(layout, CGROUP, "", Resources())
    frozen = upper if above else place
    cgroups.create(layout, frozen)
    try:
        frozen.freeze()
        done = bundle.sh("echo ran").runtime(runtime, "run", "box")
        assert (done.returncode, done.stdout) == (1, "")
        assert "container's cgroup unexpectedly frozen" in done.stderr
        if above:
            assert not place.exists()
        assert frozen.is_frozen()
    finally:
        frozen.thaw()


def test_a_cgroup_with_processes_is_refused_and_they_live(bundle: Bundle, place: cgroups.Cgroup) -> None:
    cgroups.create(cgroups.read_layout(), place)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for folder in place.distinct:
            Path(folder, "cgroup.procs").write_text(str(other.pid))
        done = bundle.sh("echo ran").minirt("run", "box")
        assert (done.returncode, done.stdout) == (1, "")
        assert "container's cgroup is not empty: 1 process(es) found" in done.stderr
        assert other.poll() is None
        assert other.stdin is not None
        other.stdin.write(b"\n")
    assert place.exists()


@pytest.mark.skipif(cgroups.read_layout().version == 2, reason="cgroup v2 has them")
def test_files_of_the_unified_hierarchy_are_refused_on_v1(bundle: Bundle, place: cgroups.Cgroup) -> None:
    bundle.config["linux"]["resources"] = {"unified": {"memory.max": "100000000"}}
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot use unified on cgroup v1" in done.stderr
    assert not place.exists()
