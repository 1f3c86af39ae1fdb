"""Create, start, end and remove a container; after each step the runtime is asked, and the kernel too."""

from __future__ import annotations

import pytest

from harness.clock import wait_until
from harness.errors import RuntimeRefusal
from harness.model.capability import Capability
from harness.model.container import Network
from harness.model.lifecycle import State
from harness.session.trial import STUBBORN, Trial


@pytest.mark.operation("create")
def test_create_starts_nothing(trial: Trial) -> None:
    """runtime-spec, create: "... must not run the user-specified program at this time"."""
    spec, container = trial.moored(State.CREATED)
    assert trial.client.state(container) is State.CREATED
    assert not trial.init(spec), "the container's program runs, and nobody has started it"


@pytest.mark.operation("start")
def test_start_runs_the_program(trial: Trial) -> None:
    """The kernel has the program, with the arguments asked for, in a PID namespace of its own, below our cgroup."""
    spec, container = trial.moored(State.RUNNING)
    assert trial.state(spec, container) is State.RUNNING
    processes = trial.init(spec)
    assert processes, "the runtime reports a running container, and the kernel has no process of it"
    pid = processes[0].pid
    words = (trial.witness.command_line(pid)).split("\0")
    assert tuple(words[: len(spec.argv)]) == spec.argv, f"the kernel runs {words}"
    assert trial.witness.namespace(pid, "pid") != trial.witness.namespace(trial.arena.keeper_pid, "pid")
    assert trial.witness.namespace(pid, "mnt") != trial.witness.namespace(trial.arena.keeper_pid, "mnt")
    assert trial.witness.cgroup_folders(processes[0]), "the program is in no cgroup of its own"


@pytest.mark.operation("start")
def test_environment_reaches_the_program(trial: Trial) -> None:
    spec = trial.spec(("/bin/sh", "-c", 'echo "$HARBOUR"; sleep 3600 & wait'), env=(("HARBOUR", "deep water = good"),))
    container = trial.launch(spec, word="deep water = good")
    try:
        pid = trial.init(spec)[0].pid
        assert "HARBOUR=deep water = good" in trial.witness.environment(pid).split("\0")
    finally:
        trial.discard(container)


@pytest.mark.operation("start")
def test_start_of_a_missing_program_is_an_error(trial: Trial) -> None:
    """An error of create or of start, and no process left; the container can be removed."""
    spec = trial.spec(("/no/such/program",))
    container = ""
    try:
        with pytest.raises(RuntimeRefusal) as caught:
            container = trial.create(spec)
            trial.client.start(container)
        assert "no/such/program" in str(caught.value) or "no such file" in str(caught.value).lower(), (
            f"the error does not say what is missing: {caught.value}"
        )
        assert not trial.init(spec)
    finally:
        if container:
            trial.discard(container)


@pytest.mark.operation("start")
@pytest.mark.needs(Capability.EXIT_CODE)
@pytest.mark.parametrize("status", [0, 3])
def test_exit_status_is_kept(trial: Trial, status: int) -> None:
    """A program that ends by itself leaves a stopped container and its status behind."""
    container = trial.launch(trial.spec(("/bin/sh", "-c", f"exit {status}")), word="")
    try:
        trial.await_state(container, State.STOPPED)
        assert trial.client.exit_code(container) == status
    finally:
        trial.discard(container)


@pytest.mark.operation("start")
def test_host_network_is_the_engines(trial: Trial) -> None:
    spec, _ = trial.moored(State.RUNNING)
    pid = trial.init(spec)[0].pid
    assert trial.witness.namespace(pid, "net") == trial.witness.namespace(trial.arena.keeper_pid, "net")


@pytest.mark.operation("start")
@pytest.mark.needs(Capability.BRIDGE, Capability.EXEC)
def test_bridge_network_is_the_containers_own(trial: Trial) -> None:
    """A namespace of its own, with an interface that has an address and a way out."""
    spec = trial.spec(network=Network.BRIDGE)
    container = trial.launch(spec)
    try:
        pid = trial.init(spec)[0].pid
        assert trial.witness.namespace(pid, "net") != trial.witness.namespace(trial.arena.keeper_pid, "net")
        shown = trial.client.exec(container, ("/bin/sh", "-c", "/bin/ip -4 addr show eth0 && /bin/ip route"))
        assert shown.exit_code == 0 and b"inet " in shown.stdout, f"eth0 has no address: {shown}"
        assert b"default via" in shown.stdout, f"there is no default route: {shown.stdout!r}"
    finally:
        trial.discard(container)


@pytest.mark.operation("stop")
def test_stop_asks_with_sigterm(trial: Trial) -> None:
    """The program hears SIGTERM, says its last word, and ends with its own status."""
    spec = trial.spec()
    container = trial.launch(spec)
    try:
        init = trial.init(spec)[0]
        trial.client.stop(container, 2)
        assert trial.client.state(container) is State.STOPPED
        assert not init.alive, f"pid {init.pid} is alive after the stop"
        if trial.offers(Capability.LOGS):
            words = [line.text for line in trial.client.logs(container)]
            assert words == ["ready", "bye"], f"SIGTERM was not delivered to the program: its log says {words}"
        if trial.offers(Capability.EXIT_CODE):
            assert trial.client.exit_code(container) == 0
    finally:
        trial.discard(container)


@pytest.mark.operation("stop")
def test_stop_kills_after_the_grace(trial: Trial) -> None:
    """A program that stays deaf to SIGTERM is killed (137 = 128 + SIGKILL), and not before the grace is over."""
    spec = trial.spec(STUBBORN, stem="deaf")
    container = trial.launch(spec)
    try:
        init = trial.init(spec)[0]
        clock = trial.steps.clock
        asked_ns = clock.monotonic_ns()
        trial.client.stop(container, 1)
        waited_ns = clock.monotonic_ns() - asked_ns
        assert not init.alive, f"pid {init.pid} survived the stop"
        assert waited_ns >= 0.9e9, f"killed after {waited_ns / 1e6:.0f} ms of a grace of 1000 ms"
        assert trial.client.state(container) is State.STOPPED
        if trial.offers(Capability.EXIT_CODE):
            assert trial.client.exit_code(container) == 137
    finally:
        trial.discard(container)


@pytest.mark.exclusive
@pytest.mark.operation("remove")
def test_remove_leaves_nothing(trial: Trial) -> None:
    """No process, no cgroup and no mount of the container is left, and the runtime knows it no more."""
    spec = trial.spec()
    mounts = {mount.target for mount in trial.witness.mounts()}
    container = trial.launch(spec)
    processes = trial.witness.processes(spec.name)
    folders = trial.witness.cgroup_folders(processes[0])
    assert all(folder.exists() for folder in folders)
    trial.client.stop(container, 5)
    trial.client.remove(container)
    assert trial.client.state(container) is State.ABSENT
    assert not [process.pid for process in processes if process.alive]
    wait_until(lambda: not [folder for folder in folders if folder.exists()], 2, "the container's cgroups to go")
    wait_until(lambda: {mount.target for mount in trial.witness.mounts()} <= mounts, 2, "the container's mounts to go")
