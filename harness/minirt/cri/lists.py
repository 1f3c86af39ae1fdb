"""Lists of pods and containers, as a kubelet asks for them every second.

What a list says of a pod or container changes with its state alone. So each keeps its entry as the bytes that go over the
wire, and a list is their concatenation (Protocol Buffers, "Encoding": "Last One Wins", repeated fields are joined), which
costs a hundredth of building it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.description import container_state, pod_state
from harness.minirt.cri.records import Container, Pod


def list_pods(pods: Iterable[Pod], wanted: Any) -> Any:
    """The answer to ListPodSandbox with the filter `wanted`."""
    found = [
        _pod(pod)
        for pod in pods
        if pod.id.startswith(wanted.id)
        and (not wanted.HasField("state") or wanted.state.state == pod_state(pod))
        and (not wanted.label_selector or selected(wanted.label_selector, pod.config.labels))
    ]
    return api.ListPodSandboxResponse.FromString(b"".join(found))


def list_containers(containers: Iterable[Container], wanted: Any) -> Any:
    """The answer to ListContainers with the filter `wanted`."""
    found = [
        _container(container)
        for container in containers
        if container.id.startswith(wanted.id)
        and (not wanted.HasField("state") or wanted.state.state == container.state)
        and container.pod_id.startswith(wanted.pod_sandbox_id)
        and (not wanted.label_selector or selected(wanted.label_selector, container.config.labels))
    ]
    return api.ListContainersResponse.FromString(b"".join(found))


def _pod(pod: Pod) -> bytes:
    state = pod_state(pod)
    if pod.listed[0] != state:
        item = api.PodSandbox(
            id=pod.id,
            metadata=pod.config.metadata,
            state=state,
            created_at=pod.created_ns,
            labels=pod.config.labels,
            annotations=pod.config.annotations,
            runtime_handler=pod.handler,
        )
        pod.listed = state, api.ListPodSandboxResponse(items=[item]).SerializeToString()
    return pod.listed[1]


def _container(container: Container) -> bytes:
    state = container_state(container)
    if container.listed[0] != state:
        item = api.Container(
            id=container.id,
            pod_sandbox_id=container.pod_id,
            metadata=container.config.metadata,
            image=container.config.image,
            image_ref=container.image_id,
            image_id=container.image_id,
            state=state,
            created_at=container.created_ns,
            labels=container.config.labels,
            annotations=container.config.annotations,
        )
        container.listed = state, api.ListContainersResponse(containers=[item]).SerializeToString()
    return container.listed[1]


def selected(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether `labels` has all that a label selector asks for."""
    return all(labels.get(key) == value for key, value in selector.items())
