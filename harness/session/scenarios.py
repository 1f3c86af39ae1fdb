"""How each scenario of a bench is performed.

A scenario is a context manager over one trial: it brings the engine to where the turns begin, gives a function that takes
one turn, and takes everything down again. All that is measured goes through `Stepper`, so that it is checked and recorded.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType

from harness.client.verbs import Lister
from harness.clock import wait_until
from harness.errors import SeatrialError, WaitTimeout
from harness.image.heavy import HEAVY
from harness.model.bench import FRESH, LIST, WEIGH
from harness.model.container import Network
from harness.model.lifecycle import POD_CALLS, Operation
from harness.session.trial import Trial
from harness.session.voyage import sail

SLOPE = (0, 0.025, 0.05, 0.1)
"""at how many pods an engine is weighed, as shares of `Scale.many`: 0, 5, 10 and 20 of 200"""
QUIET_PAUSE_S, QUIET_ROUNDS, QUIET_SHARE = 0.02, 5, 0.02
"""an engine is at rest that has used less than a fiftieth of a CPU in five pauses on end"""
IDLER = ("/bin/sleep", "86400")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. `many`: pods and containers where a scenario is about many of them."""

    many: int = 200
    calls: int = 5
    """times that a short call is made in one turn"""
    voyages: int = 5
    """times that a pod is made and taken down at each load"""


Sail = Callable[[], None]
Performance = Callable[[Trial, Scale], AbstractContextManager[Sail]]


@contextlib.contextmanager
def pod_host(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """One voyage a turn, through the calls of a kubelet."""
    yield from _voyages(trial, Network.HOST)


@contextlib.contextmanager
def pod_bridge(trial: Trial, scale: Scale) -> Iterator[Sail]:
    yield from _voyages(trial, Network.BRIDGE)


def _voyages(trial: Trial, network: Network) -> Iterator[Sail]:
    trial.client.pull(trial.image())

    def turn() -> None:
        trial.steps.network = network
        sail(trial, network, POD_CALLS)

    yield turn


@contextlib.contextmanager
def execute(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Some execs a turn, in a container that runs all the time."""
    pod, container = _start_pod(trial)

    def turn() -> None:
        for trial.steps.iteration in range(scale.calls):
            trial.steps.perform(
                Operation.EXEC,
                lambda: trial.client.exec(container, ("/bin/true",)),
                lambda ended: f"true ended with {ended.exit_code}" if ended.exit_code else "",
            )

    with _taking_down(trial, [(pod, container)]):
        yield turn


@contextlib.contextmanager
def list_containers(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Some listings a turn; the containers are in one pod."""
    client = trial.client
    if not isinstance(client, Lister):
        raise SeatrialError(f"{trial.subject.name}: its client cannot list containers")
    client.pull(trial.image())
    pod = trial.run_sandbox()
    made: list[tuple[str, str]] = []

    def missing(listed: list[str]) -> str:
        absent = {container for _, container in made} - set(listed)
        return f"{len(absent)} of {len(made)} containers are not listed" if absent else ""

    def turn() -> None:
        trial.steps.load = scale.many
        for trial.steps.iteration in range(scale.calls):
            trial.steps.perform(LIST, client.list_containers, missing)

    with _taking_down(trial, made):
        made.extend((pod, trial.create(trial.spec(IDLER, sandbox=pod))) for _ in range(scale.many))
        yield turn


@contextlib.contextmanager
def pull(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """One pull a turn, of an image whose every layer is unknown to the engine. It is removed at once."""
    image = trial.image(HEAVY)
    client = trial.client

    def turn() -> None:
        # Nobody should wait for the disk to take what the one before wrote.
        os.sync()
        trial.steps.perform(
            Operation.PULL,
            lambda: client.pull(image),
            lambda _: "" if client.has_image(image) else "the image is not there after its pull",
        )
        client.remove_image(image)

    yield turn


@contextlib.contextmanager
def weigh(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """The engine is weighed as it has just started, then after some work, then with more and more pods."""
    steps = trial.steps
    daemon = next(iter(trial.engine.pids), 0)
    made: list[tuple[str, str]] = []

    def weighed(operation: str) -> None:
        _await_quiet(trial)
        steps.load = len(made)
        steps.weigh(operation, daemon)

    def turn() -> None:
        trial.client.version()
        weighed(FRESH)
        with _taking_down(trial, [_start_pod(trial)]):
            pass
        for share in SLOPE:
            while len(made) < share * scale.many:
                made.append(_start_pod(trial))
            weighed(WEIGH)

    with _taking_down(trial, made):
        yield turn


@contextlib.contextmanager
def load(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Voyages while no other pod is there, while many run, and while none does again."""
    steps = trial.steps
    made: list[tuple[str, str]] = []

    def voyages(first: int) -> None:
        steps.load = len(made)
        for steps.iteration in range(first, first + scale.voyages):
            sail(trial, Network.HOST, POD_CALLS)

    def turn() -> None:
        steps.network = Network.HOST
        with _taking_down(trial, [_start_pod(trial)]):
            pass
        voyages(0)
        with _taking_down(trial, made):
            while len(made) < scale.many:
                made.append(_start_pod(trial))
            _await_quiet(trial)
            voyages(scale.voyages)
        made.clear()
        _await_quiet(trial)
        voyages(2 * scale.voyages)

    yield turn


PERFORMANCES: Mapping[str, Performance] = MappingProxyType(
    {
        "pod-host": pod_host,
        "pod-bridge": pod_bridge,
        "exec": execute,
        "list": list_containers,
        "pull": pull,
        "memory": weigh,
        "load": load,
    }
)
"""By the name of the scenario (`harness.model.bench`)."""


def _start_pod(trial: Trial) -> tuple[str, str]:
    """A pod with one container that does nothing: their ids."""
    pod = trial.run_sandbox()
    container = trial.create(trial.spec(IDLER, sandbox=pod))
    trial.client.start(container)
    return pod, container


@contextlib.contextmanager
def _taking_down(trial: Trial, made: list[tuple[str, str]]) -> Iterator[None]:
    """Remove the containers and pods of `made`, also such as are added meanwhile."""
    try:
        yield
    finally:
        for _, container in made:
            trial.discard(container, paused=False)
        for pod in dict.fromkeys(pod for pod, _ in made):
            trial.discard("", pod)


def _await_quiet(trial: Trial) -> None:
    """Wait until the engine has not used any CPU for a moment; one that never rests is measured as it is."""
    still = 0
    last, then = trial.meter.cpu().engine, time.monotonic_ns()

    def quiet() -> bool:
        nonlocal still, last, then
        used, now = trial.meter.cpu().engine, time.monotonic_ns()
        if used is None or last is None:
            return True
        still = still + 1 if used - last < QUIET_SHARE * (now - then) else 0
        last, then = used, now
        return still >= QUIET_ROUNDS

    with contextlib.suppress(WaitTimeout):
        wait_until(quiet, 5, f"{trial.subject.name} to come to rest", longest_pause_s=QUIET_PAUSE_S)
