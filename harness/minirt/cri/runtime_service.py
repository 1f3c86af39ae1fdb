"""CRI's RuntimeService over pods and containers. What is not here answers Unimplemented."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc

from harness import __version__
from harness.linux.cgroups import Layout
from harness.minirt.cri import stats
from harness.minirt.cri.containers import Containers
from harness.minirt.cri.execution import run_to_end
from harness.minirt.cri.options import Options
from harness.minirt.cri.pods import HANDLERS, Pods
from harness.minirt.cri.records import RUNNING, Container, Pod
from harness.minirt.cri.status import answered
from harness.minirt.cri.streams import Streams, exec_process
from harness.minirt.images.store import ImageStore
from harness.minirt.network.cni import Networks
from harness.minirt.streaming.server import StreamingServer
from harness.minirt.supervisor.client import Supervisor

API_VERSION = "v1"
_KUBELET_API_VERSION = "0.1.0"


class RuntimeService(api_pb2_grpc.RuntimeServiceServicer):  # type: ignore[misc,unused-ignore]
    """The calls on pods and containers. `runtime_problem` says what is wrong with the supervisor, if anything."""

    def __init__(
        self,
        options: Options,
        pods: Pods,
        containers: Containers,
        images: ImageStore,
        networks: Networks,
        supervisor: Supervisor,
        layout: Layout,
        streaming: StreamingServer,
        runtime_problem: Callable[[], str],
    ) -> None:
        self._options = options
        self._pods = pods
        self._containers = containers
        self._images = images
        self._networks = networks
        self._supervisor = supervisor
        self._layout = layout
        self._streams = Streams(pods, containers, supervisor, streaming)
        self._runtime_problem = runtime_problem

    # -- the runtime itself --------------------------------------------------------------------------------------------

    @answered
    def Version(self, request: Any, context: Any) -> Any:
        return api.VersionResponse(
            version=_KUBELET_API_VERSION,
            runtime_name="minirt",
            runtime_version=__version__,
            runtime_api_version=API_VERSION,
        )

    @answered
    def Status(self, request: Any, context: Any) -> Any:
        problem = self._runtime_problem()
        network, network_problem = self._networks.current()
        conditions = [
            api.RuntimeCondition(
                type="RuntimeReady", status=not problem, reason="SupervisorGone" if problem else "", message=problem
            ),
            api.RuntimeCondition(
                type="NetworkReady",
                status=network is not None,
                reason="" if network is not None else "NetworkPluginNotReady",
                message="" if network is not None else network_problem,
            ),
        ]
        info = {}
        if request.verbose:
            info["config"] = json.dumps(asdict(self._options))
            shown = {"name": network.name, "path": network.path} if network is not None else {}
            info["network"] = json.dumps({**shown, "lastCNILoadStatus": network_problem or "OK"})
        handlers = [
            api.RuntimeHandler(name=name, features=api.RuntimeHandlerFeatures(recursive_read_only_mounts=True))
            for name in HANDLERS
        ]
        return api.StatusResponse(
            status=api.RuntimeStatus(conditions=conditions),
            info=info,
            runtime_handlers=handlers,
            features=api.RuntimeFeatures(supplemental_groups_policy=True),
        )

    @answered
    def RuntimeConfig(self, request: Any, context: Any) -> Any:
        return api.RuntimeConfigResponse(
            linux=api.LinuxRuntimeConfiguration(cgroup_driver=api.CgroupDriver.Value("CGROUPFS"))
        )

    @answered
    def UpdateRuntimeConfig(self, request: Any, context: Any) -> Any:
        return api.UpdateRuntimeConfigResponse()

    # -- pods ----------------------------------------------------------------------------------------------------------

    @answered
    def RunPodSandbox(self, request: Any, context: Any) -> Any:
        return api.RunPodSandboxResponse(pod_sandbox_id=self._pods.run(request.config, request.runtime_handler).id)

    @answered
    def StopPodSandbox(self, request: Any, context: Any) -> Any:
        if (pod := self._pods.find(request.pod_sandbox_id)) is not None:
            self._stop_pod(pod)
        return api.StopPodSandboxResponse()

    def _stop_pod(self, pod: Pod) -> None:
        for container in self._containers.list(pod.id):
            self._containers.stop(container, 0)
        self._pods.stop(pod)

    @answered
    def RemovePodSandbox(self, request: Any, context: Any) -> Any:
        if (pod := self._pods.find(request.pod_sandbox_id)) is not None:
            self._stop_pod(pod)
            for container in self._containers.list(pod.id):
                self._containers.remove(container)
            self._pods.remove(pod)
        return api.RemovePodSandboxResponse()

    @answered
    def PodSandboxStatus(self, request: Any, context: Any) -> Any:
        pod = self._pods.get(request.pod_sandbox_id)
        config = pod.config
        status = api.PodSandboxStatus(
            id=pod.id,
            metadata=config.metadata,
            state=_pod_state(pod),
            created_at=pod.created_ns,
            labels=config.labels,
            annotations=config.annotations,
            runtime_handler=pod.handler,
        )
        if pod.ips:
            status.network.ip = pod.ips[0]
            status.network.additional_ips.extend(api.PodIP(ip=ip) for ip in pod.ips[1:])
        else:
            status.network.SetInParent()
        status.linux.namespaces.options.CopyFrom(config.linux.security_context.namespace_options)
        info = {}
        if request.verbose:
            facts = {
                "pid": 0,
                "netns": self._pods.netns(pod),
                "cgroupParent": pod.cgroup_parent,
                "hostname": pod.hostname,
            }
            info["info"] = json.dumps({**facts, "config": _as_dict(config)})
        return api.PodSandboxStatusResponse(status=status, info=info)

    @answered
    def ListPodSandbox(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        items = [
            api.PodSandbox(
                id=pod.id,
                metadata=pod.config.metadata,
                state=_pod_state(pod),
                created_at=pod.created_ns,
                labels=pod.config.labels,
                annotations=pod.config.annotations,
                runtime_handler=pod.handler,
            )
            for pod in self._pods.list()
            if pod.id.startswith(wanted.id)
            and (not wanted.HasField("state") or wanted.state.state == _pod_state(pod))
            and _selected(wanted.label_selector, pod.config.labels)
        ]
        return api.ListPodSandboxResponse(items=items)

    @answered
    def PodSandboxStats(self, request: Any, context: Any) -> Any:
        return api.PodSandboxStatsResponse(stats=self._pod_stats(self._pods.get(request.pod_sandbox_id)))

    @answered
    def ListPodSandboxStats(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        rows = [
            self._pod_stats(pod)
            for pod in self._pods.list()
            if pod.ready and pod.id.startswith(wanted.id) and _selected(wanted.label_selector, pod.config.labels)
        ]
        return api.ListPodSandboxStatsResponse(stats=rows)

    def _pod_stats(self, pod: Pod) -> Any:
        rows = [(container, self._containers.upper(container)) for container in self._containers.list(pod.id)]
        return stats.describe_pod(self._layout, pod, rows)

    # -- containers ----------------------------------------------------------------------------------------------------

    @answered
    def CreateContainer(self, request: Any, context: Any) -> Any:
        pod = self._pods.get(request.pod_sandbox_id)
        return api.CreateContainerResponse(container_id=self._containers.create(pod, request.config).id)

    @answered
    def StartContainer(self, request: Any, context: Any) -> Any:
        self._containers.start(self._containers.get(request.container_id))
        return api.StartContainerResponse()

    @answered
    def StopContainer(self, request: Any, context: Any) -> Any:
        if (container := self._containers.find(request.container_id)) is not None:
            self._containers.stop(container, request.timeout)
        return api.StopContainerResponse()

    @answered
    def RemoveContainer(self, request: Any, context: Any) -> Any:
        if (container := self._containers.find(request.container_id)) is not None:
            self._containers.remove(container)
        return api.RemoveContainerResponse()

    @answered
    def ListContainers(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        rows = [
            api.Container(
                id=container.id,
                pod_sandbox_id=container.pod_id,
                metadata=container.config.metadata,
                image=container.config.image,
                image_ref=container.image_id,
                image_id=container.image_id,
                state=_container_state(container),
                created_at=container.created_ns,
                labels=container.config.labels,
                annotations=container.config.annotations,
            )
            for container in self._containers.list()
            if container.id.startswith(wanted.id)
            and (not wanted.HasField("state") or wanted.state.state == container.state)
            and container.pod_id.startswith(wanted.pod_sandbox_id)
            and _selected(wanted.label_selector, container.config.labels)
        ]
        return api.ListContainersResponse(containers=rows)

    @answered
    def ContainerStatus(self, request: Any, context: Any) -> Any:
        container = self._containers.get(request.container_id)
        info = {}
        if request.verbose:
            facts = {"sandboxID": container.pod_id, "pid": container.pid, "cgroup": container.cgroup}
            info["info"] = json.dumps({**facts, "config": _as_dict(container.config)})
        return api.ContainerStatusResponse(status=self._describe(container), info=info)

    def _describe(self, container: Container) -> Any:
        config = container.config
        image_ref, spec = container.image_id, api.ImageSpec()
        spec.CopyFrom(config.image)
        image = self._images.find(container.image_id)
        if image is not None:
            image_ref = image.digests[0] if image.digests else image_ref
            spec.image = image.tags[0] if image.tags else spec.image
        status = api.ContainerStatus(
            id=container.id,
            metadata=config.metadata,
            state=_container_state(container),
            created_at=container.created_ns,
            started_at=container.started_ns,
            finished_at=container.finished_ns,
            exit_code=container.exit_code,
            image=spec,
            image_ref=image_ref,
            image_id=container.image_id,
            reason=container.reason,
            message=container.message,
            labels=config.labels,
            annotations=config.annotations,
            mounts=config.mounts,
            log_path=container.log_path,
            stop_signal=config.stop_signal,
        )
        if config.linux.HasField("resources"):
            status.resources.linux.CopyFrom(config.linux.resources)
        uid, gid, groups = container.user
        status.user.linux.uid, status.user.linux.gid = uid, gid
        status.user.linux.supplemental_groups.extend(groups)
        return status

    @answered
    def ExecSync(self, request: Any, context: Any) -> Any:
        container = self._containers.running(request.container_id)
        process = exec_process(self._containers.process(container), request.cmd, tty=False)
        stdout, stderr, exit_code = run_to_end(
            self._supervisor, container.id, process, request.timeout, lambda: not context.is_active()
        )
        return api.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=exit_code)

    @answered
    def Exec(self, request: Any, context: Any) -> Any:
        return api.ExecResponse(url=self._streams.exec(request))

    @answered
    def Attach(self, request: Any, context: Any) -> Any:
        return api.AttachResponse(url=self._streams.attach(request))

    @answered
    def PortForward(self, request: Any, context: Any) -> Any:
        return api.PortForwardResponse(url=self._streams.port_forward(request))

    @answered
    def ReopenContainerLog(self, request: Any, context: Any) -> Any:
        self._containers.reopen_log(self._containers.get(request.container_id))
        return api.ReopenContainerLogResponse()

    @answered
    def ContainerStats(self, request: Any, context: Any) -> Any:
        container = self._containers.get(request.container_id)
        row = stats.describe(self._layout, container, self._containers.upper(container))
        return api.ContainerStatsResponse(stats=row)

    @answered
    def ListContainerStats(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        rows = [
            stats.describe(self._layout, container, self._containers.upper(container))
            for container in self._containers.list()
            if container.state == RUNNING
            and container.id.startswith(wanted.id)
            and container.pod_id.startswith(wanted.pod_sandbox_id)
            and _selected(wanted.label_selector, container.config.labels)
        ]
        return api.ListContainerStatsResponse(stats=rows)


def _pod_state(pod: Pod) -> Any:
    return api.PodSandboxState.SANDBOX_READY if pod.ready else api.PodSandboxState.SANDBOX_NOTREADY


def _container_state(container: Container) -> Any:
    return container.state


def _selected(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _as_dict(message: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict  # only who asks for everything pays for it

    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found
