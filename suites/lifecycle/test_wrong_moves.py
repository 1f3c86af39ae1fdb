"""Every move from every state: the legal ones end where they should, the wrong ones are refused and change nothing.

`harness.model.lifecycle.RULES` says which is which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from harness.errors import Conflict, NotFound, Refused, RuntimeRefusal
from harness.model.capability import Capability
from harness.model.container import ContainerSpec
from harness.model.lifecycle import RULES, Goes, Kind, Operation, Refuses, State, Tolerates, Unspecified, rule
from harness.plugin import NotOffered
from harness.session.trial import Trial

KINDS: dict[Kind, tuple[type[RuntimeRefusal], ...]] = {
    Kind.ANY: (RuntimeRefusal,),
    Kind.NOT_FOUND: (NotFound,),
    # Most runtimes say in words only that the state forbids it; what counts is that they do not call it "not found".
    Kind.CONFLICT: (Conflict, Refused),
}
NEEDED = {
    Operation.EXEC: Capability.EXEC,
    Operation.PAUSE: Capability.PAUSE,
    Operation.RESUME: Capability.PAUSE,
}


def _moves(trial: Trial) -> dict[Operation, Callable[[str], object]]:
    client = trial.client
    return {
        Operation.START: client.start,
        Operation.EXEC: lambda container: client.exec(container, ("/bin/true",)),
        Operation.PAUSE: client.pause,
        Operation.RESUME: client.resume,
        Operation.STOP: lambda container: client.stop(container, 1),
        Operation.REMOVE: client.remove,
    }


def _is_refused(call: Callable[[], object], kind: Kind, what: str) -> None:
    try:
        call()
    except KINDS[kind]:
        return
    except RuntimeRefusal as other:
        pytest.fail(f"{what} was refused as {type(other).__name__}, which is not {kind}: {other}")
    pytest.fail(f"{what} was not refused")


@pytest.mark.parametrize(("state", "operation"), list(RULES), ids=str)
def test_move(trial: Trial, state: State, operation: Operation) -> None:
    """One operation on a container in one state."""
    for capability in {NEEDED.get(operation), Capability.PAUSE if state is State.PAUSED else None} - {None}:
        if not trial.offers(capability):
            raise NotOffered(f"{trial.subject.name} offers no {capability}")
    expected = rule(trial.client.contract, state, operation)
    if isinstance(expected, Unspecified):
        raise NotOffered(expected.why)
    spec, container = trial.moored(state)
    assert trial.state(spec, container) is state, "the container did not get into the state that the move starts from"
    before = trial.init(spec)
    move = _moves(trial)[operation]

    def unchanged() -> None:
        assert trial.state(spec, container) is state, "the wrong move changed the container's state"
        assert trial.init(spec) == before, "the wrong move changed the container's process"

    match expected:
        case Goes(to):
            move(container)
            if to is State.PAUSED:
                trial.await_frozen(spec)
            assert trial.state(spec, container) is to
        case Refuses(kind):
            _is_refused(lambda: move(container), kind, f"{operation} of a container that is {state}")
            unchanged()
        case Tolerates():
            with contextlib.suppress(RuntimeRefusal):
                move(container)
            unchanged()


@pytest.mark.operation("remove")
def test_remove_twice(trial: Trial) -> None:
    """CRI: idempotent; all others know no such container."""
    container = trial.launch(trial.spec())
    trial.client.stop(container, 5)
    trial.client.remove(container)
    match rule(trial.client.contract, State.ABSENT, Operation.REMOVE):
        case Goes():
            trial.client.remove(container)
        case Refuses(kind):
            _is_refused(lambda: trial.client.remove(container), kind, "the second removal")
    assert trial.client.state(container) is State.ABSENT


@pytest.mark.operation("create")
@pytest.mark.needs(Capability.IMAGES)
def test_create_from_an_unknown_image_is_refused(trial: Trial) -> None:
    spec = trial.spec()
    unknown = ContainerSpec(spec.name, trial.image("seatrial/never-pulled:1"), spec.argv, sandbox=spec.sandbox)
    with pytest.raises((NotFound, Refused)):
        trial.client.create(unknown)
    assert not trial.init(unknown)
