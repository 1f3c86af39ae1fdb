"""What a report on several machines says in sentences, the same in every format."""

from __future__ import annotations

from collections.abc import Callable

from harness.model.record import Outcome
from harness.report.machines.result import Difference, Group, Lane, Machine, Merged, enumerated, median_of
from harness.report.matrix import AREAS, MARKS, MEANINGS, NO_MARK, Cell, Column, Finding, Matrix
from harness.report.sentences import describe_counts
from harness.report.words import clean, name, number, steps

DIFFERS = "≠"
"""Stands at what does not end alike."""
EMULATED = "emulated (tcg): its times mean something as ratios only"
_FEW = 3
"""tests that are named; more of them are counted"""


def describe_title(merged: Merged) -> str:
    """``3 machines``, and which Seatrial."""
    versions = dict.fromkeys(name(head.run.seatrial) for it in merged.machines for head in it.matrix.runs)
    count = len(merged.machines)
    return f"Seatrial {', '.join(versions)}, {count} machine{'s' if count > 1 else ''}"


def describe_platform(machine: Machine) -> str:
    """Distribution, kernel, cgroup mode and accelerator, as far as they are known."""
    known: dict[str, str] = {}
    for head in machine.matrix.runs:
        known |= {key: name(str(value)) for key, value in head.run.machine.items() if value}
    facts = [
        known.get("distribution"),
        f"Linux {known['kernel']}" if "kernel" in known else None,
        f"cgroup {known['cgroup_mode']}" if "cgroup_mode" in known else None,
        EMULATED if machine.emulated else machine.accelerator,
    ]
    return ", ".join(fact for fact in facts if fact) or "nothing is known of it"


def describe_versions(machine: Machine) -> str:
    """``containerd 1.7.24, runc 1.1.15``; several of one where the machine's runs had several."""
    found: dict[str, dict[str, None]] = {}
    for head in machine.matrix.runs:
        for program, version in head.run.versions.items():
            found.setdefault(name(program), {})[name(version)] = None
    return ", ".join(f"{program} {' and '.join(versions)}" for program, versions in found.items())


def describe_runs(machine: Machine) -> str:
    """Its runs with the states of those that did not end by themselves, and how their cells ended."""
    words = []
    for head in machine.matrix.runs:
        state = head.state.partition(":")[0]
        words.append(f"run {name(head.run.run)}{', quick' if head.run.quick else ''}{f', {state}' if state else ''}")
    return f"{'; '.join(words)}: {describe_counts(machine.matrix)}"


def describe_machine(machine: Machine) -> str:
    """All of that in a line."""
    versions = describe_versions(machine)
    return f"{describe_platform(machine)}; {f'{versions}; ' if versions else ''}{describe_runs(machine)}"


def describe_difference(difference: Difference) -> tuple[str, tuple[str, ...]]:
    """The steps, and the tests by their names or (where they are many) their number."""
    where = steps(difference.operations) or "other"
    if len(difference.tests) > _FEW:
        return where, (f"{len(difference.tests)} tests",)
    return where, difference.tests


def describe_agreement(merged: Merged) -> str:
    """What is said where there is no difference."""
    if not merged.compared:
        return "There is nothing to compare: no step of a subject was tried on two machines."
    return f"Nothing differs between machines, over {merged.compared} cells."


def describe_fault(machine: Machine) -> Finding:
    """A machine that has failed, as a finding."""
    reason = f"the trial on this machine broke off: {machine.fault}"
    return Finding(machine.name, Outcome.ERROR, reason, operations=(), tests=(), count=1)


def describe_legend(merged: Merged) -> list[str]:
    """How to read the matrix."""
    counts = ", ".join(f"{count} {outcome.value}" for outcome, count in merged.counts.items() if count) or "nothing"
    marks = [f"{MARKS[outcome]} {outcome.value}: {meaning}" for outcome, meaning in MEANINGS.items()]
    lines = [f"{'; '.join(marks)}; {NO_MARK} no record. Cells: {counts}."]
    costs = [
        cell.cost
        for group in merged.groups
        for lane in group.lanes
        for cell in lane.row.cells.values()
        if cell.cost is not None
    ]
    if costs:
        fewest, most = min(cost.samples for cost in costs), max(cost.samples for cost in costs)
        turns = f"{most}" if fewest == most else f"{fewest} to {most}"
        lines.append(
            f"Beside the mark: CPU time of engine, client and pods together in ms, medians of {turns} measured turns; of "
            "areas, how many checks have passed. Only steps that did what they should count; ≥: a step is missing from the sum."
        )
    if merged.differences:
        lines.append(f"{DIFFERS}: does not end alike on all machines.")
    if merged.emulated and costs:
        lines.append(f"{enumerated(list(merged.emulated))}: {EMULATED}.")
    return lines


def describe_value(column: Column, cell: Cell | None) -> str:
    """What stands beside a cell's mark: its CPU time in ms, if it is known; of an area, how many checks have passed."""
    if cell is None:
        return ""
    if column in AREAS:
        return cell.passed
    return number(cell.cost.cpu_ms) if cell.cost and cell.cost.cpu_ms is not None else ""


def describe_cost(lane: Lane, group: Group, merged: Merged) -> tuple[str, str]:
    """CPU and wall of a subject on one machine: a ratio; milliseconds of all steps where the others are compared with it.

    Where a machine is emulated there are only ratios.
    """
    row = lane.row
    if row.wall_ms is None:
        return "", ""
    if lane.machine.name == group.base:
        least = "" if row.whole else "≥"
        if merged.emulated:
            return "×1" if row.cpu_ms is not None else "–", "×1"
        return f"{least}{number(row.cpu_ms)}" if row.cpu_ms is not None else "–", f"{least}{number(row.wall_ms)}"
    if not lane.ratios:
        return "–", "–"
    median = median_of(lane.ratios)
    return f"×{median.cpu:.2f}" if median.cpu is not None else "–", f"×{median.wall:.2f}"


def describe_costs(merged: Merged) -> str:
    """How to read the ratios."""
    base = "of the steps together in ms" if not merged.emulated else "×1"
    emulated = f" {enumerated(list(merged.emulated))}: {EMULATED}." if merged.emulated else ""
    return (
        f"CPU and wall time: {base} on the first machine that measured a subject; on the others × that, the median over the "
        f"steps that passed on both.{emulated}"
    )


def compared_groups(merged: Merged) -> list[Group]:
    """The subjects that were measured on several machines."""
    return [group for group in merged.groups if any(lane.ratios for lane in group.lanes)]


def find_others(merged: Merged, *outcomes: Outcome) -> list[tuple[str, list[Finding]]]:
    """The findings that no difference tells, by the machines that have them: ``every machine``, ``trixie and sid``.

    The same one on several machines is told once, reproduced on the first of them.
    """
    at: dict[tuple[str, Outcome, str, tuple[str, ...]], list[tuple[str, Finding]]] = {}
    for machine in merged.machines:
        for it in machine.matrix.found(*outcomes):
            at.setdefault((it.name, it.outcome, it.reason, it.operations), []).append((machine.name, it))
    places: dict[tuple[str, ...], list[Finding]] = {}
    for alike in at.values():
        places.setdefault(tuple(machine for machine, _ in alike), []).append(alike[0][1])
    everywhere = len(merged.machines)
    return [
        ("every machine" if len(names) == everywhere > 1 else enumerated(list(names)), found)
        for names, found in sorted(places.items(), key=lambda place: -len(place[0]))
    ]


def collect(merged: Merged, describe: Callable[[Matrix], list[str]]) -> list[str]:
    """The sentences of each machine's own report, with the machines where not all of them say the same."""
    at: dict[str, list[str]] = {}
    for machine in merged.machines:
        for line in describe(machine.matrix):
            at.setdefault(clean(line), []).append(f"{machine.name} (tcg)" if machine.emulated else machine.name)
    whole = len(merged.machines)
    return [line if len(names) == whole > 1 else f"{enumerated(names)}: {line}" for line, names in at.items()]
