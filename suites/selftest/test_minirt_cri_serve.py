"""``minirt serve`` as a client sees it: pods, containers, exec, logs, and what survives the daemon."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, has_ended, running
from minirt_registry import busybox_layer, serving_registry

from harness.clock import wait_until
from harness.linux import syscalls

NODE, CONTAINER = api.NamespaceMode.NODE, api.NamespaceMode.CONTAINER
NOTHING: dict[str, list[str]] = {"processes": [], "mounts": [], "cgroups": [], "files": []}
FOREVER = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests that do not harm it, with the image ``IMAGE`` in it."""
    with serving(tmp_path_factory.mktemp("minirt")) as daemon:
        yield daemon
        for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
            daemon.remove_pod(pod.id)


def serving(top: Path, **facts: object) -> Serving:
    return Serving(Daemon(top, **facts))  # type: ignore[arg-type]


class Serving:
    """A daemon with an image pulled, as a context manager."""

    def __init__(self, daemon: Daemon) -> None:
        self.context = running(daemon)

    def __enter__(self) -> Daemon:
        daemon = self.context.__enter__()
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["true"]})
            IMAGE[0] = daemon.pull(f"{registry.address}/busybox:1")
        return daemon

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)  # type: ignore[arg-type]


IMAGE = [""]


@pytest.fixture
def pod(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    """A pod on the machine's network, gone afterwards."""
    id = daemon.pod(re.sub(r"\W", "-", request.node.name))
    yield id
    daemon.remove_pod(id)


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined,no-any-return]


def cgroups_of(id: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/**/{id}") if path.is_dir()]


def test_the_runtime_tells_of_itself(daemon: Daemon) -> None:
    version = daemon.runtime.Version(api.VersionRequest())
    assert (version.runtime_name, version.runtime_api_version) == ("minirt", "v1")
    status = daemon.runtime.Status(api.StatusRequest(verbose=True))
    ready = {row.type: (row.status, row.message) for row in status.status.conditions}
    assert ready["RuntimeReady"] == (True, "")
    assert not ready["NetworkReady"][0]
    assert "no network configuration" in ready["NetworkReady"][1]
    assert str(daemon.root) in status.info["config"]
    config = daemon.runtime.RuntimeConfig(api.RuntimeConfigRequest())
    assert config.linux.cgroup_driver == api.CgroupDriver.Value("CGROUPFS")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE((daemon.state / "supervisor.sock").stat().st_mode) == 0o600


def test_the_life_of_a_container(daemon: Daemon, pod: str) -> None:
    id = daemon.create(pod, IMAGE[0], FOREVER, labels={"a": "b"})
    assert daemon.status(id).state == api.CONTAINER_CREATED
    with pytest.raises(grpc.RpcError) as error:
        daemon.exec(id, "true")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    daemon.start_container(id)
    status = daemon.status(id)
    assert status.state == api.CONTAINER_RUNNING
    assert status.started_at >= status.created_at > 0
    assert cgroups_of(id)
    with pytest.raises(grpc.RpcError) as error:
        daemon.start_container(id)
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    wait_until(lambda: ("stdout", "F", "up") in daemon.log_lines(), 10, "its first line")
    found = daemon.exec(id, "sh", "-c", "echo out; echo err >&2; echo $FROM; exit 3")
    assert (found.stdout, found.stderr, found.exit_code) == (b"out\nimage\n", b"err\n", 3)
    stats = daemon.runtime.ContainerStats(api.ContainerStatsRequest(container_id=id)).stats
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.memory.working_set_bytes.value > 0
    pods = daemon.runtime.PodSandboxStats(api.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats
    assert pods.linux.process.process_count.value >= 1
    daemon.stop(id, 10)
    status = daemon.status(id)
    assert (status.state, status.exit_code, status.reason) == (api.CONTAINER_EXITED, 7, "Error")
    assert status.finished_at > status.started_at
    assert cgroups_of(id) == []
    with pytest.raises(grpc.RpcError) as error:
        daemon.exec(id, "true")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as error:
        daemon.start_container(id)
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    listed = daemon.runtime.ListContainers(
        api.ListContainersRequest(filter=api.ContainerFilter(id=id[:13], label_selector={"a": "b"}))
    )
    assert [row.id for row in listed.containers] == [id]
    daemon.stop(id)
    daemon.remove(id)
    daemon.remove(id)
    with pytest.raises(grpc.RpcError) as error:
        daemon.status(id)
    assert code(error) == grpc.StatusCode.NOT_FOUND
    assert not (daemon.state / "containers" / id).exists()
    assert not (daemon.root / "containers" / id).exists()


def test_a_container_that_ignores_its_stop_signal_is_killed(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], "trap '' TERM; echo up; while :; do sleep 0.1; done")
    wait_until(daemon.log_lines, 10, "its first line")
    daemon.stop(id, 1)
    assert daemon.status(id).exit_code == 137
    daemon.remove(id)
    (daemon.logs / "box.log").unlink()


def test_the_stop_signal_of_the_configuration(daemon: Daemon, pod: str) -> None:
    script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done"
    id = daemon.run(pod, IMAGE[0], script, "usr1", stop_signal=api.Signal.Value("SIGUSR1"))
    wait_until(lambda: daemon.log_lines("usr1"), 10, "its first line")
    daemon.stop(id, 10)
    assert daemon.status(id).exit_code == 9


def test_the_log_keeps_streams_order_and_parts(daemon: Daemon, pod: str) -> None:
    long = "x" * 40_000
    script = f"echo one; echo two >&2; printf 'no end'; printf '{long}' >&2; printf '\\n\\nafter\\n' >&2"
    id = daemon.run(pod, IMAGE[0], script, "parts")
    assert daemon.wait_exited(id).exit_code == 0
    lines = daemon.log_lines("parts")
    assert [line for line in lines if line[0] == "stdout"] == [("stdout", "F", "one"), ("stdout", "P", "no end")]
    errors = [line for line in lines if line[0] == "stderr"]
    assert errors[0] == ("stderr", "F", "two")
    assert [tag for _, tag, _ in errors[1:]] == ["P", "P", "F", "F", "F"]
    assert "".join(text for _, _, text in errors[1:4]) == long
    assert errors[-2:] == [("stderr", "F", ""), ("stderr", "F", "after")]
    stamps = [line.split(" ")[0] for line in (daemon.logs / "parts.log").read_text().splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp in stamps)
    assert stamps == sorted(stamps)


def test_much_output_is_logged_whole(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", "much")
    assert daemon.wait_exited(id).exit_code == 0
    assert [text for _, _, text in daemon.log_lines("much")] == [f"line {number}" for number in range(20000)]


def test_a_log_that_is_rotated(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], "while :; do echo tick; sleep 0.05; done", "turn")
    log, old = daemon.logs / "turn.log", daemon.logs / "turn.log.1"
    wait_until(lambda: log.exists() and log.stat().st_size, 10, "the log")
    log.rename(old)
    daemon.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=id))
    wait_until(lambda: log.exists() and log.stat().st_size, 10, "the new log")
    size = old.stat().st_size
    before = log.stat().st_size
    wait_until(lambda: log.stat().st_size > before, 10, "more in the new log")
    assert old.stat().st_size == size
    daemon.stop(id)
    with pytest.raises(grpc.RpcError) as error:
        daemon.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=id))
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION


def test_exec_of_a_missing_command(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], FOREVER)
    with pytest.raises(grpc.RpcError, match="executable file not found"):
        daemon.exec(id, "no-such-command")


def test_exec_that_takes_too_long_leaves_no_process(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], FOREVER)
    with pytest.raises(grpc.RpcError) as error:
        # One has left its family (a parent that ends, a session of its own): it is found by its cgroup.
        script = "sleep 4711 & (setsid setsid sleep 4712 &); trap '' TERM HUP; sleep 4713"
        daemon.exec(id, "sh", "-c", script, timeout=1)
    assert code(error) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not [raw for raw in command_lines() if re.search(rb"471[123]", raw)]
    assert not list(cgroups_of(id)[0].parent.glob(f"*/{id}/exec-*"))
    assert daemon.status(id).state == api.CONTAINER_RUNNING


def test_what_exec_leaves_behind_goes_on_and_leaves_no_cgroup(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], FOREVER)

    def places() -> list[Path]:
        return [place for folder in cgroups_of(id) for place in folder.glob("exec-*")]

    assert (
        daemon.exec(id, "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done >&- 2>&- & echo begun").stdout
        == b"begun\n"
    )
    assert len(places()) == 1
    daemon.exec(id, "sh", "-c", ": > /go")
    wait_until(lambda: daemon.exec(id, "true").exit_code == 0 and not places(), 10, "the end of its cgroup")


def command_lines() -> list[bytes]:
    lines = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                lines.append((folder / "cmdline").read_bytes())
            except OSError:
                continue
    return lines


def test_exec_whose_client_goes_away_is_killed(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], FOREVER)
    request = api.ExecSyncRequest(container_id=id, cmd=["sleep", "4714"])
    call = daemon.runtime.ExecSync.future(request)
    wait_until(lambda: any(b"4714" in raw for raw in command_lines()), 10, "the command")
    call.cancel()
    wait_until(lambda: not any(b"4714" in raw for raw in command_lines()), 10, "its end")


def test_exec_output_is_cut_at_its_limit(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], FOREVER)
    limit = 16 << 20
    channel = grpc.insecure_channel(f"unix://{daemon.socket}", [("grpc.max_receive_message_length", -1)])
    with channel:
        stub = type(daemon.runtime)(channel)
        words = ["sh", "-c", f"head -c {limit + 100_000} /dev/zero; echo error >&2"]
        found = stub.ExecSync(api.ExecSyncRequest(container_id=id, cmd=words, timeout=60))
    assert limit - 8192 < found.ByteSize() <= limit
    assert found.exit_code == 0


def test_pause_and_resume_by_the_command_line(daemon: Daemon, pod: str) -> None:
    id = daemon.run(pod, IMAGE[0], FOREVER)
    done = daemon.cli("pause", id)
    assert done.returncode == 0, done.stderr
    with pytest.raises(grpc.RpcError, match="paused") as error:
        daemon.exec(id, "true")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    done = daemon.cli("resume", id)
    assert done.returncode == 0, done.stderr
    assert daemon.exec(id, "true").exit_code == 0
    assert daemon.cli("pause", id).returncode == 0
    daemon.stop(id, 1)
    assert daemon.status(id).exit_code == 137
    assert cgroups_of(id) == []


def test_a_command_that_cannot_be_started(daemon: Daemon, pod: str) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="none"), image=api.ImageSpec(image=IMAGE[0]), command=["/no/such"]
    )
    request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id = daemon.runtime.CreateContainer(request).container_id
    with pytest.raises(grpc.RpcError, match="no such file"):
        daemon.start_container(id)
    status = daemon.status(id)
    assert (status.state, status.exit_code, status.reason) == (api.CONTAINER_EXITED, 128, "StartError")
    assert cgroups_of(id) == []


def test_what_is_not_there(daemon: Daemon) -> None:
    daemon.stop("nothing")
    daemon.remove("nothing")
    daemon.remove_pod("nothing")
    daemon.images.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image="nothing")))
    assert not daemon.images.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image="nothing"))).image.id
    for call in (
        lambda: daemon.status("nothing"),
        lambda: daemon.start_container("nothing"),
        lambda: daemon.exec("nothing", "true"),
        lambda: daemon.runtime.Exec(api.ExecRequest(container_id="nothing")),
        lambda: daemon.runtime.Attach(api.AttachRequest(container_id="nothing")),
        lambda: daemon.create("nothing", IMAGE[0], ""),
        lambda: daemon.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id="nothing")),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert code(error) == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError, match=r"127\.0\.0\.1:1") as error:
        daemon.pull("127.0.0.1:1/a:1")
    assert code(error) == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as error:
        daemon.runtime.CheckpointContainer(api.CheckpointContainerRequest(container_id="nothing"))
    assert code(error) == grpc.StatusCode.NOT_FOUND


def test_an_image_that_is_not_there(daemon: Daemon, pod: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        daemon.create(pod, "nothing:1", "")
    assert code(error) == grpc.StatusCode.NOT_FOUND


def test_names_are_taken_once(daemon: Daemon, pod: str) -> None:
    daemon.create(pod, IMAGE[0], "")
    with pytest.raises(grpc.RpcError) as error:
        daemon.create(pod, IMAGE[0], "")
    assert code(error) == grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(grpc.RpcError) as error:
        daemon.pod("test_names_are_taken_once")
    assert code(error) == grpc.StatusCode.ALREADY_EXISTS


def test_stopping_a_pod_stops_its_containers(daemon: Daemon) -> None:
    pod = daemon.pod("stopping")
    id = daemon.run(pod, IMAGE[0], FOREVER)
    for _ in range(2):
        daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert daemon.status(id).state == api.CONTAINER_EXITED
    status = daemon.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    assert status.state == api.SANDBOX_NOTREADY
    with pytest.raises(grpc.RpcError) as error:
        daemon.create(pod, IMAGE[0], "", "late")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    daemon.remove_pod(pod)
    assert not (daemon.state / "pods" / pod).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*{CGROUP}/stopping"))


def test_removing_a_pod_removes_containers_that_run(daemon: Daemon) -> None:
    pod = daemon.pod("forced")
    id = daemon.run(pod, IMAGE[0], FOREVER)
    daemon.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=pod))
    with pytest.raises(grpc.RpcError):
        daemon.status(id)
    assert cgroups_of(id) == []


def test_containers_of_a_pod_share_shm_and_ipc_and_nothing_of_the_machine(daemon: Daemon, pod: str) -> None:
    first = daemon.run(pod, IMAGE[0], FOREVER, "first")
    second = daemon.run(pod, IMAGE[0], FOREVER, "second")
    daemon.exec(first, "sh", "-c", "echo shared > /dev/shm/word; echo mine > /word")
    assert daemon.exec(second, "cat", "/dev/shm/word").stdout == b"shared\n"
    assert daemon.exec(second, "cat", "/word").exit_code != 0
    ipc = daemon.exec(first, "ls", "-l", "/proc/self/ns/ipc").stdout.split()[-1].decode()
    assert ipc == daemon.exec(second, "ls", "-l", "/proc/self/ns/ipc").stdout.split()[-1].decode()
    assert ipc != str(Path("/proc/self/ns/ipc").readlink())
    assert not [mount for mount in daemon.left()["mounts"] if "rootfs" in mount]


def test_user_and_environment(daemon: Daemon, pod: str) -> None:
    security = {"run_as_username": "alice", "supplemental_groups": [3000], "no_new_privs": True}
    id = daemon.run(pod, IMAGE[0], FOREVER, security=security, envs=[api.KeyValue(key="FROM", value="config")])
    found = daemon.exec(id, "sh", "-c", "id -u; id -g; echo $FROM $HOME; id -G")
    *facts, first, second, third = found.stdout.decode().split()
    assert facts == ["1000", "1000", "config", "/home/alice"]
    assert sorted((first, second, third)) == ["1000", "2000", "3000"]
    status = daemon.status(id)
    assert (status.user.linux.uid, status.user.linux.gid) == (1000, 1000)
    assert b"NoNewPrivs:\t1" in daemon.exec(id, "cat", "/proc/self/status").stdout


def test_mounts(daemon: Daemon, pod: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host")
    mounts = [
        api.Mount(host_path=str(tmp_path), container_path="/data", readonly=True),
        api.Mount(host_path=str(tmp_path / "made"), container_path="/made"),
    ]
    id = daemon.run(pod, IMAGE[0], FOREVER, mounts=mounts, security={"readonly_rootfs": True})
    assert daemon.exec(id, "cat", "/data/file").stdout == b"host"
    assert daemon.exec(id, "sh", "-c", "echo x > /data/file").exit_code != 0
    assert daemon.exec(id, "sh", "-c", "echo x > /made/file").exit_code == 0
    assert daemon.exec(id, "sh", "-c", "echo x > /etc/file").exit_code != 0
    assert (tmp_path / "made/file").read_text() == "x\n"


def test_a_recursively_read_only_mount(daemon: Daemon, pod: str, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    syscalls.mount("minirt-test", str(below), "tmpfs", 0, "size=64k")
    try:
        mounts = [
            api.Mount(host_path=str(tmp_path), container_path="/plain", readonly=True),
            api.Mount(host_path=str(tmp_path), container_path="/deep", readonly=True, recursive_read_only=True),
        ]
        id = daemon.run(pod, IMAGE[0], FOREVER, mounts=mounts)
        assert daemon.exec(id, "sh", "-c", "echo x > /plain/below/file").exit_code == 0
        assert daemon.exec(id, "sh", "-c", "echo x > /deep/below/file").exit_code != 0
        daemon.remove(id)
    finally:
        syscalls.umount2(str(below), syscalls.MNT_DETACH)


def test_the_default_seccomp_profile(daemon: Daemon, pod: str) -> None:
    profile = api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
    capabilities = api.Capability(add_capabilities=["SYS_TIME"])
    id = daemon.run(pod, IMAGE[0], FOREVER, security={"seccomp": profile, "capabilities": capabilities})
    status = daemon.exec(id, "cat", "/proc/self/status").stdout
    assert b"Seccomp:\t2" in status
    assert daemon.exec(id, "mount", "-t", "tmpfs", "none", "/tmp").exit_code != 0


def test_a_container_out_of_memory(daemon: Daemon, pod: str) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="oom"),
        image=api.ImageSpec(image=IMAGE[0]),
        command=["sh", "-c", "x=1234567890; while :; do x=$x$x; done"],
        linux=api.LinuxContainerConfig(resources=api.LinuxContainerResources(memory_limit_in_bytes=32 << 20)),
    )
    config.linux.security_context.namespace_options.CopyFrom(api.NamespaceOption(network=NODE, pid=CONTAINER))
    id = daemon.runtime.CreateContainer(api.CreateContainerRequest(pod_sandbox_id=pod, config=config)).container_id
    daemon.start_container(id)
    status = daemon.wait_exited(id)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_several_at_once(daemon: Daemon) -> None:
    errors: list[BaseException] = []

    def one(number: int) -> None:
        try:
            pod = daemon.pod(f"many-{number}")
            id = daemon.run(pod, IMAGE[0], FOREVER, f"many-{number}")
            assert daemon.exec(id, "echo", str(number)).stdout == f"{number}\n".encode()
            daemon.stop(id)
            daemon.remove_pod(pod)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# -- what survives -------------------------------------------------------------------------------------------------------


def test_a_killed_daemon_loses_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        pod = daemon.pod()
        running_id = daemon.run(pod, IMAGE[0], "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done", "counter")
        ended_id = daemon.run(pod, IMAGE[0], "exit 5", "ended")
        created_id = daemon.create(pod, IMAGE[0], FOREVER, "created")
        later_id = daemon.run(pod, IMAGE[0], "while [ ! -e /dev/shm/go ]; do sleep 0.02; done; exit 6", "later")
        daemon.wait_exited(ended_id)
        daemon.exec(running_id, "true")
        pid = daemon.process.pid if daemon.process else 0
        daemon.end(signal.SIGKILL)
        assert not Path(f"/proc/{pid}").exists()
        lines = len(daemon.log_lines("counter"))
        wait_until(lambda: len(daemon.log_lines("counter")) > lines + 5, 10, "the log to go on")
        Path(daemon.state / "pods" / pod / "shm" / "go").touch()
        wait_until((daemon.state / "containers" / later_id / "exit.json").exists, 10, "its end")
        daemon.start()
        assert daemon.status(running_id).state == api.CONTAINER_RUNNING
        assert daemon.status(ended_id).exit_code == 5
        later = daemon.status(later_id)
        assert (later.state, later.exit_code) == (api.CONTAINER_EXITED, 6)
        assert daemon.status(created_id).state == api.CONTAINER_CREATED
        numbers = [int(text) for _, _, text in daemon.log_lines("counter")]
        assert numbers == list(range(len(numbers)))
        daemon.start_container(created_id)
        assert daemon.exec(created_id, "echo", "here").stdout == b"here\n"
        daemon.stop(running_id)
        assert daemon.status(running_id).exit_code == 137
        daemon.remove_pod(pod)
        assert daemon.end() == 0
        assert daemon.shut_down().returncode == 0
        assert daemon.left() == NOTHING


def test_sigterm_leaves_containers_and_shutdown_takes_all(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        pod = daemon.pod()
        daemon.run(pod, IMAGE[0], FOREVER)
        assert daemon.end(signal.SIGTERM) == 0
        left = daemon.left()
        assert left["cgroups"]
        assert left["mounts"]
        assert left["processes"]  # the supervisor
        done = daemon.shut_down()
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: daemon.left() == NOTHING, 10, "nothing to be left")
        assert not list(Path("/sys/fs/cgroup").glob(f"*{CGROUP}"))
        assert daemon.shut_down().returncode == 0


def test_shutdown_ends_a_daemon_that_still_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        daemon.run(daemon.pod(), IMAGE[0], FOREVER)
        done = daemon.shut_down()
        assert (done.returncode, done.stderr) == (0, "")
        assert daemon.process is not None
        assert daemon.process.wait(10) == 0
        wait_until(lambda: daemon.left() == NOTHING, 10, "nothing to be left")


def test_shutdown_after_both_were_killed(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        id = daemon.run(daemon.pod(), IMAGE[0], FOREVER)
        supervisor = int(daemon.exec(id, "true") is not None and daemon.supervisor_pid())
        daemon.end(signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: has_ended(supervisor), 10, "the end of the supervisor")
        done = daemon.shut_down()
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: {**daemon.left(), "files": []} == NOTHING, 10, "nothing to be left")


def test_two_daemons_do_not_share_a_state_folder(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        words = [sys.executable, "-m", "harness.minirt", "serve", *daemon.words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "another daemon" in done.stderr
        assert done.stdout == ""
        assert daemon.runtime.Version(api.VersionRequest()).runtime_name == "minirt"


def test_half_made_things_are_undone_at_the_next_start(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        daemon.end(signal.SIGKILL)
        for folder in (
            daemon.root / "pods",
            daemon.state / "pods",
            daemon.root / "containers",
            daemon.state / "containers",
        ):
            (folder / "half").mkdir()
        broken = daemon.root / "containers" / "broken"
        broken.mkdir()
        (broken / "container.json").write_text("{")
        daemon.start()
        assert daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items == []
        assert daemon.left()["files"] == ["supervisor.sock"]


def test_wrong_words(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "harness.minirt", "serve", "--colour", "blue"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "--colour" in done.stderr


# -- networks ------------------------------------------------------------------------------------------------------------

CONFLIST = """{"cniVersion": "1.0.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "minirt-test0", "isGateway": true,
   "ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "10.123.0.0/24"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"""


def test_a_bridge_in_namespaces_of_our_own(tmp_path: Path) -> None:
    """As in an arena: a private network and mount namespace, without the v2 tree beside v1."""
    script = 'umount /sys/fs/cgroup/unified 2>/dev/null; ip link set lo up; exec "$@"'
    prefix = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    daemon = Daemon(tmp_path)
    daemon.prefix = prefix
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/10-test.conflist").write_text(CONFLIST % (tmp_path / "leases"))
    try:
        daemon.start()
        inside = ["nsenter", "-t", str(daemon.process.pid if daemon.process else 0), "--net", "--mount"]
        daemon.prefix = inside
        condition = daemon.runtime.Status(api.StatusRequest()).status.conditions[1]
        assert (condition.type, condition.status) == ("NetworkReady", True)
        layer = tmp_path / "layer"
        layer.mkdir()
        # The registry listens in the daemon's own network namespace.
        server = subprocess.Popen(
            [*inside, sys.executable, str(Path(__file__).with_name("minirt_registry.py")), "5000"],
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"127.0.0.1:5000\n"
            image = daemon.pull("127.0.0.1:5000/busybox:1")
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
        pod = daemon.pod(network=api.NamespaceMode.POD, hostname="afloat")
        status = daemon.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
        assert status.network.ip.startswith("10.123.0.")
        id = daemon.run(pod, image, FOREVER, namespaces=api.NamespaceOption(pid=CONTAINER))
        shown = daemon.exec(id, "ip", "addr").stdout.decode()
        assert f"inet {status.network.ip}/24" in shown
        assert "127.0.0.1/8" in shown
        assert daemon.exec(id, "hostname").stdout == b"afloat\n"
        assert daemon.exec(id, "cat", "/etc/hostname").stdout == b"afloat\n"
        assert list((tmp_path / "leases").rglob("10.123.0.*"))
        daemon.exec(id, "busybox", "ping", "-c", "2", "-W", "2", "10.123.0.1")
        network = daemon.runtime.PodSandboxStats(api.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats.linux.network
        assert [row.name for row in network.interfaces] == ["eth0"]
        assert network.default_interface.rx_bytes.value > 0
        assert network.default_interface.tx_bytes.value > 0
        [metrics] = daemon.runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest()).pod_metrics
        sent = next(row for row in metrics.metrics if row.name == "container_network_transmit_bytes_total")
        assert sent.label_values[-1] == "eth0"
        assert sent.value.value >= network.default_interface.tx_bytes.value
        daemon.remove_pod(pod)
        assert not list((tmp_path / "leases").rglob("10.123.0.*"))
        second = daemon.pod("second", network=api.NamespaceMode.POD)
        assert second
    finally:
        done = daemon.shut_down()
        daemon.end(signal.SIGKILL)
        assert done.returncode == 0, done.stderr
        assert daemon.left() == NOTHING
        assert not list((tmp_path / "leases").rglob("10.123.0.*"))
