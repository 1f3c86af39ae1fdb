"""The CRI v1 over a warm gRPC channel, as a kubelet speaks it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as cri

from harness.client.cri_config import container_config, sandbox_config
from harness.client.cri_door import CALL_TIMEOUT_S
from harness.client.cri_door_grpc import GrpcDoor
from harness.client.crilog import parse_cri_log
from harness.client.tool import NativeTool
from harness.client.verbs import Site
from harness.errors import NotFound, Refused
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Tally
from harness.model.lifecycle import Contract, Operation, State

_STATES = {
    cri.CONTAINER_CREATED: State.CREATED,
    cri.CONTAINER_RUNNING: State.RUNNING,
    cri.CONTAINER_EXITED: State.STOPPED,
}


@dataclass(frozen=True, slots=True)
class _Sandbox:
    config: cri.PodSandboxConfig
    network: Network
    logs: Path


class CriGrpc:
    """`Client` over gRPC. Every verb is one call; `pause` and `resume` go through the engine's native tool."""

    contract = Contract.CRI

    def __init__(self, site: Site) -> None:
        """Connect. Raises `Unreachable` when nothing answers at the socket."""
        if site.socket is None:
            raise ValueError("a CRI client needs a socket")
        self.tally = Tally()
        self._site = site
        self._native = NativeTool(site.runner, site.native, self.tally)
        self._sandboxes: dict[str, _Sandbox] = {}
        self._logs: dict[str, Path] = {}
        self.door = GrpcDoor(site.socket, self.tally)

    def via(self, operation: Operation) -> str:
        return self._native.name if operation in (Operation.PAUSE, Operation.RESUME) else ""

    def version(self) -> str:
        answer = self._call(cri.VersionRequest(version="v1"))
        return f"{answer.runtime_name} {answer.runtime_version}"

    def pull(self, image: str) -> str:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image))
        return str(self._call(request).image_ref)

    def has_image(self, image: str) -> bool:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image))
        return bool(self._call(request).image.id)

    def remove_image(self, image: str) -> None:
        self._call(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))

    def run_sandbox(self, name: str, network: Network) -> str:
        logs = self._site.workspace / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        config = cri.PodSandboxConfig(**sandbox_config(name, network, self._site.cgroup_parent, logs))
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=self._site.handler)
        sandbox = str(self._call(request).pod_sandbox_id)
        self._sandboxes[sandbox] = _Sandbox(config, network, logs)
        return sandbox

    def sandbox_ready(self, sandbox: str) -> bool:
        return self._sandbox_state(sandbox) == cri.SANDBOX_READY

    def sandbox_exists(self, sandbox: str) -> bool:
        return self._sandbox_state(sandbox) is not None

    def stop_sandbox(self, sandbox: str) -> None:
        self._call(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox))

    def remove_sandbox(self, sandbox: str) -> None:
        self._call(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
        self._sandboxes.pop(sandbox, None)

    def create(self, spec: ContainerSpec) -> str:
        pod = self._sandboxes.get(spec.sandbox)
        if pod is None:
            elsewhere = sandbox_config("unknown", spec.network, self._site.cgroup_parent, self._site.workspace)
            pod = _Sandbox(cri.PodSandboxConfig(**elsewhere), spec.network, self._site.workspace)
        request = cri.CreateContainerRequest(
            pod_sandbox_id=spec.sandbox,
            config=cri.ContainerConfig(**container_config(spec, pod.network)),
            sandbox_config=pod.config,
        )
        container = str(self._call(request).container_id)
        self._logs[container] = pod.logs / f"{spec.name}.log"
        return container

    def start(self, container: str) -> None:
        self._call(cri.StartContainerRequest(container_id=container))

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        request = cri.ExecSyncRequest(container_id=container, cmd=argv, timeout=math.ceil(timeout_s))
        answer = self._call(request, timeout_s + 10)
        return ExecResult(answer.stdout, answer.stderr, answer.exit_code)

    def pause(self, container: str) -> None:
        self._native.run("pause", container)

    def resume(self, container: str) -> None:
        self._native.run("resume", container)

    def logs(self, container: str) -> list[LogLine]:
        """Read from the file that the engine writes: CRI has no call for it. Raises `NotFound`."""
        if container not in self._logs:
            raise NotFound(f"no log of a container {container} is known")
        try:
            return parse_cri_log(self._logs[container].read_bytes().decode(errors="replace"))
        except FileNotFoundError:
            return []

    def state(self, container: str) -> State:
        try:
            status = self._status(container)
        except NotFound:
            return State.ABSENT
        if status.state not in _STATES:
            raise Refused(f"the runtime reports the state {status.state} of {container}")
        return _STATES[status.state]

    def list_containers(self) -> list[str]:
        answer = self._call(cri.ListContainersRequest())
        return [container.id for container in answer.containers]

    def exit_code(self, container: str) -> int | None:
        status = self._status(container)
        return int(status.exit_code) if status.state == cri.CONTAINER_EXITED else None

    def stop(self, container: str, grace_s: float) -> None:
        request = cri.StopContainerRequest(container_id=container, timeout=math.ceil(grace_s))
        self._call(request, grace_s + CALL_TIMEOUT_S)

    def remove(self, container: str) -> None:
        self._call(cri.RemoveContainerRequest(container_id=container))

    def close(self) -> None:
        self.door.close()

    def _status(self, container: str) -> Any:
        return self._call(cri.ContainerStatusRequest(container_id=container)).status

    def _sandbox_state(self, sandbox: str) -> int | None:
        try:
            request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
            return int(self._call(request).status.state)
        except NotFound:
            return None

    def _call(self, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        return self.door.send(type(request).__name__.removesuffix("Request"), request, timeout_s)
