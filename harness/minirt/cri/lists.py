"""Lists of pods and containers, as a kubelet asks for them every second.

What a list says of a pod or container changes with its state alone. So each keeps its entry as the bytes that go over the
wire, and a list is their concatenation (Protocol Buffers, "Encoding": repeated fields of messages that follow each other are
joined), which costs a hundredth of building it anew. `Registrar` lets such answers through as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.description import container_state, pod_state
from harness.minirt.cri.records import Container, Pod

_ENCODED = ("ListContainers", "ListPodSandbox")


class Registrar:
    """What the generated code takes for a server: hands a service on, with the answers of lists taken for encoded."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: registered methods go before them."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        lists = {
            name: grpc.unary_unary_rpc_method_handler(
                handlers[name].unary_unary, handlers[name].request_deserializer, response_serializer=bytes
            )
            for name in _ENCODED
        }
        self._server.add_registered_method_handlers(service, {**handlers, **lists})  # type: ignore[attr-defined]


def list_pods(pods: Iterable[Pod], wanted: Any) -> bytes:
    """The encoded answer to ListPodSandbox with the filter `wanted`."""
    if not wanted.ByteSize():
        return b"".join([_pod(pod) for pod in pods])
    id, labels = wanted.id, dict(wanted.label_selector)
    state = wanted.state.state if wanted.HasField("state") else None
    return b"".join(
        _pod(pod)
        for pod in pods
        if pod.id.startswith(id)
        and state in (None, pod_state(pod))
        and (not labels or selected(labels, pod.config.labels))
    )


def list_containers(containers: Iterable[Container], wanted: Any) -> bytes:
    """The encoded answer to ListContainers with the filter `wanted`."""
    if not wanted.ByteSize():
        return b"".join([_container(container) for container in containers])
    id, pod_id, labels = wanted.id, wanted.pod_sandbox_id, dict(wanted.label_selector)
    state = wanted.state.state if wanted.HasField("state") else None
    return b"".join(
        _container(container)
        for container in containers
        if container.id.startswith(id)
        and state in (None, container.state)
        and container.pod_id.startswith(pod_id)
        and (not labels or selected(labels, container.config.labels))
    )


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
