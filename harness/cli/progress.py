"""The progress line of a run: phase, subject, test, how many of how many, and what failed so far."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import click
import pytest

from harness.cli.screen import progress_bar
from harness.model.record import Phase

TITLES = {Phase.CHECK: "checking", Phase.MEASURE: "measuring"}


class Progress:
    """A pytest plugin that shows a bar on a terminal, and a line now and then elsewhere. Writes to stderr."""

    def __init__(self, phase: Phase, subjects: int) -> None:
        self.interrupt: BaseException | None = None
        self.unloadable: list[str] = []
        self._phase = phase
        self._bar = progress_bar(TITLES[phase]) if sys.stderr.isatty() else None
        self._broken: dict[str, int] = {}
        self._done = 0
        self._total = 0
        self._subjects = subjects

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        else:
            self._say(f"{TITLES[self._phase]} {self._subjects} subjects")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._say(f"{TITLES[self._phase]}: {self._done} tests done{self._toll()}")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Serial sessions know their total here."""
        self._expect(len(session.items))

    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        """With xdist it is the workers that collect."""
        self._expect(len(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A suite that cannot be loaded is the harness' fault, and nobody else would say so."""
        if report.failed:
            self.unloadable.append(f"{report.nodeid}: {report.longreprtext}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.interrupt = excinfo.value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "seatrial" and value in ("fail", "error"):
                self._broken[str(value)] = self._broken.get(str(value), 0) + 1
            elif name == "note" and report.when == "call":
                self._say(str(value))
        if report.when == "teardown":
            self._done += 1
            now = report.nodeid.rpartition("::")[2] + self._toll()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self._done, now=now[:100])
            elif self._total and self._done * 10 // self._total != ((self._done - 1) * 10 // self._total):
                self._say(f"  {self._done}/{self._total}{self._toll()}")

    def _expect(self, total: int) -> None:
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def _toll(self) -> str:
        return "".join(f", {count} {word}" for word, count in sorted(self._broken.items()))
