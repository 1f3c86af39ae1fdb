"""harness.session.cri: a container's log once the container has ended."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from harness.session import cri
from harness.session.cri import settle


def test_a_log_is_whole_when_the_engine_has_closed_it(tmp_path: Path) -> None:
    log = tmp_path / "box.log"
    file = log.open("w")

    def write() -> None:
        with file:
            time.sleep(0.5)
            file.write("late\n")

    engine = threading.Thread(target=write)
    engine.start()
    settle(log)
    assert log.read_text() == "late\n"
    engine.join()


def test_an_engine_that_keeps_a_log_open_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cri, "OPEN_LOG_S", 0.1)
    log = tmp_path / "box.log"
    with log.open("w"):
        settle(log)


def test_a_log_that_nobody_writes_is_not_waited_for(tmp_path: Path) -> None:
    settle(tmp_path / "none.log")
