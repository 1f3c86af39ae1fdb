"""events: figures in the form of runc's, when memory ran out, and the end."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.clock import wait_until
from harness.linux.cgroups import Mode, read_layout
from harness.minirt.container.cgroup import Cgroup
from harness.minirt.errors import MinirtError, UsageError
from harness.minirt.oci.events import WatchV2, parse_duration
from harness.minirt.oci.statistics import read_statistics

V1 = read_layout().mode is not Mode.V2
NO_LIMIT = (1 << 64) - 1


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; while :; do sleep 0.1; done")


def started(bundle: Bundle) -> Bundle:
    bundle.create()
    bundle.ok("start", "box")
    bundle.await_output("up")
    return bundle


def shape(value: Any) -> Any:
    """The names in a document and what kind of value each has; what is empty or 0 is as good as absent."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if item}
    if isinstance(value, list):
        return shape(value[0])
    return type(value)


@pytest.mark.skipif(not V1 or shutil.which("runc") is None, reason="needs cgroup v1, and runc to compare with")
def test_figures_have_the_form_of_runcs(bundle: Bundle, tmp_path: Path) -> None:
    """All that runc tells of a container is told, under the same names; runc uses more of the controllers."""
    resources = {"memory": {"limit": 64 << 20}, "pids": {"limit": 30}, "cpu": {"cpus": "0", "quota": 50000}}
    bundle.config["linux"]["resources"] |= resources
    found = {}
    for program in ("runc", "minirt"):
        if program == "runc":
            ours, bundle.program = bundle.program, [str(shutil.which("runc"))]
            bundle.config["ociVersion"] = "1.0.2"
        line = json.loads(started(bundle).ok("events", "--stats", "box"))
        assert (line["type"], line["id"]) == ("stats", "box")
        found[program] = line["data"]
        bundle.ok("delete", "--force", "box")
        bundle.program = ours
        (bundle.folder / "out").unlink()
    for data in found.values():
        # What of it is 0 at the moment differs.
        data["memory"]["raw"] = sorted(data["memory"].pop("raw"))
        data["blkio"] = data["hugetlb"] = {}
        data["cpu"].pop("throttling", None)
        for modes in ("percpu_kernel", "percpu_user", "kernel", "user"):
            data["cpu"]["usage"].pop(modes)
    assert found["minirt"]["memory"].pop("raw") == found["runc"]["memory"].pop("raw")
    assert shape(found["minirt"]) == shape(found["runc"])
    same = ("cpuset", "pids")
    assert [found["minirt"][part] for part in same] == [found["runc"][part] for part in same]
    assert found["minirt"]["memory"]["usage"]["limit"] == 64 << 20


def test_figures_go_up(bundle: Bundle) -> None:
    started(bundle)
    first = json.loads(bundle.ok("events", "--stats", "box"))["data"]
    bundle.ok("exec", "box", "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    second = json.loads(bundle.ok("events", "--stats", "box"))["data"]
    assert 0 < first["cpu"]["usage"]["total"] < second["cpu"]["usage"]["total"]
    assert first["pids"]["current"] >= 1
    assert first["memory"]["usage"]["usage"] > 0


@contextlib.contextmanager
def follow(bundle: Bundle, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The stream of a container's events; ended with the context, whatever went wrong in it."""
    bundle.write()
    argv = [*bundle.program, "--root", str(bundle.states), "events", *words, "box"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as events:
        try:
            yield events
        finally:
            events.kill()


def test_stream_tells_figures_until_the_container_ends(bundle: Bundle) -> None:
    started(bundle)
    with follow(bundle, "--interval", "50ms") as events:
        assert events.stdout is not None
        kinds = [json.loads(events.stdout.readline())["type"] for _ in range(3)]
        assert kinds == ["stats"] * 3
        bundle.ok("kill", "box", "KILL")
        assert events.wait(20) == 0


def test_stream_tells_that_memory_ran_out(bundle: Bundle) -> None:
    """The container's first process lives on: the one that took too much is killed."""
    bundle.config["linux"]["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    eater = "x=0123456789; while [ ${#x} -lt 100000000 ]; do x=$x$x; done"
    bundle.sh(f"echo up; while [ ! -e /tmp/go ]; do sleep 0.05; done; /bin/sh -c '{eater}'; echo ate; exec sleep 1000")
    bundle.config["root"]["readonly"] = False
    started(bundle)
    with follow(bundle, "--interval", "1h") as events:
        assert events.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(events.stdout or ()))
        reader.start()
        # Whether it watches yet shows in what it has open.
        folder = Path(f"/proc/{events.pid}/fd")
        wait_until(
            lambda: any("event" in name or "inotify" in name for name in _open(folder)),
            20,
            "a watch",
        )
        (bundle.rootfs / "tmp/go").touch()
        bundle.await_output("ate")
        wait_until(lambda: len(lines) > 0, 20, "the event")
        bundle.ok("kill", "box", "KILL")
        assert events.wait(20) == 0
        reader.join(20)
    assert {line.strip() for line in lines} == {'{"type":"oom","id":"box"}'}


def _open(folder: Path) -> list[str]:
    """What a process has open just now."""
    names = []
    for fd in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(str(fd.readlink()))
    return names


@pytest.mark.parametrize(
    ("state", "words", "reason"),
    [
        ("absent", (), 'container "box" does not exist'),
        ("stopped", ("--stats",), "container with id box is not running"),
        ("running", ("--interval", "0"), "duration interval must be greater than 0"),
        ("running", ("--interval", "-1s"), "duration interval must be greater than 0"),
        ("running", ("--interval", "soon"), "invalid duration 'soon'"),
    ],
)
def test_what_is_refused(bundle: Bundle, state: str, words: tuple[str, ...], reason: str) -> None:
    if state != "absent":
        started(bundle)
    if state == "stopped":
        bundle.ok("kill", "box", "KILL")
        bundle.await_status("stopped")
    done = bundle.minirt("events", *words, "box")
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("100ms", 0.1), ("1m30s", 90), ("1.5h", 5400), ("0", 0), ("250us", 250e-6), ("-2s", -2), ("7ns", 7e-9)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "1.2.3s", "5 s", "ms5"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


V2_FILES = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 2\nthrottled_usec 9\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
    "memory.current": "4096\n",
    "memory.max": "8192\n",
    "memory.peak": "6000\n",
    "memory.swap.current": "100\n",
    "memory.swap.max": "1000\n",
    "memory.stat": "anon 1000\nfile 2000\nsock -3\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5\n",
    "cgroup.procs": "1\n2\n",
}


def v2_folder(folder: Path, files: dict[str, str]) -> Cgroup:
    for name, text in files.items():
        (folder / name).write_text(text)
    return Cgroup(2, {"": str(folder)})


def test_figures_of_v2(tmp_path: Path) -> None:
    found = read_statistics(v2_folder(tmp_path, V2_FILES))
    assert found["cpu"] == {
        "usage": {"total": 5_000_000, "kernel": 2_000_000, "user": 3_000_000},
        "throttling": {"periods": 7, "throttledPeriods": 2, "throttledTime": 9000},
        "psi": {
            "some": {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 77},
            "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 5},
        },
    }
    assert found["memory"] == {
        "cache": 2000,
        "usage": {"limit": 8192, "usage": 4096, "max": 6000, "failcnt": 0},
        # As v1 counts: memory and swap together.
        "swap": {"limit": 9192, "usage": 4196, "failcnt": 0},
        "raw": {"anon": 1000, "file": 2000, "sock": 0},
        "psi": {"some": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 1}},
    }
    assert found["pids"] == {"current": 3}
    assert found["blkio"] == {
        "ioServiceBytesRecursive": [
            {"major": 8, "op": "Read", "value": 10},
            {"major": 8, "op": "Write", "value": 20},
            {"major": 8, "minor": 16, "op": "Read", "value": 5},
        ],
        "ioServicedRecursive": [{"major": 8, "op": "Read", "value": 1}, {"major": 8, "op": "Write", "value": 2}],
    }
    assert (found["intel_rdt"], found["network_interfaces"]) == ({}, None)
    assert found["cpuset"]["cpu_exclusive"] == 0


def test_figures_of_v2_without_controllers(tmp_path: Path) -> None:
    """Only what the core of cgroups gives; no limit is the largest number."""
    few = {name: V2_FILES[name] for name in ("cpu.stat", "cgroup.procs")}
    found = read_statistics(v2_folder(tmp_path, few))
    assert (found["memory"], found["blkio"], found["pids"]) == ({}, {}, {"current": 2})
    more = {"memory.stat": "file 1\n", "memory.current": "5\n", "memory.max": "max\n", "memory.swap.max": "max\n"}
    memory = read_statistics(v2_folder(tmp_path, more))["memory"]
    assert (memory["usage"]["limit"], memory["swap"]["limit"]) == (NO_LIMIT, NO_LIMIT)


def test_figures_of_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_statistics(Cgroup(2, {"": str(tmp_path / "none")}))


def test_v2_counts_who_was_killed(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 1\noom_kill 1\noom_group_kill 0\n")
    watch = WatchV2(str(tmp_path))
    try:
        assert watch.happened() == 0
        events.write_text("low 5\noom 1\noom_kill 1\n")
        assert watch.happened() == 0
        events.write_text("low 5\noom 3\noom_kill 3\n")
        assert watch.happened() == 2
        events.unlink()
        assert watch.happened() == 0
    finally:
        watch.close()
    with pytest.raises(MinirtError, match="memory controller missing"):
        WatchV2(str(tmp_path))
