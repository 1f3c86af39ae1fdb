"""The suite ``cri`` passes on the reference runtime and on minirt, and each of its tests finds the breach it names."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

from harness import paths
from harness.command import HostRunner
from harness.image.build import write_images
from harness.model.record import Outcome, Phase, Record, Run
from harness.model.subject import parse_subject
from harness.session.orders import ORDERS, Orders
from harness.store import RunFolder

KNOWN: frozenset[str] = frozenset()
"""Tests that minirt does not pass yet."""
SHORTCOMINGS = frozenset(
    {
        "test_execsync_caps_its_output",  # by a few bytes more than its own client takes
        "test_execsync_that_takes_too_long_is_killed",  # but not what it started in the background
        "test_list_of_images_is_filtered",
        "test_log_path_cannot_leave_its_directory[../../escaped.log]",
        "test_network_of_a_pod",  # has no timestamp
        "test_stop_of_a_removed_pod",
    }
)
"""What containerd 1.6 does not keep to; a later one may."""


def sail(name: str, tmp_path: Path, *options: str) -> list[Record]:
    """The records of the suite on one subject, in a pytest of its own."""
    subject = parse_subject(name)
    run_id = f"cri-{os.getpid()}-{subject.slug}-{len(options)}"[:32].rstrip("-")
    run = Run(run=run_id, seatrial="0", command=(), seed=1, quick=True, started="", subjects=(subject.name,))
    folder = RunFolder.create(tmp_path, run)
    blobs, orders = tmp_path / "blobs", tmp_path / "orders.json"
    write_images(blobs)
    Orders(run.run, folder.path, blobs, Phase.CHECK, (subject,)).write(orders)
    argv = [sys.executable, "-m", "pytest", "-q", f"--rootdir={paths.suites()}", f"-c{paths.suites() / 'trial.ini'}"]
    environment = {**os.environ, ORDERS: str(orders), "PYTHONPATH": str(Path(__file__).parent)}
    done = HostRunner().run([*argv, *options, str(paths.suites() / "cri")], timeout_s=600, env=environment)
    records = list(folder.read_records())
    assert done.status in (0, 1), done.text
    assert records, done.text
    return records


def named(records: list[Record], *outcomes: Outcome) -> dict[str, str]:
    return {
        record.test.replace(f"[{record.subject}", "[").replace("[-", "[").replace("[]", ""): record.reason
        for record in records
        if record.outcome in outcomes
    }


def test_every_test_names_a_breach() -> None:
    unproven = [
        node.name
        for path in sorted((paths.suites() / "cri").glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not any("breach" in ast.unparse(mark) for mark in node.decorator_list)
    ]
    assert unproven == []


@pytest.mark.parametrize(("subject", "known"), [("minirt:grpc", KNOWN), ("containerd:grpc:runc", SHORTCOMINGS)])
def test_the_suite_passes(subject: str, known: frozenset[str], tmp_path: Path) -> None:
    records = sail(subject, tmp_path)
    wrong = named(records, Outcome.FAIL, Outcome.ERROR, Outcome.SKIP)
    assert {test: reason for test, reason in wrong.items() if test not in known} == {}


def test_every_test_finds_its_breach(tmp_path: Path) -> None:
    """A test that passes on a runtime that is broken in the very thing that it is about proves nothing."""
    records = sail("minirt:grpc", tmp_path, "-p", "cri_saboteur")
    found = named(records, Outcome.FAIL)
    # What a machine or runtime does not offer cannot be broken there.
    missed = {
        test: reason for test, reason in named(records, *(set(Outcome) - {Outcome.NA})).items() if test not in found
    }
    assert {test: reason for test, reason in missed.items() if test not in KNOWN} == {}
