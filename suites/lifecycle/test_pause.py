"""Pause and resume. CRI has no such call: there the engine's own tool does it, and the record says so (``via``)."""

from __future__ import annotations

import pytest

from harness.clock import wait_until
from harness.model.capability import Capability
from harness.model.lifecycle import State
from harness.session.trial import Trial

pytestmark = pytest.mark.needs(Capability.PAUSE)


@pytest.mark.operation("pause")
def test_pause_freezes_every_process(trial: Trial) -> None:
    """The kernel's freezer holds the program and its children; the runtime reports what the kernel does."""
    spec, container = trial.moored(State.RUNNING)
    assert len(trial.witness.processes(spec.name)) >= 2, "the program has not started its child"
    trial.client.pause(container)
    try:
        assert trial.await_frozen(spec), "the container is paused, and a process of it is not frozen"
        assert trial.state(spec, container) is State.PAUSED
    finally:
        trial.client.resume(container)


@pytest.mark.operation("pause")
@pytest.mark.needs(Capability.PAUSE, Capability.LOGS)
def test_nothing_happens_while_paused(trial: Trial) -> None:
    """A program that counts does not get on: its CPU time stands still, and its log does not grow."""
    spec = trial.spec(("/bin/sh", "-c", "echo ready; i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"))
    container = trial.launch(spec)
    try:
        trial.client.pause(container)
        trial.await_frozen(spec)
        before = len(trial.client.logs(container))
        trial.steps.clock.sleep(0.3)
        assert len(trial.client.logs(container)) <= before + 1, "the log grew while the container was paused"
        trial.client.resume(container)
        wait_until(lambda: len(trial.client.logs(container)) > before + 1, 5, "the program to go on after the resume")
    finally:
        trial.discard(container)


@pytest.mark.operation("resume")
def test_resume_thaws_every_process(trial: Trial) -> None:
    spec, container = trial.moored(State.PAUSED)
    trial.client.resume(container)
    processes = trial.witness.processes(spec.name)
    assert [trial.witness.frozen(process) for process in processes] == [False] * len(processes)
    assert trial.state(spec, container) is State.RUNNING
    if trial.offers(Capability.EXEC):
        assert trial.client.exec(container, ("/bin/true",)).exit_code == 0
