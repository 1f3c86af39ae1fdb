"""What a report says in sentences, the same in every format."""

from __future__ import annotations

from harness.model.record import Outcome
from harness.report.figures import REFERENCE
from harness.report.matrix import MARKS, MEANINGS, NO_MARK, Head, Matrix
from harness.report.words import megabytes, name, number, signed, steps


def describe_run(head: Head, several: bool = False) -> list[str]:
    """Which run this is, on what machine, and what a reader must know before anything else."""
    run = head.run
    machine = run.machine
    cores = machine.get("cores")
    facts = [
        machine.get("distribution"),
        f"Linux {machine['kernel']}" if machine.get("kernel") else None,
        f"cgroup {machine['cgroup_mode']}" if machine.get("cgroup_mode") else None,
        f"{cores} × {machine.get('cpu_model') or 'CPU'}" if cores else None,
    ]
    which = f"{head.label}: run {run.run}" if several and head.label and run.run not in head.label else f"run {run.run}"
    lines = [f"Seatrial {run.seatrial}, {which}, started {run.started}" + (", quick" if run.quick else "")]
    if any(facts):
        lines.append(", ".join(name(str(fact)) for fact in facts if fact))
    if head.state:
        lines.append(f"This run was {head.state}." if head.run.interrupted else f"This run has {head.state}.")
    return lines


def describe_counts(matrix: Matrix) -> str:
    """``96 pass, 2 fail, ...``: cells by outcome."""
    return ", ".join(f"{count} {outcome.value}" for outcome, count in matrix.counts.items() if count) or "nothing"


def describe_legend(matrix: Matrix) -> list[str]:
    """How to read a cell."""
    marks = [f"{MARKS[outcome]} {outcome.value}: {meaning}" for outcome, meaning in MEANINGS.items()]
    if any(column.operation not in row.cells for row in matrix.rows for column in matrix.columns):
        marks.append(f"{NO_MARK} no record")
    lines = ["; ".join(marks) + f". Cells: {describe_counts(matrix)}."]
    costs = [cell.cost for row in matrix.rows for cell in row.cells.values() if cell.cost]
    if costs:
        networks = sorted({row.network for row in matrix.rows if row.network})
        where = f" on the {' or '.join(networks)} network" if networks else ""
        fewest, most = min(cost.samples for cost in costs), max(cost.samples for cost in costs)
        turns = f"{most}" if fewest == most else f"{fewest} to {most}"
        lines.append(
            f"Beside the mark: wall time in ms; below it: CPU time of engine, client and pods together in ms. Medians of "
            f"{turns} measured turns{where}; only steps that did what they should count. Engine MB: memory that nobody can "
            "take from it, page cache not counted."
        )
    if any(not row.whole and row.wall_ms is not None for row in matrix.rows):
        lines.append("≥: a step that did not go well is missing from the sum.")
    return lines


def describe_absent(matrix: Matrix) -> list[str]:
    """What subjects do not offer; those that lack the same for the same reason in one sentence."""
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for finding in matrix.found(Outcome.NA):
        bare = finding.reason.removeprefix(finding.name.partition(" (")[0]).strip()
        groups.setdefault((finding.operations, bare), []).append(finding.name)
    return [
        f"{', '.join(names)}: {reason}" + (f" ({steps(operations)})" if operations else "")
        for (operations, reason), names in groups.items()
    ]


def describe_figures(matrix: Matrix) -> list[str]:
    """Harness overhead, client taxes, whole pods; each only where it was measured."""
    lines = []
    if matrix.overhead:
        cpu = f", {matrix.overhead.cpu_ms:.3f} ms of CPU" if matrix.overhead.cpu_ms is not None else ""
        lines.append(
            f"Harness: adds {matrix.overhead.wall_ms:.3f} ms of wall time{cpu} to a gRPC step "
            f"(medians of {matrix.overhead.samples} steps)."
        )
    for tax in matrix.taxes:
        cpu = f" and {signed(tax.cpu_ms)} ms of CPU" if tax.cpu_ms is not None else ""
        lines.append(
            f"Client tax: {tax.name} takes {signed(tax.wall_ms)} ms of wall time{cpu} a step against {tax.base} "
            f"(medians over {tax.steps} steps)."
        )
    for pod in matrix.pods:
        parts = [f"{number(pod.wall_ms)} ms{_ratio(pod.wall_ratio)}"]
        if pod.cpu_ms is not None:
            parts.append(f"CPU {number(pod.cpu_ms)} ms{_ratio(pod.cpu_ratio)}")
        if pod.pss is not None:
            parts.append(f"engine PSS by itself {megabytes(pod.pss)} MB{_ratio(pod.pss_ratio)}")
        lines.append(f"One pod, eight calls, host network: {pod.name}: {', '.join(parts)}.")
    if any(pod.wall_ratio is not None for pod in matrix.pods):
        lines[-1] += f" ×: times {REFERENCE} in the same run."
    return lines


def describe_notes(matrix: Matrix) -> list[str]:
    """What could not be had, and why; each sentence once, with the subjects that it is about where not all are."""
    about: dict[str, list[str]] = {}
    for head in matrix.runs:
        for note in head.notes:
            subject = next((subject for subject in head.run.subjects if note.startswith(f"{subject}: ")), "")
            subjects = about.setdefault(note.removeprefix(f"{subject}: ") if subject else note, [])
            if subject and subject not in subjects:
                subjects.append(subject)
    measured = {row.subject for row in matrix.rows if row.wall_ms is not None}
    return [
        f"{note} ({', '.join(subjects)})" if subjects and not measured <= set(subjects) else note
        for note, subjects in about.items()
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f" (×{value:.2f})"
