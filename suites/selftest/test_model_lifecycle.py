"""The table of moves is whole, and says what the contracts say."""

from __future__ import annotations

import pytest

from harness.model.lifecycle import RULES, Contract, Goes, Kind, Operation, Refuses, State, Tolerates, Unspecified, rule

MOVES = [
    Operation.START,
    Operation.EXEC,
    Operation.PAUSE,
    Operation.RESUME,
    Operation.STOP,
    Operation.REMOVE,
]


def test_every_move_from_every_state_has_a_rule_for_every_contract() -> None:
    assert set(RULES) == {(state, operation) for state in State for operation in MOVES}
    assert all(set(rules) == set(Contract) for rules in RULES.values())


@pytest.mark.parametrize("contract", Contract)
def test_the_voyage_is_legal(contract: Contract) -> None:
    """Created, started, paused, resumed, stopped, removed: legal everywhere, and each leads to the next."""
    state = State.CREATED
    for operation, then in [
        (Operation.START, State.RUNNING),
        (Operation.EXEC, State.RUNNING),
        (Operation.PAUSE, State.PAUSED),
        (Operation.RESUME, State.RUNNING),
        (Operation.STOP, State.STOPPED),
        (Operation.REMOVE, State.ABSENT),
    ]:
        assert rule(contract, state, operation) == Goes(then)
        state = then


@pytest.mark.parametrize("contract", Contract)
def test_what_is_absent_is_not_found_or_stays_absent(contract: Contract) -> None:
    for operation in MOVES:
        expected = rule(contract, State.ABSENT, operation)
        assert expected in (Refuses(Kind.NOT_FOUND), Goes(State.ABSENT)) or isinstance(expected, Tolerates)


@pytest.mark.parametrize("contract", Contract)
def test_nothing_runs_in_a_container_that_does_not(contract: Contract) -> None:
    for state in (State.CREATED, State.PAUSED, State.STOPPED):
        if (contract, state) == (Contract.OCI, State.CREATED):
            continue
        assert rule(contract, state, Operation.EXEC) == Refuses(Kind.CONFLICT)


def test_cri_removal_is_forcible_and_idempotent_and_others_refuse() -> None:
    assert rule(Contract.CRI, State.RUNNING, Operation.REMOVE) == Goes(State.ABSENT)
    assert rule(Contract.CRI, State.ABSENT, Operation.REMOVE) == Goes(State.ABSENT)
    for contract in (Contract.DOCKER, Contract.NATIVE, Contract.OCI):
        assert rule(contract, State.RUNNING, Operation.REMOVE) == Refuses(Kind.CONFLICT)
        assert rule(contract, State.ABSENT, Operation.REMOVE) == Refuses(Kind.NOT_FOUND)


def test_silence_has_a_reason() -> None:
    silent = [rule for rules in RULES.values() for rule in rules.values() if isinstance(rule, Tolerates | Unspecified)]
    assert all(rule.why for rule in silent)


def test_only_container_moves_have_rules() -> None:
    with pytest.raises(KeyError):
        rule(Contract.CRI, State.CREATED, Operation.PULL)
