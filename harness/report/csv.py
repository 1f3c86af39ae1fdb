"""Every sample as a line of CSV, raw, for a spreadsheet or a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.load import by_machine, frame, machine_of
from harness.report.words import name
from harness.store import RunData


def render_csv(runs: Sequence[RunData]) -> str:
    """The records that have a time or (of a bench) a weight, warm-up turns and failed steps among them: `phase` and `outcome` tell them apart.

    Integers, units in the names of columns, an empty field for what could not be had. The first column is the id of the
    run, the last (where the runs were held on several machines) the name of the machine. Reasons are left out: they are
    many lines of foreign text.
    """
    table = frame(runs)
    table = table[table["wall_ns"].notna() | table["load"].notna()].drop(columns="reason")
    if len(by_machine(runs)) > 1:
        table["machine"] = [machine_of(runs[index]) for index in table["run"]]
    table["run"] = [runs[index].run.run for index in table["run"]]
    for column in ("subject", "engine", "client", "handler", "suite", "test", "via"):
        table[column] = table[column].map(name)
    return str(table.to_csv(index=False, lineterminator="\n"))
