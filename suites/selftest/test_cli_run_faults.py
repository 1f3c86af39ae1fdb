"""Bad input and faults of ``seatrial run``: a clear word, the right exit status, nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from arena_traces import files_of_podman, processes

from harness.clock import wait_until
from harness.command import HostProcess, HostRunner
from harness.linux.cgroups import read_layout

SEATRIAL = [sys.executable, "-m", "harness.cli"]


def traces() -> set[str]:
    """What runs could leave on this machine: cgroups, folders, mounts. (Processes would keep the cgroups.)"""
    layout = read_layout()
    roots = {*layout.controllers.values(), *([layout.unified] if layout.unified else [])}
    folders = [*(root / "seatrial" for root in roots), Path("/run/seatrial"), Path("/var/lib/seatrial")]
    found = {str(child) for folder in folders if folder.is_dir() for child in folder.iterdir() if child.is_dir()}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return found | {line for line in mounts if "/seatrial/" in line}


@contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[HostProcess]:
    """A run in the background, its output in ``out`` and ``err``."""
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = HostRunner().start(
            [*SEATRIAL, "run", "--output", str(tmp_path / "results"), *words],
            stdout_fd=out.fileno(),
            stderr_fd=err.fileno(),
        )
        try:
            yield process
        finally:
            process.stop()


def records_of(tmp_path: Path) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for path in (tmp_path / "results").glob("*/records.jsonl")
        # Without a line that is being written.
        for line in path.read_text().rpartition("\n")[0].splitlines()
    ]


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "results").iterdir()
    return folder


def mine(tmp_path: Path) -> set[str]:
    """The traces of the run whose results are in `tmp_path`; other runs may be under way."""
    return {trace for trace in traces() if run_folder(tmp_path).name in trace}


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["containerd:grcp:runc"], 2, "did you mean 'containerd:grpc:runc'?"),
        (["mine=oci:here"], 2, "does not define a subject"),
        (["oci:runc", "oci:runc"], 2, "named twice"),
        (["--suite", "nope", "oci:runc"], 2, "there is no suite 'nope'; known: "),
        (["--attach", "/run/x.sock"], 2, "--attach needs the subject"),
        (["--attach", "/dev/null", "containerd:grpc:runc"], 3, "/dev/null is not a socket"),
        (["--config", "/no/such.toml"], 2, "/no/such.toml: file: there is none"),
        (["--jobs", "0"], 2, "--jobs"),
    ],
)
def test_bad_words_are_refused_before_anything_starts(
    words: list[str], status: int, message: str, tmp_path: Path
) -> None:
    done = HostRunner().run([*SEATRIAL, "run", "--output", str(tmp_path / "results"), *words], timeout_s=60)
    assert (done.status, message in done.stderr.decode()) == (status, True), done.stderr.decode()
    assert not (tmp_path / "results").exists()


def test_malformed_config(tmp_path: Path) -> None:
    config = tmp_path / "seatrial.toml"
    config.write_text("[subject.mine]\nruntime = 3\n")
    done = HostRunner().run([*SEATRIAL, "run", "--config", str(config)], timeout_s=60)
    assert done.status == 2
    assert f"{config}: subject.mine.runtime: is missing" in done.stderr.decode()


def test_without_root(tmp_path: Path) -> None:
    done = HostRunner().run(
        ["setpriv", "--reuid=65534", "--clear-groups", *SEATRIAL, "run", "--output", "/tmp/x", "oci:runc"], timeout_s=60
    )
    assert done.status == 3, done.stderr.decode()
    assert "sudo seatrial run" in done.stderr.decode()


def test_an_engine_that_dies_shows_its_log(tmp_path: Path) -> None:
    config = tmp_path / "seatrial.toml"
    config.write_text('[engine.containerd]\nargs = "--no-such-flag"\n')
    done = HostRunner().run(
        [
            *SEATRIAL,
            "run",
            "--quick",
            "--output",
            str(tmp_path / "results"),
            "--config",
            str(config),
            "containerd:grpc:runc",
        ],
        timeout_s=180,
    )
    assert done.status == 1
    reasons = [record["reason"] for record in records_of(tmp_path) if record["outcome"] == "error"]
    assert reasons
    assert all("the end of its log" in reason and "no-such-flag" in reason for reason in reasons), reasons[0]
    assert mine(tmp_path) == set()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine.sock"))
        engine.listen()
        port = taken.getsockname()[1]
        done = HostRunner().run(
            [
                *SEATRIAL,
                *("run", "--quick", "--output", str(tmp_path / "results"), "--registry-port", str(port)),
                *("--attach", str(tmp_path / "engine.sock"), "containerd:grpc:runc"),
            ],
            timeout_s=120,
        )
    assert done.status == 1
    reasons = {record["reason"] for record in records_of(tmp_path)}
    assert any(f"127.0.0.1:{port}" in reason and "in use" in reason for reason in reasons), reasons


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("phase", ["check", "measure"])
def test_an_interrupted_run_takes_everything_down(number: int, status: int, phase: str, tmp_path: Path) -> None:
    """In the middle of a step: everything is taken down, and the partial report is written."""
    with running(tmp_path, "oci:runc", "minirt:grpc") as process:
        wait_until(lambda: [record for record in records_of(tmp_path) if record["phase"] == phase], 120, "a record")
        process.signal(number)
        assert process.wait(60) == status, (tmp_path / "err").read_text()
    folder = run_folder(tmp_path)
    assert json.loads((folder / "run.json").read_text())["interrupted"] is True
    assert "interrupted" in (folder / "report.md").read_text()
    assert {"report.html", "junit.xml", "samples.csv"} <= {path.name for path in folder.iterdir()}
    assert mine(tmp_path) == set()


def test_two_runs_at_once_both_work(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        running(tmp_path / "one", "--quick", "oci:runc") as one,
        running(tmp_path / "two", "--quick", "oci:runc") as two,
    ):
        assert one.wait(180) == 0, (tmp_path / "one" / "err").read_text()
        assert two.wait(180) == 0, (tmp_path / "two" / "err").read_text()


@pytest.mark.xdist_group("leftovers")
@pytest.mark.parametrize("subject", ["oci:runc", "podman:cli:crun"])
def test_clean_removes_what_a_killed_run_left(subject: str, tmp_path: Path) -> None:
    """SIGKILL of the harness and of all that it started (as in a power loss): `seatrial clean` leaves nothing of it."""
    before = files_of_podman()
    with running(tmp_path, "--jobs", "1", subject) as process:
        wait_until(lambda: records_of(tmp_path), 120, "a record")
        run = run_folder(tmp_path).name
        # Every process of the run stops before the first one dies, so that none can tidy up after another.
        for pid in _stopped_family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
    assert {trace for trace in traces() if run in trace}, "the killed run left nothing: there was nothing to clean"
    done = HostRunner().run([*SEATRIAL, "clean"], timeout_s=60)
    assert done.status == 0, done.stderr.decode()
    assert run in done.text
    assert {trace for trace in traces() if run in trace} == set()
    assert processes(run) == []
    assert files_of_podman() == before
    again = HostRunner().run([*SEATRIAL, "clean"], timeout_s=60)
    assert run not in again.text


def _stopped_family(pid: int) -> list[int]:
    """A process and all below it, each stopped before its children are looked for; who has ended by then is left out."""
    try:
        os.kill(pid, signal.SIGSTOP)
        tasks = [(task / "children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(one for children in tasks for child in children for one in _stopped_family(int(child)))]


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """Results on a file system of 64 KiB, in a mount namespace of the run's own."""
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k small {small} && "
        f"{sys.executable} -m harness.cli run --output {small} oci:runc; status=$?; "
        f"cp -r {small} {tmp_path}/kept; exit $status"
    )
    done = HostRunner().run(["unshare", "--mount", "sh", "-c", script], timeout_s=240)
    assert done.status == 1
    assert "No space left" in done.stderr.decode() or "full" in done.stderr.decode(), done.stderr.decode()
    lines = [line for path in (tmp_path / "kept").glob("*/records.jsonl") for line in path.read_text().splitlines()]
    assert len([json.loads(line) for line in lines[:-1]]) > 10
    assert not [trace for trace in traces() if any(path.name in trace for path in (tmp_path / "kept").iterdir())]
