"""harness.plugin.Fleet: what goes wrong with one subject is told where it belongs, and not again and again."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import plugin
from harness.errors import EngineError
from harness.model.record import Phase
from harness.model.subject import parse_subject
from harness.plugin import Fleet

ONE, TWO = parse_subject("oci:runc"), parse_subject("oci:crun")


def fleet(monkeypatch: pytest.MonkeyPatch, opening: Any) -> Fleet:
    monkeypatch.setattr(plugin, "availability", lambda subject: "")
    monkeypatch.setattr(plugin, "open_trial", opening)
    orders: Any = SimpleNamespace(phase=Phase.CHECK, run="r", blobs=Path(), port=None)
    records: Any = None
    return Fleet(orders, records)


def test_a_bad_end_is_told_once_and_not_of_the_next_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def opening(subject: Any, *_: Any) -> Iterator[Any]:
        yield SimpleNamespace(subject=subject, notes=())
        if subject is ONE:
            raise EngineError("one", "does not end")

    ships = fleet(monkeypatch, opening)
    ships.trial(ONE)
    with pytest.raises(EngineError, match="does not end"):
        ships.trial(TWO)
    assert ships.trial(TWO).subject is TWO


def test_a_failed_start_is_told_each_time_without_what_was_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def opening(*_: Any) -> Iterator[Any]:
        raise EngineError("one", "does not start")
        yield

    ships = fleet(monkeypatch, opening)
    with pytest.raises(EngineError):
        ships.trial(ONE)
    depths = []
    for _ in range(3):
        with pytest.raises(EngineError, match="does not start") as caught:
            ships.trial(ONE)
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(depths)) == 1


def test_engines_that_run_already_are_checked_one_after_the_other() -> None:
    """They share the computer's mount namespace; those of our own have one each."""
    attached = [parse_subject(f"{name}=docker:sdk:runc@/run/{name}.sock") for name in ("here", "there")]
    groups: dict[str, str] = {}

    def parametrize(_: str, params: list[Any], indirect: bool) -> None:
        groups.update({str(param.id): param.marks[0].args[0] for param in params})

    metafunc: Any = SimpleNamespace(
        config=SimpleNamespace(stash={plugin._ORDERS: SimpleNamespace(subjects=(*attached, ONE, TWO))}),
        fixturenames=["trial"],
        parametrize=parametrize,
    )
    plugin.pytest_generate_tests(metafunc)
    assert groups["here"] == groups["there"]
    assert len(set(groups.values())) == 3
