"""One run from beginning to end: subjects, folder, two pytest sessions, reports, table, exit status."""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import datetime
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from harness import __version__, paths
from harness.arena.leftovers import await_and_remove
from harness.arena.scratch import open_scratch
from harness.cli.progress import Progress
from harness.cli.screen import wants_colour
from harness.engine import availability, versions
from harness.errors import BadConfig, Interrupted, MachineError, SeatrialError, UsageError
from harness.image.build import write_images
from harness.machine.facts import read_facts
from harness.model.config import Config, parse_config
from harness.model.record import Outcome, Phase, Run
from harness.model.subject import Subject, parse_subject
from harness.session.orders import ORDERS, Orders
from harness.store import RunFolder

BLOCKS = 8
"""measured turns of each subject, besides the one that warms it up"""
QUICK_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    subjects: tuple[str, ...] = ()
    quick: bool = False
    suites: tuple[str, ...] = ()
    output: Path = Path("results")
    attach: Path | None = None
    config: Path | None = None
    seed: int | None = None
    jobs: int | None = None
    registry_port: int | None = None
    pytest_options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


class Terminated(KeyboardInterrupt):
    """SIGTERM, on the same way out as Ctrl-C."""


def perform_run(request: Request) -> int:
    """Run, report, and return the exit status.

    Raises `UsageError`, `MachineError` or `StoreError` before anything was started, `Interrupted` after the partial
    report was written.
    """
    config = _config(request)
    subjects = _subjects(request, config)
    suites = _suites(request, config)
    if os.geteuid() != 0:
        raise MachineError("containers need root here", "run it again as root: sudo seatrial run ...")
    started = datetime.datetime.now(datetime.UTC)
    run_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run = Run(
        run=run_id,
        seatrial=__version__,
        command=request.command,
        seed=request.seed if request.seed is not None else int(started.timestamp()),
        quick=request.quick,
        started=started.isoformat(timespec="seconds"),
        machine=read_facts().to_json(),
        versions={name: version for subject in subjects for name, version in versions(subject).items()},
        subjects=tuple(subject.name for subject in subjects),
    )
    folder = RunFolder.create(request.output, run)
    # minirt is measured as it is installed, with its byte code; an editable checkout may not have any yet.
    compileall.compile_dir(paths.PACKAGE, quiet=2)
    caught: KeyboardInterrupt | None = None
    pytest_failed = 0
    try:
        with _sigterm_as_interrupt(), open_scratch(run_id) as scratch:
            blobs = scratch / "images"
            run = dataclasses.replace(run, images=write_images(blobs))
            folder.update(run)
            for phase in Phase:
                orders = Orders(
                    run=run_id,
                    folder=folder.path,
                    blobs=blobs,
                    phase=phase,
                    subjects=subjects,
                    blocks=1 + (QUICK_BLOCKS if request.quick else BLOCKS),
                    seed=run.seed,
                    port=request.registry_port,
                )
                pytest_failed |= _session(orders, suites, request, scratch / f"{phase}.json")
    except KeyboardInterrupt as interrupt:
        caught = interrupt
    with _deaf():
        await_and_remove(run_id)
        ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        folder.update(dataclasses.replace(folder.read().run, ended=ended, interrupted=caught is not None))
        outcomes = _report(folder)
    if caught is not None:
        raise Interrupted(signal.SIGTERM if isinstance(caught, Terminated) else signal.SIGINT)
    return 1 if pytest_failed or outcomes & {Outcome.FAIL, Outcome.ERROR} else 0


def _config(request: Request) -> Config:
    path = request.config or Path("seatrial.toml")
    if request.config is None and not path.exists():
        return Config()
    try:
        return parse_config(path.read_text(), str(path))
    except FileNotFoundError:
        raise BadConfig(path, "file", "there is none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(path, "file", str(error)) from None


def _subjects(request: Request, config: Config) -> tuple[Subject, ...]:
    names = request.subjects or config.subjects
    chosen = [parse_subject(name, config.table) for name in names] if names else list(config.table)
    if request.attach is not None:
        if not names:
            raise UsageError("--attach needs the subject that it is about, such as containerd:grpc:runc")
        if not request.attach.is_socket():
            raise MachineError(f"{request.attach} is not a socket", "start the engine, or name another with --attach")
        chosen = [dataclasses.replace(subject, socket=str(request.attach.absolute())) for subject in chosen]
    for index, subject in enumerate(chosen):
        if subject.name in {other.name for other in chosen[:index]}:
            raise UsageError(f"{subject.name} is named twice")
    return tuple(chosen)


def _suites(request: Request, config: Config) -> list[Path]:
    names = request.suites or config.suites or ("lifecycle",)
    known = sorted(folder.name for folder in paths.suites().iterdir() if any(folder.glob("test_*.py")))
    known = [name for name in known if name != "selftest"]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no suite {name!r}; known: {', '.join(known)}")
    return [paths.suites() / name for name in names]


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


def _report(folder: RunFolder) -> set[Outcome]:
    from harness.report.formats import render, write_all

    written = write_all(folder)
    colour = wants_colour()
    click.echo(render("table", [folder.path], colour=colour), color=colour)
    click.echo()
    for path in (*written, folder.path / "records.jsonl"):
        click.echo(f"  {path}")
    return {record.outcome for record in folder.read_records()}


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while everything is taken down and the report written: it takes a second or two."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
