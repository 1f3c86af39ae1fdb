"""The progress line of a run: phase, subject, test, how many of how many, and what failed so far."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import pytest
from rich.console import Console

from harness.cli.screen import progress_bar
from harness.model.record import Phase

TITLES = {Phase.CHECK: "checking", Phase.MEASURE: "measuring"}


class Progress:
    """A pytest plugin that shows a bar on a terminal, and a line now and then elsewhere. Writes to stderr."""

    def __init__(self, phase: Phase, subjects: int) -> None:
        self.interrupt: BaseException | None = None
        self.unloadable: list[str] = []
        self._phase = phase
        self._console = Console(stderr=True)
        self._bar = progress_bar(self._console)
        self._task = self._bar.add_task(TITLES[phase], total=None, now="")
        self._broken: dict[str, int] = {}
        self._done = 0
        self._total = 0
        self._subjects = subjects

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._console.print(f"{TITLES[self._phase]} {self._subjects} subjects", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if not self._console.is_terminal:
            self._console.print(f"{TITLES[self._phase]}: {self._done} tests done{self._toll()}", highlight=False)

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
                self._console.print(str(value), highlight=False, soft_wrap=True)
        if report.when == "teardown":
            self._done += 1
            now = report.nodeid.rpartition("::")[2] + self._toll()
            self._bar.update(self._task, completed=self._done, now=now[:100])
            if (
                not self._console.is_terminal
                and self._total
                and self._done * 10 // self._total != ((self._done - 1) * 10 // self._total)
            ):
                self._console.print(f"  {self._done}/{self._total}{self._toll()}", highlight=False)

    def _expect(self, total: int) -> None:
        self._total = total
        self._bar.update(self._task, total=total)

    def _toll(self) -> str:
        return "".join(f", {count} {word}" for word, count in sorted(self._broken.items()))
