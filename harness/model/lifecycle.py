"""The voyage of a container: its states, its operations, and which may follow which.

`RULES` is the one place that says what a move means. The legal moves drive the voyage, all others are the wrong moves
that a runtime has to refuse without changing anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """State of a container as its runtime reports it. `ABSENT`: the runtime knows no such container."""

    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Operation(StrEnum):
    """A step of the voyage, in the order in which a kubelet takes them."""

    RUN_SANDBOX = "run_sandbox"
    PULL = "pull"
    PULL_AGAIN = "pull_again"
    CREATE = "create"
    START = "start"
    EXEC = "exec"
    PAUSE = "pause"
    RESUME = "resume"
    LOGS = "logs"
    STOP = "stop"
    REMOVE = "remove"
    STOP_SANDBOX = "stop_sandbox"
    REMOVE_SANDBOX = "remove_sandbox"
    REMOVE_IMAGE = "remove_image"


POD_CALLS = (
    Operation.RUN_SANDBOX,
    Operation.CREATE,
    Operation.START,
    Operation.EXEC,
    Operation.STOP,
    Operation.REMOVE,
    Operation.STOP_SANDBOX,
    Operation.REMOVE_SANDBOX,
)
"""The eight calls of one pod with one container whose image is there already; the exec is a probe's."""


class Contract(StrEnum):
    """The specification that a client's calls are held to.

    CRI: the Container Runtime Interface v1 (k8s.io/cri-api); DOCKER: the Docker Engine API; NATIVE: containerd's own
    container and task services; OCI: runtime-spec, "Runtime and Lifecycle", and where that is silent what runc does.
    """

    CRI = "cri"
    DOCKER = "docker"
    NATIVE = "native"
    OCI = "oci"


class Kind(StrEnum):
    """The kinds of refusal; `harness.errors` has an exception class for each but the first."""

    ANY = "any"
    """an error is due, and no contract says which"""
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Goes:
    """The move is legal and ends in `to` (the same state: it is idempotent, and must say so by succeeding)."""

    to: State


@dataclass(frozen=True, slots=True)
class Refuses:
    """The move is wrong: an error of this kind, and nothing changes."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Tolerates:
    """The contract is silent: an error or none, but nothing changes."""

    why: str


@dataclass(frozen=True, slots=True)
class Unspecified:
    """The contract is silent and runtimes differ for good reasons; the suite tries nothing here."""

    why: str


Rule = Goes | Refuses | Tolerates | Unspecified

_missing: Rule = Refuses(Kind.NOT_FOUND)
_wrong: Rule = Refuses(Kind.CONFLICT)
_no_task: Rule = Refuses(Kind.ANY)
_removed: Rule = Goes(State.ABSENT)
_running: Rule = Goes(State.RUNNING)
_paused: Rule = Goes(State.PAUSED)
_stopped: Rule = Goes(State.STOPPED)
_kills_created: Rule = Unspecified("runtimes differ on whether a container that never ran can be stopped")
_early_pause: Rule = Unspecified("runtime-spec knows no pause; runc and crun freeze a container that is only created")
_unknown: Rule = Tolerates("CRI: StopContainer is idempotent, which some read to include what was never there")
_twice: Rule = Tolerates("no contract knows pause; runc refuses it where it changes nothing, crun does not")
_early_remove: Rule = Unspecified("runtime-spec asks for an error; runc and crun delete it, and engines rely on that")
_early_exec: Rule = Unspecified("runtime-spec knows no exec; runc and crun run one in a container that is only created")
_thaws: Rule = Unspecified("runtimes differ on whether a signal may wait until the container is resumed")

# CRI documents StopContainer and RemoveContainer as idempotent ("must not return an error if the container has already
# been stopped / removed") and RemoveContainer as forcible ("if the container is running, the container must be
# forcibly removed"). The Engine API answers 304 for what is already started or stopped, which is not an error. OCI:
# "start: attempting to start a container that is not created MUST ... generate an error", and the same sentence for
# kill (created or running) and delete (stopped).
# fmt: off
RULES: Mapping[tuple[State, Operation], Mapping[Contract, Rule]] = {
    key: dict(zip(Contract, rules, strict=True))
    for key, rules in {
        #                                    CRI             DOCKER          NATIVE          OCI
        (State.CREATED, Operation.START):   (_running,       _running,       _running,       _running),
        (State.CREATED, Operation.EXEC):    (_wrong,         _wrong,         _wrong,         _early_exec),
        (State.CREATED, Operation.PAUSE):   (_no_task,       _wrong,         _no_task,       _early_pause),
        (State.CREATED, Operation.RESUME):  (_no_task,       _wrong,         _no_task,       _twice),
        (State.CREATED, Operation.STOP):    (_kills_created, _kills_created, _kills_created, _stopped),
        (State.CREATED, Operation.REMOVE):  (_removed,       _removed,       _removed,       _early_remove),
        (State.RUNNING, Operation.START):   (_wrong,         _running,       _wrong,         _wrong),
        (State.RUNNING, Operation.EXEC):    (_running,       _running,       _running,       _running),
        (State.RUNNING, Operation.PAUSE):   (_paused,        _paused,        _paused,        _paused),
        (State.RUNNING, Operation.RESUME):  (_twice,         _wrong,         _twice,         _twice),
        (State.RUNNING, Operation.STOP):    (_stopped,       _stopped,       _stopped,       _stopped),
        (State.RUNNING, Operation.REMOVE):  (_removed,       _wrong,         _wrong,         _wrong),
        (State.PAUSED, Operation.START):    (_wrong,         _wrong,         _wrong,         _wrong),
        (State.PAUSED, Operation.EXEC):     (_wrong,         _wrong,         _wrong,         _wrong),
        (State.PAUSED, Operation.PAUSE):    (_twice,         _wrong,         _twice,         _twice),
        (State.PAUSED, Operation.RESUME):   (_running,       _running,       _running,       _running),
        (State.PAUSED, Operation.STOP):     (_thaws,         _thaws,         _thaws,         _thaws),
        (State.PAUSED, Operation.REMOVE):   (_thaws,         _wrong,         _wrong,         _wrong),
        (State.STOPPED, Operation.START):   (_wrong,         _running,       _wrong,         _wrong),
        (State.STOPPED, Operation.EXEC):    (_wrong,         _wrong,         _wrong,         _wrong),
        (State.STOPPED, Operation.PAUSE):   (_no_task,       _wrong,         _no_task,       _wrong),
        (State.STOPPED, Operation.RESUME):  (_no_task,       _wrong,         _no_task,       _wrong),
        (State.STOPPED, Operation.STOP):    (_stopped,       _stopped,       _wrong,         _wrong),
        (State.STOPPED, Operation.REMOVE):  (_removed,       _removed,       _removed,       _removed),
        (State.ABSENT, Operation.START):    (_missing,       _missing,       _missing,       _missing),
        (State.ABSENT, Operation.EXEC):     (_missing,       _missing,       _missing,       _missing),
        (State.ABSENT, Operation.PAUSE):    (_missing,       _missing,       _missing,       _missing),
        (State.ABSENT, Operation.RESUME):   (_missing,       _missing,       _missing,       _missing),
        (State.ABSENT, Operation.STOP):     (_unknown,       _missing,       _missing,       _missing),
        (State.ABSENT, Operation.REMOVE):   (_removed,       _missing,       _missing,       _missing),
    }.items()
}
# fmt: on


def rule(contract: Contract, state: State, operation: Operation) -> Rule:
    """What `contract` says of `operation` on a container in `state`.

    Raises `KeyError` for an operation that does not act on a container (pull, sandboxes).
    """
    return RULES[state, operation][contract]
