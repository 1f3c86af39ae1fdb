"""harness.plugin.Fleet: what goes wrong with one subject is told where it belongs, and not again and again."""

from __future__ import annotations

import contextlib
import fcntl
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import plugin
from harness.errors import EngineError
from harness.model.record import Phase
from harness.model.subject import Subject, parse_subject
from harness.plugin import Fleet
from harness.session.orders import ORDERS

ONE, TWO = parse_subject("oci:runc"), parse_subject("oci:crun")
HERE = parse_subject("here=docker:sdk:runc@/run/here.sock")


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


@pytest.mark.parametrize(
    ("subject", "marked", "free"),
    [
        (HERE, True, ()),
        (HERE, False, (fcntl.LOCK_SH,)),
        (ONE, True, (fcntl.LOCK_SH, fcntl.LOCK_EX)),
    ],
    ids=["exclusive", "beside-others", "private"],
)
def test_what_looks_at_all_mounts_has_the_machine_alone(
    subject: Subject, marked: bool, free: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that run already share the machine's mount namespace; those of our own have one each."""
    orders = tmp_path / "orders"
    orders.touch()
    monkeypatch.setenv(ORDERS, str(orders))
    item: Any = SimpleNamespace(
        config=SimpleNamespace(stash={plugin._ORDERS: object()}),
        callspec=SimpleNamespace(params={"trial": subject}),
        get_closest_marker=lambda name: marked and name == "exclusive",
    )

    def possible(kind: int) -> bool:
        """Whether the test of another engine could begin."""
        with orders.open("rb") as other:
            try:
                fcntl.flock(other, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    under_test = plugin.pytest_runtest_protocol(item)
    next(under_test)
    assert tuple(kind for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX) if possible(kind)) == free
    with pytest.raises(StopIteration):
        under_test.send(True)
    assert possible(fcntl.LOCK_EX)
