"""CRI's RuntimeService over pods and containers. What is not here answers Unimplemented."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cri_api.v1 import api_pb2 as api
from cri_api.v1 import api_pb2_grpc

from harness import __version__
from harness.linux.cgroups import Layout
from harness.minirt.cri.condition import check_pod_cidr, describe_runtime
from harness.minirt.cri.containers import Containers
from harness.minirt.cri.description import Descriptions, pod_status
from harness.minirt.cri.events import Events
from harness.minirt.cri.execution import run_to_end
from harness.minirt.cri.lists import list_containers, list_pods, selected
from harness.minirt.cri.options import Options
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import Container, Pod
from harness.minirt.cri.stats import Stats
from harness.minirt.cri.status import answered, answered_stream
from harness.minirt.cri.streams import Streams, exec_process
from harness.minirt.images.store import ImageStore
from harness.minirt.network.cni import Networks
from harness.minirt.streaming.server import StreamingServer
from harness.minirt.supervisor.client import Supervisor

if TYPE_CHECKING:
    from harness.minirt.cri.metrics import Metrics

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
        self._descriptions = Descriptions(pods, containers, images)
        self._stats = Stats(layout, options.root, pods, containers)
        self._events = Events(self._descriptions, pods.find)
        containers.changed = self._container_changed

    @functools.cached_property
    def _metrics(self) -> Metrics:
        from harness.minirt.cri.metrics import Metrics  # few clients ever ask

        return Metrics(self._stats, self._pods, self._containers, self._options.root)

    def close(self) -> None:
        """End the streams of events, which would otherwise go on for ever."""
        self._events.close()
        self._stats.close()

    def _container_changed(self, what: str, container: Container) -> None:
        self._events.container(what, container)
        if what == "deleted":
            self._stats.forget(container.id)

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
        return describe_runtime(
            self._options,
            self._networks,
            problem,
            user_namespaces=not problem and self._pods.may_map_ids(),
            verbose=request.verbose,
        )

    @answered
    def RuntimeConfig(self, request: Any, context: Any) -> Any:
        return api.RuntimeConfigResponse(
            linux=api.LinuxRuntimeConfiguration(cgroup_driver=api.CgroupDriver.Value("CGROUPFS"))
        )

    @answered
    def UpdateRuntimeConfig(self, request: Any, context: Any) -> Any:
        check_pod_cidr(request.runtime_config.network_config.pod_cidr)
        return api.UpdateRuntimeConfigResponse()

    @answered_stream
    def GetContainerEvents(self, request: Any, context: Any) -> Any:
        listener = self._events.listen()
        if not context.add_callback(lambda: self._events.leave(listener)):
            self._events.leave(listener)
        context.send_initial_metadata(())  # a client can tell from it that it misses nothing from now on
        yield from listener

    # -- pods ----------------------------------------------------------------------------------------------------------

    @answered
    def RunPodSandbox(self, request: Any, context: Any) -> Any:
        pod = self._pods.run(request.config, request.runtime_handler)
        self._events.pod("created", pod)
        self._events.pod("started", pod)
        return api.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    @answered
    def StopPodSandbox(self, request: Any, context: Any) -> Any:
        if (pod := self._pods.find(request.pod_sandbox_id)) is not None:
            self._stop_pod(pod)
        return api.StopPodSandboxResponse()

    def _stop_pod(self, pod: Pod) -> None:
        was_ready = self._pods.close(pod)
        try:
            for container in self._containers.list(pod.id):
                self._containers.halt(container)
        except BaseException:
            if was_ready:
                self._pods.reopen(pod)
            raise
        self._pods.stop(pod)
        if was_ready:
            self._events.pod("stopped", pod)

    @answered
    def RemovePodSandbox(self, request: Any, context: Any) -> Any:
        if (pod := self._pods.find(request.pod_sandbox_id)) is not None:
            self._stop_pod(pod)
            for container in self._containers.list(pod.id):
                self._containers.remove(container)
            self._pods.remove(pod)
            self._stats.forget(pod.id)
            self._events.pod("deleted", pod)
        return api.RemovePodSandboxResponse()

    @answered
    def UpdatePodSandboxResources(self, request: Any, context: Any) -> Any:
        self._pods.update(
            self._pods.get(request.pod_sandbox_id),
            request.overhead if request.HasField("overhead") else None,
            request.resources if request.HasField("resources") else None,
        )
        return api.UpdatePodSandboxResourcesResponse()

    @answered
    def PodSandboxStatus(self, request: Any, context: Any) -> Any:
        pod = self._pods.get(request.pod_sandbox_id)
        return api.PodSandboxStatusResponse(
            status=pod_status(pod),
            info=self._descriptions.pod_info(pod) if request.verbose else None,
            containers_statuses=self._descriptions.containers(pod.id),
            timestamp=time.time_ns(),
        )

    @answered
    def ListPodSandbox(self, request: Any, context: Any) -> Any:
        return list_pods(self._pods.list(), request.filter)

    @answered
    def PodSandboxStats(self, request: Any, context: Any) -> Any:
        return api.PodSandboxStatsResponse(stats=self._stats.pod(self._pods.get(request.pod_sandbox_id)))

    @answered
    def ListPodSandboxStats(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        pods = [
            pod
            for pod in self._pods.list()
            if pod.ready and pod.id.startswith(wanted.id) and selected(wanted.label_selector, pod.config.labels)
        ]
        return api.ListPodSandboxStatsResponse(stats=self._stats.pods(pods))

    @answered
    def ListMetricDescriptors(self, request: Any, context: Any) -> Any:
        return api.ListMetricDescriptorsResponse(descriptors=self._metrics.descriptors())

    @answered
    def ListPodSandboxMetrics(self, request: Any, context: Any) -> Any:
        return api.ListPodSandboxMetricsResponse(pod_metrics=self._metrics.read())

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
        return list_containers(self._containers.list(), request.filter)

    @answered
    def ContainerStatus(self, request: Any, context: Any) -> Any:
        container = self._containers.get(request.container_id)
        return api.ContainerStatusResponse(
            status=self._descriptions.container(container),
            info=self._descriptions.container_info(container) if request.verbose else None,
        )

    @answered
    def UpdateContainerResources(self, request: Any, context: Any) -> Any:
        self._containers.update(self._containers.get(request.container_id), request.linux)
        return api.UpdateContainerResourcesResponse()

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
    def CheckpointContainer(self, request: Any, context: Any) -> Any:
        from harness.minirt.cri import checkpoint

        container = self._containers.get(request.container_id)
        checkpoint.check_location(request.location)
        with self._containers.alone(container):
            image = self._images.find(container.image_id)
            checkpoint.checkpoint(
                container,
                self._containers.spec(container),
                self._containers.upper(container).parent,
                image.tags[0] if image is not None and image.tags else container.config.image.image,
                request.location,
                request.timeout if request.timeout > 0 else checkpoint.DEFAULT_TIMEOUT_S,
            )
        return api.CheckpointContainerResponse()

    @answered
    def ReopenContainerLog(self, request: Any, context: Any) -> Any:
        self._containers.reopen_log(self._containers.get(request.container_id))
        return api.ReopenContainerLogResponse()

    @answered
    def ContainerStats(self, request: Any, context: Any) -> Any:
        [stats] = self._stats.containers([self._containers.get(request.container_id)])
        return api.ContainerStatsResponse(stats=stats)

    @answered
    def ListContainerStats(self, request: Any, context: Any) -> Any:
        wanted = request.filter
        rows = [
            container
            for container in self._containers.list()
            if container.id.startswith(wanted.id)
            and container.pod_id.startswith(wanted.pod_sandbox_id)
            and selected(wanted.label_selector, container.config.labels)
        ]
        return api.ListContainerStatsResponse(stats=self._stats.containers(rows))
