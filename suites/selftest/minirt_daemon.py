"""A minirt daemon of a test's own, and what a test asks of it: for the tests of minirt alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc
from minirt_registry import busybox_layer, serving_registry

from harness.clock import wait_until
from harness.linux.mounts import read_mounts
from harness.minirt.errors import Unavailable
from harness.minirt.supervisor.client import Supervisor

CGROUP = f"/seatrial-test-cri-{os.getpid()}"
"""each process of a parallel run has its own"""
_HOST, _CONTAINER = api.NamespaceMode.NODE, api.NamespaceMode.CONTAINER


class Daemon:
    """``minirt serve`` on folders below `top`, in namespaces that `prefix` (a command) makes, if any."""

    def __init__(self, top: Path, prefix: Sequence[str] = (), extra: Sequence[str] = ()) -> None:
        self.top, self.prefix = top, list(prefix)
        self.root, self.state, self.logs = top / "root", top / "state", top / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.socket = top / "minirt.sock"
        self.words = [
            *("--listen", f"unix://{self.socket}", "--root", str(self.root), "--state", str(self.state)),
            *("--cgroup-parent", CGROUP, "--cni-conf-dir", str(top / "net.d"), "--cni-bin-dir", "/usr/lib/cni"),
            *("--hosts-dir", str(top / "hosts"), "--log-level", "debug", *extra),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: grpc.Channel | None = None

    def start(self) -> None:
        """Start it and wait for its one line."""
        with (self.top / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "harness.minirt", "serve", *self.words],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line == f"minirt serves unix://{self.socket}\n", (self.top / "daemon.log").read_text()
        self.channel = grpc.insecure_channel(f"unix://{self.socket}")
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.images = api_pb2_grpc.ImageServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; its exit status."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            status = self.process.wait(20)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
        self.process = None
        return status

    def shut_down(self) -> subprocess.CompletedProcess[str]:
        """Run ``minirt shutdown``."""
        words = [sys.executable, "-m", "harness.minirt", "shutdown", *self.words]
        return subprocess.run([*self.prefix, *words], capture_output=True, text=True, timeout=60, check=False)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run minirt's OCI command line on this daemon's containers."""
        argv = [sys.executable, "-m", "harness.minirt", "--root", str(self.state / "containers"), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    def supervisor_pid(self) -> int:
        """The pid of the supervisor; 0 where none answers."""
        supervisor = Supervisor(self.state / "supervisor.sock")
        try:
            return int(supervisor.call("hello")["pid"])
        except Unavailable:
            return 0
        finally:
            supervisor.close()

    def kill_supervisor(self) -> None:
        """SIGKILL; returns once it is gone, or a zombie."""
        pid = self.supervisor_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: has_ended(pid), 10, "the end of the supervisor")

    # -- calls ---------------------------------------------------------------------------------------------------------

    def pull(self, name: str) -> str:
        return str(self.images.PullImage(api.PullImageRequest(image=api.ImageSpec(image=name))).image_ref)

    def pod(self, name: str = "pod", network: int = _HOST, **facts: Any) -> str:
        config = self.pod_config(name, network, **facts)
        return str(self.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id)

    def pod_config(self, name: str, network: int = _HOST, **facts: Any) -> Any:
        linux = api.LinuxPodSandboxConfig(
            cgroup_parent=f"{CGROUP}/{name}",
            security_context=api.LinuxSandboxSecurityContext(
                namespace_options=api.NamespaceOption(network=network, pid=_CONTAINER)
            ),
        )
        metadata = api.PodSandboxMetadata(name=name, uid="u", namespace="n")
        return api.PodSandboxConfig(metadata=metadata, log_directory=str(self.logs), linux=linux, **facts)

    def create(self, pod: str, image: str, script: str, name: str = "box", **facts: Any) -> str:
        security = facts.pop("security", {})
        resources = facts.pop("resources", None)
        options = facts.pop("namespaces", api.NamespaceOption(network=_HOST, pid=_CONTAINER))
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name),
            image=api.ImageSpec(image=image),
            command=["sh", "-c", script],
            log_path=f"{name}.log",
            linux=api.LinuxContainerConfig(
                resources=resources,
                security_context=api.LinuxContainerSecurityContext(namespace_options=options, **security),
            ),
            **facts,
        )
        return str(
            self.runtime.CreateContainer(api.CreateContainerRequest(pod_sandbox_id=pod, config=config)).container_id
        )

    def start_container(self, id: str) -> None:
        self.runtime.StartContainer(api.StartContainerRequest(container_id=id))

    def run(self, pod: str, image: str, script: str, name: str = "box", **facts: Any) -> str:
        id = self.create(pod, image, script, name, **facts)
        self.start_container(id)
        return id

    def status(self, id: str) -> Any:
        return self.runtime.ContainerStatus(api.ContainerStatusRequest(container_id=id)).status

    def wait_exited(self, id: str) -> Any:
        """The status once it has exited."""
        wait_until(lambda: self.status(id).state == api.CONTAINER_EXITED, 20, f"the end of {id}")
        return self.status(id)

    def exec(self, id: str, *words: str, timeout: int = 10) -> Any:
        return self.runtime.ExecSync(api.ExecSyncRequest(container_id=id, cmd=words, timeout=timeout))

    def stop(self, id: str, timeout: int = 0) -> None:
        self.runtime.StopContainer(api.StopContainerRequest(container_id=id, timeout=timeout))

    def remove(self, id: str) -> None:
        self.runtime.RemoveContainer(api.RemoveContainerRequest(container_id=id))

    def remove_pod(self, id: str) -> None:
        self.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=id))
        self.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=id))

    def log_lines(self, name: str = "box") -> list[tuple[str, str, str]]:
        """``(stream, tag, text)`` of each line of a log; one that is just being written is not looked at."""
        rows = []
        for line in (self.logs / f"{name}.log").read_text().rpartition("\n")[0].splitlines():
            _, stream, tag, *text = line.split(" ", 3)
            rows.append((stream, tag, text[0] if text else ""))
        return rows

    # -- what is left ----------------------------------------------------------------------------------------------------

    def left(self) -> dict[str, list[str]]:
        """Processes, mounts, cgroups and files that a shutdown should have taken away."""
        marks = (str(self.top).encode(),)
        processes = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and any(mark in (folder / "cmdline").read_bytes() for mark in marks):
                    processes.append(folder.name)
        below = (self.root / "containers", self.root / "pods", self.state / "containers")
        files = [str(path) for folder in (*below, self.state / "pods") if folder.is_dir() for path in folder.iterdir()]
        if (self.state / "supervisor.sock").exists():
            files.append("supervisor.sock")
        return {
            "processes": [pid for pid in processes if int(pid) != os.getpid()],
            "mounts": [mount.target for mount in read_mounts() if mount.target.startswith(str(self.top))],
            "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/*") if path.is_dir()],
            "files": files,
        }


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has reaped yet."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Start it, and take everything down at the end, whatever happened."""
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end(signal.SIGKILL)
        done = daemon.shut_down()
        for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}"):
            with contextlib.suppress(OSError):
                path.rmdir()
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_with_image(
    top: Path, extra: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Iterator[tuple[Daemon, str]]:
    """The same with an image pulled, whose name is given too."""
    with running(Daemon(top, prefix, extra)) as daemon:
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["true"]})
            image = daemon.pull(f"{registry.address}/busybox:1")
        yield daemon, image
