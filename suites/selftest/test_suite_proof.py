"""Every test of the lifecycle suite fails when the runtime is broken in the way that the test is about."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from saboteur import SABOTAGE, SABOTAGES

from harness import paths
from harness.command import HostRunner
from harness.image.build import write_images
from harness.model.record import Outcome, Phase, Run
from harness.model.subject import parse_subject
from harness.session.orders import ORDERS, Orders
from harness.store import RunFolder

MEASURED = {"test_voyage"}
"""proven by the wrapped runtimes of `test_suite_broken_runtime`"""


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "blobs"
    write_images(folder)
    return folder


@pytest.mark.parametrize("name", SABOTAGES)
def test_the_suite_catches(name: str, blobs: Path, tmp_path: Path) -> None:
    sabotage = SABOTAGES[name]
    subject = parse_subject("minirt:grpc")
    run = Run(
        run=f"proof-{os.getpid()}-{list(SABOTAGES).index(name)}",
        seatrial="0",
        command=(),
        seed=1,
        quick=True,
        started="",
        subjects=(subject.name,),
    )
    folder = RunFolder.create(tmp_path, run)
    orders = tmp_path / "orders.json"
    Orders(run.run, folder.path, blobs, Phase.CHECK, (subject,)).write(orders)
    suite = paths.suites() / "lifecycle"
    wanted = " or ".join(sabotage.caught_by)
    argv = [sys.executable, "-m", "pytest", "-q", f"--rootdir={paths.suites()}", f"-c{paths.suites() / 'trial.ini'}"]
    environment = {
        **os.environ,
        ORDERS: str(orders),
        SABOTAGE: name,
        "PYTHONPATH": str(Path(__file__).parent),
    }
    done = HostRunner().run([*argv, "-p", "saboteur", "-k", wanted, str(suite)], timeout_s=180, env=environment)
    failed = {record.test.partition("[")[0] for record in folder.read_records() if record.outcome is Outcome.FAIL}
    assert failed >= set(sabotage.caught_by), done.text


def test_every_test_of_the_suite_is_proven() -> None:
    proven = {test for sabotage in SABOTAGES.values() for test in sabotage.caught_by} | MEASURED
    written = {
        node.name
        for path in (paths.suites() / "lifecycle").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert written == proven
