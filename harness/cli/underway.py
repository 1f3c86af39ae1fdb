"""What every run has, whatever it does: a folder, a scratch folder with the test images, a way out, and a report."""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import datetime
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from harness import __version__, paths
from harness.arena.leftovers import await_and_remove
from harness.arena.scratch import open_scratch
from harness.cli.screen import wants_colour
from harness.cli.signals import Terminated, deaf, sigterm_as_interrupt
from harness.cli.stream import Stream
from harness.engine import versions
from harness.errors import Interrupted, MachineError
from harness.image.build import write_images
from harness.machine.facts import read_facts
from harness.model.record import Run
from harness.model.subject import Subject
from harness.store import RunFolder


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A run that has begun."""

    folder: RunFolder
    scratch: Path
    blobs: Path
    """the test images"""


def new_run(command: Sequence[str], subjects: Sequence[Subject], quick: bool, seed: int | None) -> Run:
    """A run that begins now. `seed`: from the clock where it is None. Raises `MachineError` without root."""
    if os.geteuid() != 0:
        again = f"sudo seatrial {click.get_current_context().info_name}"
        raise MachineError("containers need root here", f"run it again as root: {again}")
    started = datetime.datetime.now(datetime.UTC)
    return Run(
        run=f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        seatrial=__version__,
        command=tuple(command),
        seed=seed if seed is not None else int(started.timestamp()),
        quick=quick,
        started=started.isoformat(timespec="seconds"),
        machine=read_facts().to_json(),
        versions={name: version for subject in subjects for name, version in versions(subject).items()},
        subjects=tuple(subject.name for subject in subjects),
    )


@contextlib.contextmanager
def under_way(output: Path, run: Run, *, stream: bool = False) -> Iterator[UnderWay]:
    """Keep `run` in a folder of its own below `output`; at the end nothing else is left of it, and the report is out.

    With `stream` it is written to stdout as it goes, and there is no report.

    After Ctrl-C or SIGTERM too: then `Interrupted` is raised once the partial report is written. Raises `StoreError`.
    """
    folder = RunFolder.create(output, run)
    # minirt is measured as it is installed, with its byte code; an editable checkout may not have any yet.
    for package in ("minirt", "linux"):
        compileall.compile_dir(paths.PACKAGE / package, quiet=2)
    caught: KeyboardInterrupt | None = None
    with contextlib.ExitStack() as reader:
        if stream:
            reader.enter_context(Stream(folder))
        try:
            with sigterm_as_interrupt(), open_scratch(run.run) as scratch:
                blobs = scratch / "images"
                folder.update(dataclasses.replace(run, images=write_images(blobs)))
                yield UnderWay(folder, scratch, blobs)
        except KeyboardInterrupt as interrupt:
            caught = interrupt
        with deaf():
            await_and_remove(run.run)
            ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            folder.update(dataclasses.replace(folder.read().run, ended=ended, interrupted=caught is not None))
            if not stream:
                _report(folder)
    if caught is not None:
        raise Interrupted(Terminated.number(caught))


def _report(folder: RunFolder) -> None:
    from harness.report.formats import render, write_all

    written = write_all(folder)
    colour = wants_colour()
    click.echo(render("table", [folder.path], colour=colour), color=colour)
    click.echo()
    for path in (*written, folder.path / "records.jsonl"):
        click.echo(f"  {path}")
