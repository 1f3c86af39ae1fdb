"""One bench from beginning to end: subjects, images, turns, report, exit status."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from harness.cli.bench_progress import BenchProgress
from harness.cli.choice import choose_subjects, read_config
from harness.cli.underway import new_run, under_way
from harness.engine import availability
from harness.errors import MachineError, UsageError
from harness.image.heavy import HEAVY, HEAVY_BYTES, heavy_image
from harness.model.bench import Bench
from harness.model.record import Outcome
from harness.model.subject import Subject
from harness.session.bench import Plan, hold_bench
from harness.session.scenarios import Scale


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    bench: Bench
    subjects: tuple[str, ...] = ()
    reference: str | None = None
    figures: tuple[str, ...] = ()
    quick: bool = False
    blocks: int | None = None
    many: int = 200
    heavy_bytes: int = HEAVY_BYTES
    seed: int | None = None
    check: bool = False
    output: Path = Path("results")
    config: Path | None = None
    registry_port: int | None = None
    command: tuple[str, ...] = ()


def perform_bench(request: Request) -> int:
    """Measure, report, and return the exit status.

    Raises `UsageError` or `MachineError` before anything was started, `Interrupted` after the partial report was written.
    """
    bench = request.bench
    scenarios = bench.choose(request.figures)
    subjects, reference = _subjects(request)
    run = new_run(request.command, subjects, request.quick, request.seed)
    run = dataclasses.replace(run, bench=bench.name, reference=reference.name)
    rivals = frozenset(subject.name for subject in subjects if not request.quick or subject is not reference)
    with under_way(request.output, run) as voyage, BenchProgress(bench.title) as progress:
        if any(scenario.name == "pull" for scenario in scenarios):
            progress.say(f"building an image of {request.heavy_bytes / 1e6:.0f} MB")
            digest = heavy_image(voyage.blobs, size_bytes=request.heavy_bytes)
            known = voyage.folder.read().run
            voyage.folder.update(dataclasses.replace(known, images={**known.images, HEAVY: digest}))
        plan = Plan(
            bench=bench.name,
            run=run.run,
            blobs=voyage.blobs,
            subjects=subjects,
            scenarios=scenarios,
            slow_for=rivals,
            seed=run.seed,
            quick=request.quick,
            blocks=request.blocks,
            scale=Scale(many=request.many),
            port=request.registry_port,
        )
        notes = hold_bench(plan, voyage.folder, progress)
        known = voyage.folder.read().run
        voyage.folder.update(dataclasses.replace(known, notes=(*known.notes, *notes)))
    data = voyage.folder.read()
    if {record.outcome for record in data.records} & {Outcome.FAIL, Outcome.ERROR}:
        return 1
    if request.check:
        from harness.report.bench import find_bench

        return int(not find_bench(data, request.figures).within)
    return 0


def _subjects(request: Request) -> tuple[tuple[Subject, ...], Subject]:
    """Those who take part, the reference last, and the reference."""
    bench, config = request.bench, read_config(request.config)
    (reference,) = choose_subjects([request.reference or bench.reference], config)
    names = [name for name in request.subjects or bench.subjects if name != reference.name]
    subjects = (*(choose_subjects(names, config) if names else ()), reference)
    for subject in subjects:
        if subject.client not in bench.clients:
            raise UsageError(f"{subject.name} cannot take part: the bench {bench.name} is for {bench.title}")
        if subject.socket:
            raise UsageError(f"{subject.name} cannot take part: a bench starts engines of its own")
        reason = availability(subject)
        if reason:
            raise MachineError(f"{subject.name}: {reason}")
    return subjects, reference
