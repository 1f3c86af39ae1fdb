"""What is left of ``minirt serve`` when its supervisor is killed: containers, their logs and exit codes go on."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running
from minirt_registry import busybox_layer, serving_registry
from minirt_streams import SpdyClient

from harness.clock import wait_until
from harness.linux import syscalls
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.resources import Resources

COUNTER = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"
IMAGE = [""]
KERNEL = tuple(int(word) for word in platform.release().split(".")[:2])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(Daemon(tmp_path)) as daemon:
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["true"]})
            IMAGE[0] = daemon.pull(f"{registry.address}/busybox:1")
        yield daemon


def numbers(daemon: Daemon, name: str = "box") -> list[int]:
    return [int(text) for _, _, text in daemon.log_lines(name)]


def wait_for_more(daemon: Daemon, count: int = 5) -> None:
    """Wait until the log has grown by some lines."""
    until = len(numbers(daemon)) + count
    wait_until(lambda: len(numbers(daemon)) >= until, 20, "the log to go on")


def is_ready(daemon: Daemon) -> bool:
    rows = daemon.runtime.Status(api.StatusRequest()).status.conditions
    return bool(next(row.status for row in rows if row.type == "RuntimeReady"))


def assert_whole(found: list[int]) -> None:
    """In order, nothing twice; at most what was under way at the moment of a SIGKILL is missing."""
    assert found == sorted(set(found))
    assert found[-1] - found[0] + 1 - len(found) <= 1


def assert_ended_by_term(status: api.ContainerStatus) -> None:
    """Who is not the parent can learn an exit code since Linux 6.15; before that it depends on who reaps first."""
    known = (7, "Error"), (255, "Unknown")
    assert status.state == api.CONTAINER_EXITED
    assert (status.exit_code, status.reason) in (known[:1] if KERNEL >= (6, 15) else known)


def test_a_daemon_whose_supervisor_is_killed_gets_another(daemon: Daemon) -> None:
    pod = daemon.pod()
    id = daemon.run(pod, IMAGE[0], COUNTER)
    wait_for_more(daemon)
    old = daemon.supervisor_pid()
    daemon.kill_supervisor()
    wait_until(lambda: daemon.supervisor_pid() not in (0, old) and is_ready(daemon), 20, "another supervisor")
    assert daemon.status(id).state == api.CONTAINER_RUNNING
    wait_for_more(daemon)
    assert daemon.exec(id, "echo", "here").stdout == b"here\n"
    Path(daemon.logs / "box.log").rename(daemon.logs / "old.log")
    daemon.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=id))
    wait_for_more(daemon)
    url = daemon.runtime.Attach(api.AttachRequest(container_id=id, stdout=True)).url
    with SpdyClient(url, ("error", "stdout")) as client:
        client.read_until(lambda: client.text().count("\n") > 3)
    assert_whole(numbers(daemon, "old") + numbers(daemon))
    other = daemon.run(pod, IMAGE[0], "exit 3", "other")
    assert daemon.wait_exited(other).exit_code == 3
    daemon.stop(id, 10)
    assert_ended_by_term(daemon.status(id))
    daemon.remove(id)
    daemon.remove_pod(pod)


def test_a_status_without_a_supervisor_says_so(daemon: Daemon) -> None:
    # Who waits for its lock gets it when it is killed, which keeps the next one from coming up.
    words = ["flock", str(daemon.state / "supervisor.lock"), "-c", "read line"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        daemon.kill_supervisor()
        wait_until(lambda: not is_ready(daemon), 20, "the status to say so")
        with pytest.raises(grpc.RpcError) as error:
            daemon.pod("refused")
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        process.communicate(b"\n", timeout=10)
    wait_until(lambda: is_ready(daemon), 60, "another supervisor")
    daemon.remove_pod(daemon.pod("accepted"))


def test_a_container_goes_on_without_anybody_and_is_taken_over(daemon: Daemon) -> None:
    pod = daemon.pod()
    id = daemon.run(pod, IMAGE[0], COUNTER)
    gone = daemon.run(pod, IMAGE[0], COUNTER, "gone")
    wait_for_more(daemon)
    daemon.end(signal.SIGKILL)
    daemon.kill_supervisor()
    pid = json.loads((daemon.state / "containers" / gone / "state.json").read_bytes())["pid"]
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    assert daemon.status(id).state == api.CONTAINER_RUNNING
    wait_for_more(daemon)
    assert_whole(numbers(daemon))
    status = daemon.status(gone)
    assert (status.state, status.exit_code, status.reason) == (api.CONTAINER_EXITED, 255, "Unknown")
    daemon.stop(id, 10)
    assert_ended_by_term(daemon.status(id))
    daemon.remove_pod(pod)


def test_a_command_that_was_just_being_killed_does_not_keep_its_container(daemon: Daemon) -> None:
    """On v1 a command's processes are frozen while they are killed; a supervisor that dies in that moment leaves them so."""
    pod = daemon.pod()
    id = daemon.run(pod, IMAGE[0], COUNTER)
    wait_for_more(daemon)
    half = daemon.runtime.ExecSync.future(api.ExecSyncRequest(container_id=id, cmd=["sh", "-c", "sleep 4717"]))
    layout = cgroups.read_layout()
    place = cgroups.place_of(layout, f"{CGROUP}/pod/{id}", id, Resources())
    if place.version == 2:
        pytest.skip("v2 kills a cgroup without freezing it")
    parts = Path(place.folders[place.chief])

    def its_program() -> list[str]:
        pids = [pid for path in parts.glob("exec-*/cgroup.procs") for pid in path.read_text().split()]
        return [pid for pid in pids if b"4717" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    # Only then: its supervisor waits for a command to begin, and a frozen one never does.
    wait_until(its_program, 20, "the command")
    part = place.part(next(parts.glob("exec-*")).name)
    part.freeze()
    daemon.kill_supervisor()
    assert half.exception().code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    wait_until(lambda: daemon.supervisor_pid() and is_ready(daemon), 20, "another one")
    assert not part.is_frozen()
    daemon.stop(id, 10)
    assert_ended_by_term(daemon.status(id))
    daemon.remove_pod(pod)


def test_what_a_killed_supervisor_was_starting_is_cleared_away(daemon: Daemon) -> None:
    pod = daemon.pod()
    id = daemon.create(pod, IMAGE[0], "exit 4")
    daemon.end(signal.SIGKILL)
    daemon.kill_supervisor()
    # As after a clone, and before anything was written down.
    layout = cgroups.read_layout()
    place = cgroups.place_of(layout, f"{CGROUP}/pod/{id}", id, Resources())
    cgroups.create(layout, place)
    half = subprocess.Popen(["sleep", "4716"])
    Path(place.folders[place.chief], "cgroup.procs").write_text(str(half.pid))
    daemon.start()
    assert half.wait(10) == -signal.SIGKILL
    assert not place.exists()
    assert daemon.status(id).state == api.CONTAINER_CREATED
    daemon.start_container(id)
    assert daemon.wait_exited(id).exit_code == 4
    daemon.remove_pod(pod)


def test_a_log_on_a_full_disk_stalls_nobody_and_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    syscalls.mount("small", str(small), "tmpfs", 0, "size=64k")
    try:
        (daemon.logs / "box.log").symlink_to(small / "box.log")
        pod = daemon.pod()
        id = daemon.run(pod, IMAGE[0], "i=0; while :; do echo $i; i=$((i+1)); done")
        said = daemon.top / "daemon.log"
        wait_until(lambda: "its log cannot be written" in said.read_text(), 20, "the daemon to say so")
        other = daemon.run(pod, IMAGE[0], "echo heard", "other")
        assert daemon.wait_exited(other).exit_code == 0
        assert daemon.log_lines("other") == [("stdout", "F", "heard")]
        assert daemon.exec(id, "echo", "here").stdout == b"here\n"
        full = numbers(daemon)
        assert full == list(range(len(full)))
        syscalls.mount("small", str(small), "tmpfs", syscalls.MS_REMOUNT, "size=8m")
        wait_until(lambda: "can be written again" in said.read_text(), 20, "the log to go on")
        daemon.stop(id)
        found = numbers(daemon)
        assert found[: len(full)] == full
        assert found[len(full)] > len(full)
        daemon.remove_pod(pod)
    finally:
        syscalls.umount2(str(small), syscalls.MNT_DETACH)


def test_open_files_are_many_for_the_supervisor_and_as_before_for_containers(daemon: Daemon) -> None:
    pod = daemon.pod()
    id = daemon.run(pod, IMAGE[0], "ulimit -n; sleep 1000")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wait_until(lambda: daemon.log_lines() == [("stdout", "F", str(soft))], 20, "the container's limit")
    assert daemon.exec(id, "sh", "-c", "ulimit -n").stdout.decode() == f"{soft}\n"
    assert resource.prlimit(daemon.supervisor_pid(), resource.RLIMIT_NOFILE) == (hard, hard)
    daemon.remove_pod(pod)
