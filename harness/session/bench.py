"""A bench from beginning to end: engines put afloat, scenarios one after the other, turns in balanced blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.model.bench import CRI, OCI, TWINS, Scenario
from harness.model.record import Phase
from harness.model.subject import Subject
from harness.session.scenarios import PERFORMANCES, Performance, Sail, Scale
from harness.session.scenarios_oci import OCI_PERFORMANCES
from harness.session.step import Recorder, StepFailed
from harness.session.trial import Trial, open_trial
from harness.session.turns import Turn, take_turns

BY_BENCH: Mapping[str, Mapping[str, Performance]] = {CRI.name: PERFORMANCES, OCI.name: OCI_PERFORMANCES}
"""How the scenarios of a bench are performed, by their names."""


@dataclass(frozen=True, slots=True)
class Berth:
    """One engine of a subject."""

    subject: Subject = field(hash=False)  # its options are a mapping
    twin: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. `blocks` stands in for that of every scenario; `slow_for` has the names of those who take part
    in slow scenarios.
    """

    bench: str
    run: str
    blobs: Path
    subjects: tuple[Subject, ...]
    scenarios: tuple[Scenario, ...]
    slow_for: frozenset[str]
    seed: int
    quick: bool = False
    blocks: int | None = None
    scale: Scale = field(default_factory=Scale)
    port: int | None = None

    def turns(self, scenario: Scenario) -> list[Turn[Berth]]:
        """Whose turn it is; block 0 warms up where the scenario does that."""
        cast = [
            Berth(subject, twin)
            for subject in self.subjects
            if not scenario.slow or subject.name in self.slow_for
            for twin in range(TWINS)
        ]
        blocks = self.blocks or (scenario.quick if self.quick else scenario.blocks)
        return take_turns(cast, blocks + scenario.warms_up, self.seed)


class Observer(Protocol):
    """Is told how far a bench is."""

    def plan(self, turns: int) -> None:
        """So many turns will be taken in all."""
        ...

    def turn(self, scenario: str, subject: str) -> None:
        """A turn begins."""
        ...


def hold_bench(plan: Plan, recorder: Recorder, observer: Observer) -> tuple[str, ...]:
    """Perform every scenario of `plan`; what a reader of the figures has to know.

    Scenarios that need no fresh engine share theirs: `TWINS` of each subject, all afloat at once. A step that fails is
    recorded, and ends that turn only. Raises `ArenaError`, `EngineError`, `MachineError` where an engine does not start.
    """
    turns = {scenario.name: plan.turns(scenario) for scenario in plan.scenarios}
    observer.plan(sum(map(len, turns.values())))
    notes: dict[str, None] = {}
    with contextlib.ExitStack() as stack:
        afloat: dict[Berth, Trial] = {}
        for scenario in (it for it in plan.scenarios if not it.fresh):
            for berth in _cast(turns[scenario.name]):
                if berth not in afloat:
                    afloat[berth] = stack.enter_context(_open(plan, recorder, berth))
            _perform(plan, scenario, turns[scenario.name], afloat, observer)
        notes |= dict.fromkeys(note for trial in afloat.values() for note in trial.notes)
    for scenario in (it for it in plan.scenarios if it.fresh):
        for turn in turns[scenario.name]:
            with _open(plan, recorder, turn.subject) as trial:
                _perform(plan, scenario, [turn], {turn.subject: trial}, observer)
                notes |= dict.fromkeys(trial.notes)
    return tuple(notes)


def _cast(turns: Sequence[Turn[Berth]]) -> list[Berth]:
    return list(dict.fromkeys(turn.subject for turn in turns))


@contextlib.contextmanager
def _open(plan: Plan, recorder: Recorder, berth: Berth) -> Iterator[Trial]:
    with open_trial(berth.subject, plan.run, recorder, plan.blobs, plan.port, str(berth.twin)) as trial:
        trial.steps.suite, trial.steps.test, trial.steps.twin = "bench", plan.bench, berth.twin
        trial.steps.weighs = False
        yield trial


def _perform(
    plan: Plan, scenario: Scenario, turns: Sequence[Turn[Berth]], afloat: dict[Berth, Trial], observer: Observer
) -> None:
    with contextlib.ExitStack() as stack:
        ready: dict[Berth, Sail] = {}
        for berth in _cast(turns):
            afloat[berth].steps.scenario = scenario.name
            with _recording_faults(afloat[berth]):
                perform = BY_BENCH[plan.bench][scenario.name]
                ready[berth] = stack.enter_context(perform(afloat[berth], plan.scale))
        for turn in turns:
            observer.turn(scenario.name, turn.subject.subject.name)
            steps = afloat[turn.subject].steps
            steps.block, steps.iteration, steps.load, steps.network = turn.block, None, None, ""
            steps.phase = Phase.CHECK if scenario.warms_up and turn.block == 0 else Phase.MEASURE
            if turn.subject in ready:
                with _recording_faults(afloat[turn.subject]):
                    ready[turn.subject]()


@contextlib.contextmanager
def _recording_faults(trial: Trial) -> Iterator[None]:
    """Whatever goes wrong with one turn is recorded (once), and the others take theirs."""
    try:
        yield
    except StepFailed:
        pass
    except Exception as error:
        trial.steps.fault("", error)
