"""The formats of a report, and writing those that stand beside a run's records."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.report.csv import render_csv
from harness.report.html import render_html
from harness.report.junit import render_junit
from harness.report.load import load
from harness.report.markdown import render_markdown
from harness.report.matrix import Matrix
from harness.report.statistics import find_matrix
from harness.report.table import render_table
from harness.store import RunData, RunFolder

FORMATS = ("table", "markdown", "html", "junit", "csv")

_OF_MATRIX: Mapping[str, Callable[[Matrix], str]] = {"markdown": render_markdown, "html": render_html}
_OF_RECORDS: Mapping[str, Callable[[Sequence[RunData]], str]] = {"junit": render_junit, "csv": render_csv}


def render(form: str, folders: Sequence[Path], *, colour: bool = False, width: int | None = None) -> str:
    """A report of one run, or of several side by side, as the text of one of `FORMATS`.

    `colour` and `width` (characters; that of the terminal, or 160 where there is none) are for the table alone. Raises
    `StoreError` where a folder is none of a run, `UsageError` for an unknown format.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no report format {form!r}; known: {', '.join(FORMATS)}")
    runs = load(folders)
    if form in _OF_RECORDS:
        return _OF_RECORDS[form](runs)
    matrix = find_matrix(runs)
    if form == "table":
        return render_table(matrix, colour=colour, width=width or shutil.get_terminal_size((160, 50)).columns)
    return _OF_MATRIX[form](matrix)


def write_all(folder: RunFolder) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``junit.xml`` and ``samples.csv`` beside the records; their paths.

    Raises `StoreError`.
    """
    runs = load([folder.path])
    matrix = find_matrix(runs)
    return [
        folder.write("report.md", render_markdown(matrix)),
        folder.write("report.html", render_html(matrix)),
        folder.write("junit.xml", render_junit(runs)),
        folder.write("samples.csv", render_csv(runs)),
    ]
