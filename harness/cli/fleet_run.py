"""``seatrial run --machine``: a trial on other machines, and one report of all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli.choice import choose_subjects, choose_suites, config_path, read_config
from harness.cli.screen import wants_colour
from harness.cli.signals import Terminated, deaf, sigterm_as_interrupt
from harness.cli.teller import Teller
from harness.cli.trial_run import Request
from harness.errors import Interrupted, MachineError, UsageError
from harness.fleet.campaign import Order, find_targets, hold_campaign
from harness.fleet.lines import Recall
from harness.model.record import Outcome
from harness.store import read_folder, write_file


def perform_fleet_run(machines: Sequence[str], request: Request, ssh_config: Path | None = None) -> int:
    """Hold the trial on each of `machines`, print the merged report, and return the exit status.

    Raises `UsageError` before anything was started, `Interrupted` once everything is taken down and reported.
    """
    import os

    targets = find_targets(machines)
    if os.geteuid() != 0 and any(target.definition or target.name == "local" for target in targets):
        raise MachineError("machines of our own need root here", "run it again as root: sudo seatrial run")
    path = config_path(request.config)
    config = read_config(path)
    order = Order(
        command=request.command,
        options=_options(request),
        subjects=request.subjects or config.subjects,
        pytest_options=request.pytest_options,
        config=path,
        output=request.output,
        quick=request.quick,
        seed=request.seed if request.seed is not None else int(time.time()),
        ssh_config=ssh_config,
    )
    # A machine would refuse them too, but only once it is up.
    choose_suites(request.suites, config)
    for target in targets:
        try:
            choose_subjects(order.subjects, dataclasses.replace(config, table=target.table(config.table)))
        except UsageError as error:
            raise UsageError(f"{target.name}: {error}") from None
    with sigterm_as_interrupt(), Teller() as teller:
        folders, interrupt = hold_campaign(targets, order, teller, Recall())
    with deaf():
        _report(folders, request.output)
    if interrupt is not None:
        raise Interrupted(Terminated.number(interrupt))
    runs = [read_folder(folder) for folder in folders]
    broken = any(
        "fault" in data.run.machine or {record.outcome for record in data.records} & {Outcome.FAIL, Outcome.ERROR}
        for data in runs
    )
    return 1 if broken else 0


def _options(request: Request) -> tuple[str, ...]:
    return (
        *(("--quick",) if request.quick else ()),
        *((f"--turns={request.turns}",) if request.turns else ()),
        *(f"--suite={suite}" for suite in request.suites),
        *((f"--attach={request.attach}",) if request.attach else ()),
        *((f"--jobs={request.jobs}",) if request.jobs else ()),
        *((f"--registry-port={request.registry_port}",) if request.registry_port is not None else ()),
    )


def _report(folders: Sequence[Path], output: Path) -> None:
    """The merged report, shown and, of several machines, kept as a page beside their runs. Raises `StoreError`."""
    from harness.report.formats import render

    colour = wants_colour()
    click.echo(render("table", folders, colour=colour), color=colour)
    click.echo()
    for folder in folders:
        click.echo(f"  {folder}")
    if len(folders) > 1:
        page = output / f"{min(folder.name for folder in folders)}-machines.html"
        click.echo(f"  {write_file(page, render('html', folders))}")
    click.echo(f"once more: seatrial report {' '.join(map(str, folders))}")
