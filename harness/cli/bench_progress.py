"""The progress line of a bench: what is measured, whose turn it is, how many of how many."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from harness.cli.screen import progress_bar


class BenchProgress:
    """`harness.session.bench.Observer`: a bar on a terminal, a line for each scenario elsewhere. Writes to stderr."""

    def __init__(self, title: str) -> None:
        self._bar = progress_bar(title)
        self._console, (self._task,) = self._bar.console, self._bar.task_ids
        self._done = 0
        self._total = 0
        self._scenario = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, words: str) -> None:
        """Something that is done before the turns begin."""
        self._bar.update(self._task, now=words)
        if not self._console.is_terminal:
            self._console.print(words, highlight=False)

    def plan(self, turns: int) -> None:
        self._total = turns
        self._bar.update(self._task, total=turns)

    def turn(self, scenario: str, subject: str) -> None:
        self._bar.update(self._task, completed=self._done, now=f"{scenario}, {subject}")
        if not self._console.is_terminal and scenario != self._scenario:
            self._console.print(f"  {self._done}/{self._total} turns, now {scenario}", highlight=False)
        self._scenario = scenario
        self._done += 1
