"""The lifecycle suite passes on minirt below every engine that can have it there, and over the service of podman."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness import paths
from harness.command import HostRunner
from harness.image.build import write_images
from harness.model.record import Outcome, Phase, Run
from harness.model.subject import parse_subject
from harness.session.orders import ORDERS, Orders
from harness.store import RunFolder

MOST_NOT_OFFERED = 20
"""tests of pods, networks and log times that a client's interface does not have"""


@pytest.mark.parametrize(
    "name",
    [
        "containerd:grpc:minirt",
        "containerd:ctr:minirt",
        "docker:sdk:minirt",
        "podman:cli:minirt",
        "podman:sdk:crun",
    ],
)
def test_the_suite_passes(name: str, tmp_path: Path) -> None:
    subject = parse_subject(name)
    run_id = f"life-{os.getpid()}-{subject.slug}"[:32].rstrip("-")
    run = Run(run=run_id, seatrial="0", command=(), seed=1, quick=True, started="", subjects=(name,))
    folder = RunFolder.create(tmp_path, run)
    blobs, orders = tmp_path / "blobs", tmp_path / "orders.json"
    write_images(blobs)
    Orders(run_id, folder.path, blobs, Phase.CHECK, (subject,)).write(orders)
    argv = [sys.executable, "-m", "pytest", "-q", f"--rootdir={paths.suites()}", f"-c{paths.suites() / 'trial.ini'}"]
    done = HostRunner().run(
        [*argv, str(paths.suites() / "lifecycle")], timeout_s=300, env={**os.environ, ORDERS: str(orders)}
    )
    records = list(folder.read_records())
    wrong = {it.test: it.reason for it in records if it.outcome not in (Outcome.PASS, Outcome.NA)}
    assert wrong == {}, done.text
    assert len(records) > 60
    assert len([it for it in records if it.outcome is Outcome.NA]) <= MOST_NOT_OFFERED
