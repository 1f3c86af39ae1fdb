"""Every sample as a line of CSV, raw, for a spreadsheet or a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.load import frame
from harness.report.words import name
from harness.store import RunData


def render_csv(runs: Sequence[RunData]) -> str:
    """The records that have a time or (of a bench) a weight, warm-up turns and failed steps among them: `phase` and `outcome` tell them apart.

    Integers, units in the names of columns, an empty field for what could not be had. The first column is the id of the
    run. Reasons are left out: they are many lines of foreign text.
    """
    table = frame(runs)
    table = table[table["wall_ns"].notna() | table["load"].notna()].drop(columns="reason")
    table["run"] = [runs[index].run.run for index in table["run"]]
    for column in ("subject", "engine", "client", "handler", "suite", "test", "via"):
        table[column] = table[column].map(name)
    return str(table.to_csv(index=False, lineterminator="\n"))
