"""``minirt serve`` killed again and again at moments that a seed chooses, while clients work: what it says afterwards is true."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running
from minirt_registry import busybox_layer, serving_registry

from harness.clock import wait_until
from harness.linux.mounts import read_mounts

ROUNDS = 6
VICTIMS = ({"daemon"}, {"supervisor"}, {"daemon", "supervisor"})
CLIENTS = 3
SEED = 20261123
COUNTER = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"


class Client(threading.Thread):
    """Makes and removes pods until it is told to end; a daemon that does not answer ends it too."""

    def __init__(self, daemon: Daemon, image: str, name: str) -> None:
        super().__init__(name=name)
        self.daemon_under_test, self.image = daemon, image
        self.steps = 0
        self.ending = threading.Event()
        self.errors: list[BaseException] = []

    def run(self) -> None:
        try:
            for turn in range(1000):
                for _ in self.work(f"{self.name}-{turn}"):
                    self.steps += 1
                    if self.ending.is_set():
                        return
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # type: ignore[attr-defined]
                self.errors.append(error)
        except ValueError:  # its channel was closed
            pass

    def work(self, name: str) -> Iterator[None]:
        daemon = self.daemon_under_test
        pod = daemon.pod(name)
        yield
        id = daemon.create(pod, self.image, "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done", name)
        yield
        daemon.start_container(id)
        yield
        daemon.exec(id, "sh", "-c", "sleep 0.05; echo done")
        yield
        daemon.stop(id, 2)
        yield
        daemon.remove(id)
        yield
        daemon.remove_pod(pod)
        yield


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(Daemon(tmp_path)) as daemon:
        yield daemon


def assert_true(daemon: Daemon) -> None:
    """Every container and pod that is listed is real, and nothing is there that is not listed."""
    pods = {row.id: row for row in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items}
    containers = {row.id: row for row in daemon.runtime.ListContainers(api.ListContainersRequest()).containers}
    assert {row.pod_sandbox_id for row in containers.values()} <= set(pods)
    for folder, known in ((daemon.root, pods), (daemon.state, pods)):
        assert {path.name for path in (folder / "pods").iterdir()} == set(known)
    for folder in (daemon.root, daemon.state):
        assert {path.name for path in (folder / "containers").iterdir()} == set(containers)
    ready = {id for id, row in pods.items() if row.state == api.SANDBOX_READY}
    mounted = {Path(mount.target).relative_to(daemon.state / "pods").parts[0] for mount in mounts(daemon)}
    assert mounted <= ready
    alive = {id for id, row in containers.items() if row.state == api.CONTAINER_RUNNING}
    places = [path for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/*/*") if path.is_dir()]
    assert {path.name for path in places} == alive
    parents = {path.name for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/*") if path.is_dir()}
    assert parents <= {row.metadata.name for row in pods.values()}
    for path in places:
        assert (path / "cgroup.procs").read_text(), f"{path} is empty"
    for id in alive:
        assert daemon.exec(id, "true").exit_code == 0


def is_ready(daemon: Daemon) -> bool:
    rows = daemon.runtime.Status(api.StatusRequest()).status.conditions
    return bool(next(row.status for row in rows if row.type == "RuntimeReady"))


def mounts(daemon: Daemon) -> list[object]:
    return [mount for mount in read_mounts() if mount.target.startswith(f"{daemon.state}/")]


def test_whatever_moment_it_is_killed_at_nothing_is_lost_and_nothing_left(daemon: Daemon) -> None:
    choice = random.Random(SEED)
    with serving_registry() as registry:
        registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["true"]})
        image = daemon.pull(f"{registry.address}/busybox:1")
    witness = daemon.run(daemon.pod("witness"), image, COUNTER, "witness")
    for number in range(ROUNDS):
        clients = [Client(daemon, image, f"r{number}-{letter}") for letter in "abc"[:CLIENTS]]
        for client in clients:
            client.start()
        steps = choice.randrange(3, 25)
        wait_until(
            lambda clients=clients, steps=steps: (
                sum(c.steps for c in clients) >= steps or any(c.errors for c in clients)
            ),
            60,
            "some work",
        )
        victims = VICTIMS[number % len(VICTIMS)]
        old = daemon.supervisor_pid()
        assert daemon.process is not None
        if "daemon" in victims:
            daemon.process.send_signal(signal.SIGKILL)
        if "supervisor" in victims:
            daemon.kill_supervisor()
        for client in clients:
            client.ending.set()
            client.join()
        assert [error for client in clients for error in client.errors] == []
        if "daemon" in victims:
            daemon.end(signal.SIGKILL)
            daemon.start()
        else:
            wait_until(lambda old=old: daemon.supervisor_pid() not in (0, old) and is_ready(daemon), 20, "another one")
        assert_true(daemon)
        assert daemon.status(witness).state == api.CONTAINER_RUNNING
        for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
            if pod.metadata.name != "witness":
                daemon.remove_pod(pod.id)
        assert_true(daemon)
    daemon.stop(witness, 10)
    found = [int(text) for _, _, text in daemon.log_lines("witness")]
    assert found == sorted(set(found))
    assert found[-1] + 1 - len(found) <= ROUNDS * 2 // 3  # what a supervisor held at the moment of its SIGKILL
    with contextlib.suppress(grpc.RpcError):
        daemon.remove(witness)
