"""The pytest plugin: subjects as parameters, capabilities as marks, and a record for every test.

A suite's test asks for the fixture `trial` (one subject afloat) and runs once for each subject. Marks:
``operation("stop")`` names the column of the report to which the test belongs; ``needs(Capability.LOGS, ...)`` what the
subject has to offer, else the test is `n/a`. A test that raises `AssertionError` or `RuntimeRefusal`, or waits in vain,
found the runtime at fault (`fail`); anything else is the harness' own fault (`error`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from _pytest.outcomes import Failed, Skipped  # pytest.fail.Exception and pytest.skip.Exception, with their types

from harness.client.cri_door import CriDoor
from harness.engine import availability
from harness.errors import NotExpressible
from harness.model.capability import WHY_NOT, Capability
from harness.model.lifecycle import Operation
from harness.model.record import Outcome, Phase, Record
from harness.model.subject import Subject
from harness.session import Trial, open_trial
from harness.session.cri import CriTrial
from harness.session.deviations import note_of
from harness.session.oci import OciTrial, open_oci
from harness.session.orders import ORDERS, Orders
from harness.session.step import FINDINGS, StepFailed
from harness.session.turns import Turn, take_turns
from harness.store import RunFolder

FIXTURES = ("trial", "cri", "oci")
"""Any of which has a test run once for each subject."""
HIDDEN = "runs containers on a kernel of its own: the machine's, which the tests ask, sees nothing of them"


class NotOffered(Skipped):
    """Ends a test whose subject does not offer what it needs."""


@dataclass(slots=True)
class Fleet:
    """The trials of this process. In the check phase one at a time, in the measuring phase all at once."""

    orders: Orders
    records: RunFolder
    _afloat: dict[str, tuple[contextlib.ExitStack, Trial]] = field(default_factory=dict)
    _cri: dict[str, CriTrial] = field(default_factory=dict)
    _oci: dict[str, OciTrial] = field(default_factory=dict)
    _sunk: dict[str, BaseException] = field(default_factory=dict)

    def trial(self, subject: Subject) -> Trial:
        """The trial of `subject`, put afloat when it is asked for first.

        A subject that cannot run on this machine is skipped with the reason; one whose engine did not start raises the
        same error each time, without another try.
        """
        if subject.name in self._sunk:
            # Without what it went through before: that grows each time, and is shown each time.
            raise self._sunk[subject.name].with_traceback(None)
        if subject.name not in self._afloat:
            if self.orders.phase is Phase.CHECK:
                # What goes wrong with the end of the subject before is told once, and is not held against this one.
                self.close()
            try:
                reason = availability(subject)
                if reason:
                    pytest.skip(reason)
                stack = contextlib.ExitStack()
                trial = stack.enter_context(
                    open_trial(subject, self.orders.run, self.records, self.orders.blobs, self.orders.port)
                )
                self._afloat[subject.name] = stack, trial
            except (Exception, Skipped) as error:
                self._sunk[subject.name] = error
                raise
        return self._afloat[subject.name][1]

    def cri(self, trial: Trial) -> CriTrial:
        """The same subject call by call; what is shared between tests goes with the trial."""
        name = trial.subject.name
        if name not in self._cri:
            door: CriDoor = trial.client.door  # type: ignore[attr-defined]
            self._cri[name] = CriTrial(trial, door)
            self._afloat[name][0].callback(self._cri[name].close)
        return self._cri[name]

    def oci(self, trial: Trial) -> OciTrial:
        """The same subject command by command."""
        name = trial.subject.name
        if name not in self._oci:
            self._oci[name] = open_oci(trial)
        return self._oci[name]

    def close(self) -> None:
        """Take every trial down; the first error wins, and the others are taken down all the same.

        What a reader has to know of the measured ones goes into ``run.json``.
        """
        notes = [note for _, trial in self._afloat.values() for note in trial.notes]
        with contextlib.ExitStack() as all_of_them:
            if notes and self.orders.phase is Phase.MEASURE:
                # Pushed first, hence done last: a full disk must not keep an engine afloat.
                all_of_them.callback(self._note, notes)
            for stack, _ in self._afloat.values():
                all_of_them.push(stack)
            self._afloat.clear()
            self._cri.clear()
            self._oci.clear()

    def _note(self, notes: list[str]) -> None:
        run = self.records.read().run
        self.records.update(replace(run, notes=tuple(dict.fromkeys([*run.notes, *notes]))))


_ORDERS = pytest.StashKey[Orders]()
_RECORDS = pytest.StashKey[RunFolder]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "operation(name): the column of the report to which the test belongs")
    config.addinivalue_line("markers", "needs(*capabilities): what the subject has to offer, else the test is n/a")
    config.addinivalue_line(
        "markers", "breach(breach): how a runtime breaks what the test is about (harness.session.breach)"
    )
    config.addinivalue_line(
        "markers", "kernel: what the machine's kernel does for a container; n/a for one with its own"
    )
    config.addinivalue_line(
        "markers",
        "exclusive: compares all mounts or links of the machine: no other engine that shares them is under test",
    )
    config.addinivalue_line("markers", "measured: takes its turn alone on the machine, and its times count")
    if ORDERS in os.environ:
        orders = Orders.read(Path(os.environ[ORDERS]))
        config.stash[_ORDERS] = orders
        config.stash[_RECORDS] = RunFolder(orders.folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    orders = metafunc.config.stash.get(_ORDERS, None)
    if orders is None:
        return
    if "turn" in metafunc.fixturenames:
        seen = [subject for subject in orders.subjects if Capability.OWN_KERNEL not in subject.capabilities]
        turns = take_turns(seen, orders.blocks, orders.seed) if seen and orders.phase is Phase.MEASURE else []
        metafunc.parametrize("turn", turns, ids=[f"{turn.block}-{turn.subject.name}" for turn in turns])
    elif used := [name for name in FIXTURES if name in metafunc.fixturenames]:
        metafunc.parametrize(
            used[0],
            [
                pytest.param(subject, id=subject.name, marks=pytest.mark.xdist_group(subject.slug))
                for subject in orders.subjects
            ],
            indirect=True,
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the phase that is ordered; check one subject after the other, measure in the order of turns."""
    orders = config.stash.get(_ORDERS, None)
    if orders is None:
        return
    measuring = orders.phase is Phase.MEASURE
    kept = [item for item in items if (item.get_closest_marker("measured") is not None) is measuring]
    dropped = [item for item in items if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    ranks = {subject.name: rank for rank, subject in enumerate(orders.subjects)}
    if not measuring:
        kept.sort(key=lambda item: ranks.get(getattr(_subject_of(item), "name", ""), -1))
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Engines that run already share the machine's namespaces: what one of them mounts must not be held against another."""
    subject = _subject_of(item)
    if item.config.stash.get(_ORDERS, None) is None or subject is None or not subject.socket:
        return (yield)
    with Path(os.environ[ORDERS]).open("rb") as everybody:
        fcntl.flock(everybody, fcntl.LOCK_EX if item.get_closest_marker("exclusive") else fcntl.LOCK_SH)
        return (yield)


def _subject_of(item: pytest.Item) -> Subject | None:
    params = getattr(getattr(item, "callspec", None), "params", {})
    value = next((params[name] for name in (*FIXTURES, "turn") if name in params), None)
    return value.subject if isinstance(value, Turn) else value


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Every trial that this process puts afloat."""
    config = request.config
    ships = Fleet(config.stash[_ORDERS], config.stash[_RECORDS])
    yield ships
    ships.close()


@pytest.fixture
def cri(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[CriTrial]:
    """One subject afloat, by the calls of the CRI. Whether it speaks CRI is known before its engine is started."""
    subject: Subject = request.param
    if Capability.CRI not in subject.capabilities:
        raise NotOffered(f"{subject.name} {WHY_NOT[Capability.CRI]}")
    calls = fleet.cri(fleet.trial(subject))
    yield calls
    calls.tidy()


@pytest.fixture
def oci(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[OciTrial]:
    """One OCI runtime, by its command line."""
    subject: Subject = request.param
    if Capability.OCI not in subject.capabilities:
        raise NotOffered(f"{subject.name} {WHY_NOT[Capability.OCI]}")
    commands = fleet.oci(fleet.trial(subject))
    if request.node.get_closest_marker("kernel"):
        commands.needs_this_kernel()
    yield commands
    commands.tidy()


@pytest.fixture
def trial(request: pytest.FixtureRequest, fleet: Fleet) -> Trial:
    """One subject afloat, offering what the test needs, and containers that the machine's kernel can tell of."""
    if Capability.OWN_KERNEL in request.param.capabilities:
        raise NotOffered(f"{request.param.name} {HIDDEN}")
    ship = fleet.trial(request.param)
    marker = request.node.get_closest_marker("needs")
    for capability in marker.args if marker else ():
        if not ship.offers(capability):
            raise NotOffered(f"{ship.subject.name} {WHY_NOT[capability]}")
    return ship


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the record of a test as soon as its outcome is known."""
    report = yield
    orders = item.config.stash.get(_ORDERS, None)
    if orders is None:
        return report
    done = call.when == "call" or (call.when == "setup" and call.excinfo is not None)
    broke_after = call.when == "teardown" and call.excinfo is not None
    recorded = orders.phase is Phase.MEASURE and (call.excinfo is None or isinstance(call.excinfo.value, StepFailed))
    if (done or broke_after) and not recorded:
        subject = _subject_of(item)
        outcome, reason = _judge(call)
        if outcome is Outcome.FAIL and subject is not None:
            reason += note_of(item.path.parent, subject, item.name)
        if outcome in (Outcome.FAIL, Outcome.ERROR) and subject is not None:
            reason += f"\nreproduce: {_again(item, subject)}"
        item.config.stash[_RECORDS].append(_record(item, subject, orders, outcome, reason))
        report.user_properties.append(("seatrial", outcome.value))
    return report


def _judge(call: pytest.CallInfo[None]) -> tuple[Outcome, str]:
    if call.excinfo is None:
        return Outcome.PASS, ""
    error = call.excinfo.value
    if isinstance(error, NotOffered | NotExpressible):
        return Outcome.NA, str(error)
    if isinstance(error, Skipped):
        return Outcome.SKIP, str(error)
    words = f"{type(error).__name__}: {error}".removeprefix("AssertionError: ").removeprefix("Failed: ")
    if isinstance(error, (*FINDINGS, Failed)) and call.when == "call":
        return Outcome.FAIL, words
    return Outcome.ERROR, words


def _again(item: pytest.Item, subject: Subject) -> str:
    suite = _suite_of(item)
    return f"seatrial run {subject.words} --suite {suite} -- -k '{getattr(item, 'originalname', item.name)}'"


def _suite_of(item: pytest.Item) -> str:
    return item.path.parent.name


def _record(item: pytest.Item, subject: Subject | None, orders: Orders, outcome: Outcome, reason: str) -> Record:
    marker = item.get_closest_marker("operation")
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    operation = params.get("operation") or (marker.args[0] if marker else "")
    return Record(
        subject=subject.name if subject else "this machine",
        engine=subject.engine if subject else "",
        client=subject.client if subject else "",
        handler=subject.handler if subject else "",
        suite=_suite_of(item),
        test=item.name,
        operation=operation.value if isinstance(operation, Operation) else str(operation),
        outcome=outcome,
        phase=orders.phase,
        reason=reason,
    )
