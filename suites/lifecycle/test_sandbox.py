"""Pods: what a kubelet does first and last (RunPodSandbox, StopPodSandbox, RemovePodSandbox)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.clock import wait_until
from harness.errors import NotFound
from harness.model.capability import Capability
from harness.model.lifecycle import State
from harness.session.trial import Trial

pytestmark = pytest.mark.needs(Capability.SANDBOX)


@pytest.fixture
def pod(trial: Trial) -> Iterator[str]:
    """A sandbox of the test's own."""
    sandbox = trial.run_sandbox()
    yield sandbox
    trial.discard("", sandbox)


@pytest.mark.operation("run_sandbox")
def test_sandbox_is_ready(trial: Trial) -> None:
    pod = trial.sandbox()
    assert trial.client.sandbox_exists(pod)
    assert trial.client.sandbox_ready(pod)


@pytest.mark.operation("run_sandbox")
def test_failed_container_is_started_again(trial: Trial, pod: str) -> None:
    """A kubelet's way: sandbox, image, create, start, watch; when it fails, create and start another in the same pod."""
    client = trial.client
    image = trial.image()
    client.pull(image)
    first = trial.create(trial.spec(("/bin/sh", "-c", "echo ready; sleep 0.1; exit 9"), stem="attempt-0", sandbox=pod))
    client.start(first)
    trial.await_state(first, State.STOPPED)
    assert client.exit_code(first) == 9
    assert client.sandbox_ready(pod), "the sandbox went down with its container"
    spec = trial.spec(stem="attempt-1", sandbox=pod)
    second = trial.launch(spec)
    assert client.exec(second, ("/bin/true",)).exit_code == 0
    assert trial.init(spec), "the second attempt does not run"
    assert client.state(first) is State.STOPPED, "the second attempt brought the first one back"


@pytest.mark.operation("stop_sandbox")
def test_stop_sandbox_ends_its_containers(trial: Trial, pod: str) -> None:
    """CRI: "If there are any running containers in the sandbox, they must be forcibly terminated"."""
    spec = trial.spec(sandbox=pod)
    container = trial.launch(spec)
    init = trial.init(spec)[0]
    trial.client.stop_sandbox(pod)
    wait_until(lambda: not init.alive, 5, f"pid {init.pid} to end with its sandbox")
    assert not trial.client.sandbox_ready(pod)
    trial.await_state(container, State.STOPPED)


@pytest.mark.operation("stop_sandbox")
def test_stop_sandbox_twice(trial: Trial, pod: str) -> None:
    """CRI: "This call is idempotent, and must not return an error if all relevant resources have been reclaimed"."""
    trial.client.stop_sandbox(pod)
    trial.client.stop_sandbox(pod)
    assert not trial.client.sandbox_ready(pod)
    assert trial.client.sandbox_exists(pod), "a stopped sandbox is gone before its removal"


@pytest.mark.exclusive
@pytest.mark.operation("remove_sandbox")
def test_remove_sandbox_leaves_nothing(trial: Trial) -> None:
    """Its containers are removed with it; no process of theirs and no network namespace's mount is left."""
    trial.sandbox()
    mounts = {mount.target for mount in trial.witness.mounts()}
    pod = trial.run_sandbox()
    spec = trial.spec(sandbox=pod)
    container = trial.launch(spec)
    init = trial.init(spec)[0]
    trial.client.stop_sandbox(pod)
    trial.client.remove_sandbox(pod)
    assert not trial.client.sandbox_exists(pod)
    assert trial.client.state(container) is State.ABSENT
    assert not init.alive
    wait_until(lambda: {mount.target for mount in trial.witness.mounts()} <= mounts, 2, "the sandbox's mounts to go")


@pytest.mark.operation("remove_sandbox")
def test_remove_sandbox_twice(trial: Trial, pod: str) -> None:
    """CRI: "This call is idempotent, and must not return an error if the sandbox has already been removed"."""
    trial.client.stop_sandbox(pod)
    trial.client.remove_sandbox(pod)
    trial.client.remove_sandbox(pod)
    assert not trial.client.sandbox_exists(pod)


@pytest.mark.operation("create")
def test_create_in_an_unknown_sandbox_is_refused(trial: Trial) -> None:
    with pytest.raises(NotFound):
        trial.create(trial.spec(sandbox="0" * 64))
