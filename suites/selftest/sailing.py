"""A conformance suite on one subject, in a pytest of its own: for the proofs of the suites ``cri`` and ``oci``."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

from harness import paths
from harness.command import HostRunner
from harness.image.build import write_images
from harness.model.record import Outcome, Phase, Record, Run
from harness.model.subject import parse_subject
from harness.session.deviations import bare_name
from harness.session.orders import ORDERS, Orders
from harness.store import RunFolder


def sail(suite: str, name: str, tmp_path: Path, *options: str) -> list[Record]:
    """The records of a suite on one subject; `options` go to pytest."""
    subject = parse_subject(name)
    run_id = f"{suite}-{os.getpid()}-{subject.slug}-{len(options)}"[:32].rstrip("-")
    run = Run(run=run_id, seatrial="0", command=(), seed=1, quick=True, started="", subjects=(subject.name,))
    folder = RunFolder.create(tmp_path, run)
    blobs, orders = tmp_path / "blobs", tmp_path / "orders.json"
    write_images(blobs)
    Orders(run.run, folder.path, blobs, Phase.CHECK, (subject,)).write(orders)
    argv = [sys.executable, "-m", "pytest", "-q", f"--rootdir={paths.suites()}", f"-c{paths.suites() / 'trial.ini'}"]
    environment = {**os.environ, ORDERS: str(orders), "PYTHONPATH": str(Path(__file__).parent)}
    done = HostRunner().run([*argv, *options, str(paths.suites() / suite)], timeout_s=1200, env=environment)
    records = list(folder.read_records())
    assert done.status in (0, 1), done.text
    assert records, done.text
    return records


def named(records: list[Record], *outcomes: Outcome) -> dict[str, str]:
    """The reasons of the tests that ended so, by their names."""
    return {bare_name(record.test, record.subject): record.reason for record in records if record.outcome in outcomes}


def unproven(suite: str) -> list[str]:
    """The tests of a suite that name no breach."""
    return [
        node.name
        for path in sorted((paths.suites() / suite).glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not any("breach" in ast.unparse(mark) for mark in node.decorator_list)
    ]
