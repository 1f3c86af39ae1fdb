"""What is said while machines are built, brought up and tried."""

from __future__ import annotations

import sys
import time


class Teller:
    """Says what happens on which machine: lines below each other on a terminal, one a change elsewhere. Writes to stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._started_s = time.monotonic()
        self._console = Console(stderr=True)
        self._tasks: dict[str, int] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Teller:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, line: str) -> None:
        if not self._console.is_terminal:
            sys.stderr.write(f"{time.monotonic() - self._started_s:4.0f} s  {name}: {line}\n")
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, now="")
        self._progress.update(self._tasks[name], now=line[: max(self._console.width - len(name) - 20, 20)])  # type: ignore[arg-type]
