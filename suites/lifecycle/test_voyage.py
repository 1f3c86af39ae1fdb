"""The measured voyage: every step of the lifecycle in a kubelet's order, alone on the machine, in balanced turns."""

from __future__ import annotations

import pytest

from harness.model.capability import Capability
from harness.model.container import Network
from harness.model.record import Phase
from harness.model.subject import Subject
from harness.plugin import Fleet
from harness.session.step import StepFailed
from harness.session.turns import Turn
from harness.session.voyage import sail

pytestmark = [pytest.mark.measured, pytest.mark.operation("start")]


def test_voyage(turn: Turn[Subject], fleet: Fleet, request: pytest.FixtureRequest) -> None:
    """A voyage on the host's network; in every other turn also one on a network of the container's own.

    The first turn of a subject warms it up (page cache, lazily loaded parts); its records are kept apart.
    """
    trial = fleet.trial(turn.subject)
    steps = trial.steps
    steps.suite, steps.test = "lifecycle", request.node.name
    steps.block = turn.block
    steps.phase = Phase.MEASURE if turn.block else Phase.CHECK
    steps.failures.clear()
    for network in Network:
        if network is Network.BRIDGE and not (turn.block % 2 and trial.offers(Capability.BRIDGE)):
            continue
        steps.network = network.value
        sail(trial, network)
    if steps.failures:
        raise StepFailed("; ".join(steps.failures))
