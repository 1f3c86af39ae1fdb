"""The measured voyage: every step of the lifecycle in a kubelet's order, alone on the machine, in balanced turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.model.capability import WHY_NOT, Capability
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network
from harness.model.lifecycle import Operation, State
from harness.model.subject import Subject
from harness.plugin import Fleet
from harness.session.trial import GRACE_S, SLEEPER, Trial
from harness.session.turns import Turn

pytestmark = pytest.mark.measured


def test_voyage(turn: Turn[Subject], fleet: Fleet, request: pytest.FixtureRequest) -> None:
    """One voyage on the host's network, and one on a network of its own where the subject sets up such.

    The first turn of a subject warms it up (page cache, lazily loaded parts); its records are kept apart.
    """
    trial = fleet.trial(turn.subject)
    steps = trial.steps
    steps.suite, steps.test = "lifecycle", request.node.name
    steps.block = turn.block
    steps.failures.clear()
    for network in Network:
        if network is Network.BRIDGE and not trial.offers(Capability.BRIDGE):
            continue
        steps.network = network.value
        sail(trial, network)
    assert not steps.failures, "; ".join(steps.failures)


def sail(trial: Trial, network: Network) -> None:
    """Take one container through every step that the subject offers, and check each from outside."""
    client, steps, witness = trial.client, trial.steps, trial.witness
    image = trial.image()
    sandbox = ""

    if _offered(trial, Capability.SANDBOX, Operation.RUN_SANDBOX):
        pod = trial.name("pod")
        sandbox = steps.perform(
            Operation.RUN_SANDBOX,
            lambda: client.run_sandbox(pod, network),
            lambda it: "" if client.sandbox_ready(it) else "the sandbox is not ready",
        )
    if _offered(trial, Capability.IMAGES, Operation.PULL, Operation.PULL_AGAIN):
        for operation in (Operation.PULL, Operation.PULL_AGAIN):
            steps.perform(
                operation,
                lambda: client.pull(image),
                lambda _: "" if client.has_image(image) else "the image is not there after its pull",
            )
    spec = ContainerSpec(trial.name("sail"), image, SLEEPER, network=network, sandbox=sandbox)
    container = steps.perform(Operation.CREATE, lambda: client.create(spec), _in_state(trial, spec, State.CREATED))
    try:
        steps.perform(Operation.START, lambda: client.start(container), _now(trial, spec, container, State.RUNNING))
        processes = witness.processes(spec.name)
        folders = witness.cgroup_folders(processes[0]) if processes else []
        trial.await_word(container, "ready")
        if _offered(trial, Capability.EXEC, Operation.EXEC):
            steps.perform(Operation.EXEC, lambda: client.exec(container, ("/bin/echo", "ahoy")), _says("ahoy"))
        if _offered(trial, Capability.PAUSE, Operation.PAUSE, Operation.RESUME):
            steps.perform(Operation.PAUSE, lambda: client.pause(container), _now(trial, spec, container, State.PAUSED))
            steps.perform(
                Operation.RESUME, lambda: client.resume(container), _now(trial, spec, container, State.RUNNING)
            )
        if _offered(trial, Capability.LOGS, Operation.LOGS):
            steps.perform(Operation.LOGS, lambda: client.logs(container), _holds("ready"))
        steps.perform(
            Operation.STOP,
            lambda: client.stop(container, GRACE_S),
            lambda _: (
                f"pid {processes[0].pid} is alive after the stop"
                if processes and processes[0].alive
                else _now(trial, spec, container, State.STOPPED)(None)
            ),
        )
        steps.perform(
            Operation.REMOVE,
            lambda: client.remove(container),
            lambda _: (
                f"the cgroup {left[0]} is still there"
                if (left := [folder for folder in folders if folder.exists()])
                else _now(trial, spec, container, State.ABSENT)(None)
            ),
        )
    except BaseException:
        trial.discard(container, sandbox)
        raise
    if sandbox:
        steps.perform(
            Operation.STOP_SANDBOX,
            lambda: client.stop_sandbox(sandbox),
            lambda _: "the sandbox is still ready" if client.sandbox_ready(sandbox) else "",
        )
        steps.perform(
            Operation.REMOVE_SANDBOX,
            lambda: client.remove_sandbox(sandbox),
            lambda _: "the sandbox is still listed" if client.sandbox_exists(sandbox) else "",
        )
    else:
        _offered(trial, Capability.SANDBOX, Operation.STOP_SANDBOX, Operation.REMOVE_SANDBOX)
    if _offered(trial, Capability.IMAGES, Operation.REMOVE_IMAGE):
        steps.perform(
            Operation.REMOVE_IMAGE,
            lambda: client.remove_image(image),
            lambda _: "the image is still there" if client.has_image(image) else "",
        )


def _offered(trial: Trial, capability: Capability, *operations: Operation) -> bool:
    if trial.offers(capability):
        return True
    for operation in operations:
        trial.steps.not_offered(operation, f"{trial.subject.name} {WHY_NOT[capability]}")
    return False


def _in_state(trial: Trial, spec: ContainerSpec, wanted: State) -> Callable[[str], str]:
    return lambda container: _now(trial, spec, container, wanted)(None)


def _now(trial: Trial, spec: ContainerSpec, container: str, wanted: State) -> Callable[[None], str]:
    """Ask the runtime for the state, and the kernel whether it is true."""

    def wrong(_: None) -> str:
        state = trial.state(spec, container)
        if state is not wanted:
            return f"the runtime reports {state}, not {wanted}"
        init = trial.init(spec)
        if wanted in (State.RUNNING, State.PAUSED) and not init:
            return f"the runtime reports {state}, and the kernel has no such process"
        if wanted in (State.STOPPED, State.ABSENT) and init:
            return f"the runtime reports {state}, and pid {init[0].pid} is alive"
        return ""

    return wrong


def _says(word: str) -> Callable[[ExecResult], str]:
    def wrong(result: ExecResult) -> str:
        if result.exit_code != 0 or result.stdout.decode(errors="replace").strip() != word:
            return f"exec gave {result.stdout!r} and status {result.exit_code}, not {word!r} and 0"
        return ""

    return wrong


def _holds(word: str) -> Callable[[list[LogLine]], str]:
    return lambda lines: "" if any(line.text == word for line in lines) else f"the log has no line {word!r}"
