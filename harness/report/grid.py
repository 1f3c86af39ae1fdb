"""Columns of text side by side in a terminal, in as many tables as its width takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from tabulate import tabulate

GAP = "  "
"""between two columns"""
BLANK = "\u2800"
"""Stands for a space where tabulate would take one away and move a mark that stands alone."""


def render_grid(columns: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: each column a title and its cells, all of several lines if need be; the first stands left."""
    # The titles are the first row, not tabulate's headers: those it pads by two more characters a column.
    rows = [list(row) for row in zip(*columns, strict=True)]
    alignment = ["left"] + ["right"] * (len(columns) - 1)
    lines = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignment).replace(BLANK, " ").split("\n")
    titles = max(title.count("\n") for title in rows[0]) + 1
    rule = GAP.join("-" * width_of(texts) for texts in columns)
    return [line.rstrip() for line in (*lines[:titles], rule, *lines[titles:])]


def width_of(texts: Sequence[str]) -> int:
    """Characters that a column of `texts` takes."""
    return max(len(click.unstyle(line)) for text in texts for line in text.split("\n"))


def chunks(widths: Sequence[int], room: int, sums: int = 0) -> Iterator[tuple[list[int], bool]]:
    """Indices of columns in as few tables as fit, all about equally wide, and whether it is the last one.

    `sums`: characters to leave free in the last.
    """
    tables = 1
    groups = _divide(widths, tables, sums)
    while tables < len(widths) and any(_taken(widths, group, sums) > room for group in groups):
        tables += 1
        groups = _divide(widths, tables, sums)
    for group in groups:
        yield group, group is groups[-1]


def _taken(widths: Sequence[int], group: Sequence[int], sums: int) -> int:
    return sum(widths[index] for index in group) + (sums if group[-1] == len(widths) - 1 else 0)


def _divide(widths: Sequence[int], tables: int, sums: int) -> list[list[int]]:
    share = (sum(widths) + sums) / tables
    groups: list[list[int]] = [[]]
    used = 0
    for index, size in enumerate(widths):
        if groups[-1] and used + size / 2 > share * len(groups) and len(groups) < tables:
            groups.append([])
        groups[-1].append(index)
        used += size
    return groups
