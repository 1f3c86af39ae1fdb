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
from harness.report.statistics import find_matrix
from harness.report.table import render_table
from harness.store import RunData, RunFolder

FORMATS = ("table", "markdown", "html", "junit", "csv")

_RENDERERS: Mapping[str, Callable[[Sequence[RunData]], str]] = {
    "markdown": lambda runs: render_markdown(find_matrix(runs)),
    "html": lambda runs: render_html(find_matrix(runs)),
    "junit": render_junit,
    "csv": render_csv,
}
_FILES: Mapping[str, str] = {
    "markdown": "report.md",
    "html": "report.html",
    "junit": "junit.xml",
    "csv": "samples.csv",
}


def render(form: str, folders: Sequence[Path], *, colour: bool = False, width: int | None = None) -> str:
    """A report of one run, or of several side by side, as the text of one of `FORMATS`.

    `colour` and `width` (characters; that of the terminal, or 160 where there is none) are for the table alone. Raises
    `StoreError` where a folder is none of a run, `UsageError` for an unknown format.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no report format {form!r}; known: {', '.join(FORMATS)}")
    runs = load(folders)
    if form == "table":
        columns = width or shutil.get_terminal_size((160, 50)).columns
        return render_table(find_matrix(runs), colour=colour, width=columns)
    return _RENDERERS[form](runs)


def write_all(folder: RunFolder) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``junit.xml`` and ``samples.csv`` beside the records; their paths.

    Raises `StoreError`.
    """
    runs = load([folder.path])
    return [folder.write(name, _RENDERERS[form](runs)) for form, name in _FILES.items()]
