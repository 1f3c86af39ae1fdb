"""The voyage: one container through the steps of the lifecycle in a kubelet's order, each checked from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

from harness.clock import wait_until
from harness.errors import WaitTimeout
from harness.model.capability import WHY_NOT, Capability
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network
from harness.model.lifecycle import Operation, State
from harness.session.trial import GRACE_S, SLEEPER, Trial

WHOLE = tuple(Operation)
START_S = 1.0
"""for a program to be seen after its start; a busy machine may take a moment"""


def sail(trial: Trial, network: Network, calls: Collection[Operation] = WHOLE) -> None:
    """Take one container through every step that the subject offers, and check each from outside.

    `calls` leaves steps out: without the pulls, the image has to be there. Steps that create something, and the ones that
    take it away, go together. Raises `StepFailed`; nothing is left of the container and its pod then.
    """
    aboard: dict[str, str] = {}
    try:
        _sail(trial, network, calls, aboard)
    except BaseException:
        trial.discard(aboard.get("container", ""), aboard.get("sandbox", ""))
        raise


def _sail(trial: Trial, network: Network, calls: Collection[Operation], aboard: dict[str, str]) -> None:
    client, perform, witness = trial.client, trial.steps.perform, trial.witness
    image = trial.image()
    sandbox = ""
    if _offered(trial, calls, Capability.SANDBOX, Operation.RUN_SANDBOX):
        pod = trial.name("pod")
        sandbox = aboard["sandbox"] = perform(
            Operation.RUN_SANDBOX,
            lambda: client.run_sandbox(pod, network),
            lambda it: "" if client.sandbox_ready(it) else "the sandbox is not ready",
        )
    if _offered(trial, calls, Capability.IMAGES, Operation.PULL, Operation.PULL_AGAIN):
        for operation in (Operation.PULL, Operation.PULL_AGAIN):
            perform(
                operation,
                lambda: client.pull(image),
                lambda _: "" if client.has_image(image) else "the image is not there after its pull",
            )
    spec = ContainerSpec(trial.name("sail"), image, SLEEPER, network=network, sandbox=sandbox)
    container = aboard["container"] = perform(
        Operation.CREATE, lambda: client.create(spec), lambda it: _wrong(trial, spec, it, State.CREATED)
    )

    def ends_in(state: State) -> Callable[[None], str]:
        return lambda _: _wrong(trial, spec, container, state)

    perform(Operation.START, lambda: client.start(container), ends_in(State.RUNNING))
    processes = witness.processes(spec.name)
    folders = witness.cgroup_folders(processes[0]) if processes else []
    trial.await_word(container, "ready")
    if _offered(trial, calls, Capability.EXEC, Operation.EXEC):
        perform(Operation.EXEC, lambda: client.exec(container, ("/bin/echo", "ahoy")), _says("ahoy"))
    if _offered(trial, calls, Capability.PAUSE, Operation.PAUSE, Operation.RESUME):
        perform(Operation.PAUSE, lambda: client.pause(container), ends_in(State.PAUSED))
        perform(Operation.RESUME, lambda: client.resume(container), ends_in(State.RUNNING))
    if _offered(trial, calls, Capability.LOGS, Operation.LOGS):
        perform(Operation.LOGS, lambda: client.logs(container), _holds("ready"))
    perform(Operation.STOP, lambda: client.stop(container, GRACE_S), ends_in(State.STOPPED))
    perform(
        Operation.REMOVE,
        lambda: client.remove(container),
        lambda _: (
            f"the cgroup {left[0]} is still there"
            if (left := [folder for folder in folders if folder.exists()])
            else _wrong(trial, spec, container, State.ABSENT)
        ),
    )
    if _offered(trial, calls, Capability.SANDBOX, Operation.STOP_SANDBOX, Operation.REMOVE_SANDBOX):
        perform(
            Operation.STOP_SANDBOX,
            lambda: client.stop_sandbox(sandbox),
            lambda _: "the sandbox is still ready" if client.sandbox_ready(sandbox) else "",
        )
        perform(
            Operation.REMOVE_SANDBOX,
            lambda: client.remove_sandbox(sandbox),
            lambda _: "the sandbox is still listed" if client.sandbox_exists(sandbox) else "",
        )
    if _offered(trial, calls, Capability.IMAGES, Operation.REMOVE_IMAGE):
        perform(
            Operation.REMOVE_IMAGE,
            lambda: client.remove_image(image),
            lambda _: "the image is still there" if client.has_image(image) else "",
        )


def _offered(trial: Trial, calls: Collection[Operation], capability: Capability, *operations: Operation) -> bool:
    if not set(operations) <= set(calls):
        return False
    if trial.offers(capability):
        return True
    for operation in operations:
        trial.steps.not_offered(operation, f"{trial.subject.name} {WHY_NOT[capability]}")
    return False


def _wrong(trial: Trial, spec: ContainerSpec, container: str, wanted: State) -> str:
    """What is wrong with a container that should be in state `wanted`: the runtime is asked, and then the kernel."""
    if wanted is State.PAUSED:
        trial.await_frozen(spec)
    state = trial.state(spec, container)
    if state is not wanted:
        return f"the runtime reports {state}, not {wanted}"
    init = trial.init(spec)
    if wanted is State.RUNNING and not init:
        # A start ends when the program is let go; until it has replaced the runtime's own code it has no environment.
        with contextlib.suppress(WaitTimeout):
            init = wait_until(lambda: trial.init(spec), START_S, "the container's program")
    if wanted in (State.RUNNING, State.PAUSED) and not init:
        return f"the runtime reports {state}, and the kernel has no such process"
    if wanted in (State.STOPPED, State.ABSENT) and init:
        return f"the runtime reports {state}, and pid {init[0].pid} is alive"
    return ""


def _says(word: str) -> Callable[[ExecResult], str]:
    def wrong(result: ExecResult) -> str:
        if result.exit_code != 0 or result.stdout.decode(errors="replace").strip() != word:
            return f"exec gave {result.stdout!r} and status {result.exit_code}, not {word!r} and 0"
        return ""

    return wrong


def _holds(word: str) -> Callable[[list[LogLine]], str]:
    return lambda lines: "" if any(line.text == word for line in lines) else f"the log has no line {word!r}"
