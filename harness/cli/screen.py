"""What the screen is: a terminal that wants colours and shows progress, or something that must not get any."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def wants_colour() -> bool:
    """Whether to colour stdout: only on a terminal, and not against https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def progress_bar(title: str) -> Progress:
    """A bar on stderr, with one task that has a field ``now``; it is gone when it stops, and shows nothing where there is no
    terminal.
    """
    # Late, for rich takes an emulated machine seconds to load.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    bar.add_task(title, total=None, now="")
    return bar
