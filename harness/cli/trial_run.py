"""One run from beginning to end: subjects, folder, two pytest sessions, reports, table, exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.cli.choice import choose_subjects, choose_suites, read_config
from harness.cli.progress import Progress
from harness.cli.underway import new_run, under_way
from harness.engine import availability
from harness.errors import SeatrialError
from harness.model.record import Outcome, Phase
from harness.session.orders import ORDERS, Orders

BLOCKS = 8
"""measured turns of each subject, besides the one that warms it up"""
QUICK_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    subjects: tuple[str, ...] = ()
    quick: bool = False
    turns: int | None = None
    """measured ones of each subject"""
    suites: tuple[str, ...] = ()
    output: Path = Path("results")
    attach: Path | None = None
    config: Path | None = None
    seed: int | None = None
    jobs: int | None = None
    registry_port: int | None = None
    stream: bool = False
    """the run goes to stdout as JSON lines, in place of a report"""
    pytest_options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def perform_run(request: Request) -> int:
    """Run, report, and return the exit status.

    Raises `UsageError`, `MachineError` or `StoreError` before anything was started, `Interrupted` after the partial
    report was written.
    """
    config = read_config(request.config)
    subjects = choose_subjects(request.subjects or config.subjects, config, request.attach)
    suites = choose_suites(request.suites, config)
    run = new_run(request.command, subjects, request.quick, request.seed)
    pytest_failed = 0
    with under_way(request.output, run, stream=request.stream) as voyage:
        for phase in Phase:
            orders = Orders(
                run=run.run,
                folder=voyage.folder.path,
                blobs=voyage.blobs,
                phase=phase,
                subjects=subjects,
                blocks=1 + (request.turns or (QUICK_BLOCKS if request.quick else BLOCKS)),
                seed=run.seed,
                port=request.registry_port,
            )
            pytest_failed |= _session(orders, suites, request, voyage.scratch / f"{phase}.json")
    outcomes = {record.outcome for record in voyage.folder.read_records()}
    return 1 if pytest_failed or outcomes & {Outcome.FAIL, Outcome.ERROR} else 0


def _session(orders: Orders, suites: Sequence[Path], request: Request, path: Path) -> int:
    """One pytest session; 1 where pytest itself went wrong (not: where tests failed)."""
    import pytest

    orders.write(path)
    checking = orders.phase is Phase.CHECK
    able = [subject for subject in orders.subjects if not availability(subject)]
    jobs = min(request.jobs or 1 + (os.cpu_count() or 1), len(able)) if checking else 0
    options = [
        *(str(suite) for suite in suites),
        f"--rootdir={paths.suites()}",
        f"--config-file={paths.suites() / 'trial.ini'}",
        *(["-n", str(jobs), "--dist=loadgroup"] if jobs > 1 else ["-n", "0"]),
        *request.pytest_options,
    ]
    progress = Progress(orders.phase, len(orders.subjects))
    os.environ[ORDERS] = str(path)
    try:
        with progress, contextlib.ExitStack() as stack:
            if request.stream and request.pytest_options:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not request.pytest_options:
                # Not "-p no:terminal": without its reporter pytest has no words for a failed assertion either.
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            status = pytest.main(options, plugins=[progress])
    finally:
        del os.environ[ORDERS]
    if progress.interrupt is not None:
        raise progress.interrupt
    if progress.unloadable:
        raise SeatrialError("a suite cannot be loaded: " + "\n".join(progress.unloadable))
    return int(status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED))
