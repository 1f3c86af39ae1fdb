"""The formats of a report, and writing those that stand beside a run's records."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.report.bench import BenchResult, find_bench
from harness.report.bench import html as bench_html
from harness.report.bench import junit as bench_junit
from harness.report.bench import markdown as bench_markdown
from harness.report.bench import table as bench_table
from harness.report.csv import render_csv
from harness.report.html import render_html
from harness.report.junit import render_junit
from harness.report.load import load, tells_machines
from harness.report.machines import Merged, find_merged
from harness.report.machines.html import render_html as render_machines_html
from harness.report.machines.markdown import render_markdown as render_machines_markdown
from harness.report.machines.table import render_table as render_machines_table
from harness.report.markdown import render_markdown
from harness.report.matrix import Matrix
from harness.report.statistics import find_matrix
from harness.report.table import render_table
from harness.store import RunFolder

FORMATS = ("table", "markdown", "html", "junit", "csv")

_TABLES: Mapping[str, Callable[[Matrix], str]] = {"markdown": render_markdown, "html": render_html}
_MACHINES: Mapping[str, Callable[[Merged], str]] = {
    "markdown": render_machines_markdown,
    "html": render_machines_html,
}
_BENCHES: Mapping[str, Callable[[BenchResult], str]] = {
    "markdown": bench_markdown.render_markdown,
    "html": bench_html.render_html,
    "junit": bench_junit.render_junit,
}


def render(form: str, folders: Sequence[Path], *, colour: bool = False, width: int | None = None) -> str:
    """A report of one run, or of several side by side, as the text of one of `FORMATS`; a bench stands alone.

    Runs of several machines become a report on what differs between them, with a column for each subject on each machine.

    `colour` and `width` (characters; that of the terminal, or 160 where there is none) are for the table alone. Raises
    `StoreError` where a folder is none of a run, `UsageError` for an unknown format and for a bench among others.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no report format {form!r}; known: {', '.join(FORMATS)}")
    runs = load(folders)
    if len(runs) > 1 and any(data.run.bench for data in runs):
        raise UsageError("a bench has a report of its own: name one run")
    width = width or shutil.get_terminal_size((160, 50)).columns
    if form == "csv":
        return render_csv(runs)
    if runs and runs[0].run.bench:
        result = find_bench(runs[0])
        return (
            _BENCHES[form](result) if form in _BENCHES else bench_table.render_table(result, colour=colour, width=width)
        )
    if form == "junit":
        return render_junit(runs)
    if tells_machines(runs):
        merged = find_merged(runs)
        return (
            _MACHINES[form](merged) if form in _MACHINES else render_machines_table(merged, colour=colour, width=width)
        )
    matrix = find_matrix(runs)
    return _TABLES[form](matrix) if form in _TABLES else render_table(matrix, colour=colour, width=width)


def write_all(folder: RunFolder) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``junit.xml`` and ``samples.csv`` beside the records; their paths.

    Raises `StoreError`.
    """
    files = {"report.md": "markdown", "report.html": "html", "junit.xml": "junit", "samples.csv": "csv"}
    return [folder.write(name, render(form, [folder.path])) for name, form in files.items()]
