"""Requests that nobody should send: refused with a clear status, nothing made, the daemon as before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minirt_daemon import CGROUP, Daemon, running_with_image

NODE = api.NamespaceMode.NODE
SERVICES = {service.name: service for service in api.DESCRIPTOR.services_by_name.values()}
WRONG = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
HOSTILE = (
    *(
        "",
        "\0",
        "a\0b",
        "a\nb",
        "\r",
        "\x1b[2J",
        ".",
        "..",
        "../..",
        "a/../../b",
        "a/b",
        "-",
        "--help",
        " ",
        "a b",
        "%s%n",
    ),
    *(
        "é",
        "\u202e",
        "\ufeff",
        "💥",
        "a" * 64,
        "a" * 300,
        "b" * 5000,
        "sha256:",
        "sha256:" + "0" * 64,
        "A:B:C",
        "@",
        "{}",
    ),
)
"""none of them is an absolute path, and none an image's name that a registry of the world would be asked for"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    with running_with_image(tmp_path_factory.mktemp("minirt")) as found:
        yield found
        assert found[0].left()["mounts"] == []


@pytest.fixture(scope="module")
def daemon(served: tuple[Daemon, str]) -> Daemon:
    return served[0]


@pytest.fixture(scope="module")
def image(served: tuple[Daemon, str]) -> str:
    return served[1]


def methods() -> list[tuple[str, str]]:
    return [(service.name, method.name) for service in SERVICES.values() for method in service.methods]


def call(daemon: Daemon, service: str, method: str, request: Any) -> Any:
    """The answer, or the error."""
    stub = daemon.runtime if service == "RuntimeService" else daemon.images
    try:
        answer = getattr(stub, method)(request, timeout=20)
        if SERVICES[service].methods_by_name[method].server_streaming:
            answer.initial_metadata()
            answer.cancel()
        return answer
    except grpc.RpcError as error:
        return error


def code_of(answer: Any) -> grpc.StatusCode | None:
    return answer.code() if isinstance(answer, grpc.RpcError) else None  # type: ignore[attr-defined]


def nothing_is_there(daemon: Daemon) -> bool:
    pods = daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items
    return not pods and not daemon.runtime.ListContainers(api.ListContainersRequest()).containers


# -- every call --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("service", "method"), methods())
def test_every_call_is_answered(daemon: Daemon, service: str, method: str) -> None:
    """With an empty request: some are answered, some refused; none is unknown."""
    request = GetMessageClass(SERVICES[service].methods_by_name[method].input_type)()
    answer = call(daemon, service, method, request)
    assert code_of(answer) not in (*WRONG, grpc.StatusCode.UNIMPLEMENTED), answer
    if code_of(answer) is not None:
        assert answer.details()
    assert nothing_is_there(daemon)


IDS = [
    (method, field.name)
    for name, service in SERVICES.items()
    if name == "RuntimeService"
    for method in [row.name for row in service.methods]
    for field in service.methods_by_name[method].input_type.fields
    if field.name in ("container_id", "pod_sandbox_id")
]
GONE_IS_FINE = ("StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer")


@pytest.mark.parametrize(("method", "field"), IDS)
@pytest.mark.parametrize("id", ["f" * 64, "no/such\nthing", "..", "\0"], ids=["unknown", "odd", "dots", "nul"])
def test_ids_of_nothing(daemon: Daemon, method: str, field: str, id: str) -> None:
    request = GetMessageClass(SERVICES["RuntimeService"].methods_by_name[method].input_type)(**{field: id})
    code = code_of(call(daemon, "RuntimeService", method, request))
    assert code == (None if method in GONE_IS_FINE else grpc.StatusCode.NOT_FOUND)


def test_the_start_of_an_id_names_it_as_long_as_it_is_the_only_one(daemon: Daemon) -> None:
    ids = sorted(daemon.pod(f"prefix-{number}") for number in range(17))
    try:
        status = daemon.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=ids[0][:32])).status
        assert status.id == ids[0]
        # Of 17 ids, two start alike.
        shared = next(a[0] for a, b in itertools.pairwise(ids) if a[0] == b[0])
        for method in ("PodSandboxStatus", "StopPodSandbox", "RemovePodSandbox"):
            request = GetMessageClass(SERVICES["RuntimeService"].methods_by_name[method].input_type)(
                pod_sandbox_id=shared
            )
            assert code_of(call(daemon, "RuntimeService", method, request)) == grpc.StatusCode.INVALID_ARGUMENT
        assert len(daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items) == 17
    finally:
        for id in ids:
            daemon.remove_pod(id)


# -- malformed ones ------------------------------------------------------------------------------------------------------------


def pod_config(daemon: Daemon, **change: Any) -> Any:
    config = daemon.pod_config("odd")
    for path, value in change.items():
        *way, last = path.split("__")
        message = config
        for name in way:
            message = getattr(message, name)
        field = getattr(message, last)
        if isinstance(value, (list, dict)):
            (field.update if isinstance(value, dict) else field.extend)(value)
        elif hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        else:
            setattr(message, last, value)
    return config


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": api.PodSandboxMetadata()},
        {"metadata__name": "a\0b"},
        {"metadata__name": "a\nb"},
        {"metadata__namespace": "a\nb"},
        {"metadata__uid": "\0"},
        {"hostname": "a\nb"},
        {"hostname": "h" * 65},
        {"log_directory": "/tmp/a\0b"},
        {"linux__cgroup_parent": "relative"},
        {"linux__cgroup_parent": "/a/../../b"},
        {"linux__sysctls": {"kernel.hostname": "x"}},
        {"linux__sysctls": {"../../x": "x"}},
        {"dns_config__servers": ["1.1.1.1\nnameserver 6.6.6.6"]},
    ],
    ids=str,
)
def test_pods_that_are_refused(daemon: Daemon, change: dict[str, Any]) -> None:
    request = api.RunPodSandboxRequest(config=pod_config(daemon, **change))
    answer = call(daemon, "RuntimeService", "RunPodSandbox", request)
    assert code_of(answer) == grpc.StatusCode.INVALID_ARGUMENT, answer
    assert nothing_is_there(daemon)


def test_a_request_without_anything(daemon: Daemon) -> None:
    answer = call(daemon, "RuntimeService", "RunPodSandbox", api.RunPodSandboxRequest())
    assert code_of(answer) == grpc.StatusCode.INVALID_ARGUMENT
    assert "name" in answer.details()


def test_a_message_that_is_too_large_is_refused_and_the_next_is_answered(daemon: Daemon) -> None:
    labels = {str(number): "x" * (1 << 20) for number in range(70)}
    request = api.RunPodSandboxRequest(config=api.PodSandboxConfig(labels=labels))
    assert code_of(call(daemon, "RuntimeService", "RunPodSandbox", request)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert code_of(call(daemon, "RuntimeService", "Version", api.VersionRequest())) is None


def test_bytes_that_are_no_message(daemon: Daemon) -> None:
    assert daemon.channel is not None
    raw: Callable[[bytes], Any] = daemon.channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")  # type: ignore[assignment]
    with pytest.raises(grpc.RpcError):
        raw(b"\xff\xff\xff")
    assert code_of(call(daemon, "RuntimeService", "Version", api.VersionRequest())) is None


# -- any request at all ----------------------------------------------------------------------------------------------------------

_NUMBERS = st.sampled_from((0, 1, -1, 2, 7, 1000, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)))


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth - 1)
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=20)
        return st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=8)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats(width=32)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 5)
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    }.get(kind, (0, 2**64 - 1))
    return _NUMBERS.map(lambda number: min(max(number, low), high))


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int) -> Any:
    """Any message of a kind, with more fields left out the deeper it is."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if depth <= 0 or draw(st.integers(0, 3)) == 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
            if value.message_type is None:
                pairs = st.dictionaries(values(key, depth), values(value, depth), max_size=2)
                getattr(message, field.name).update(draw(pairs))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values(field, depth), max_size=2)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(values(field, depth)))
        else:
            setattr(message, field.name, draw(values(field, depth)))
    return message


def look(answer: Any, request: Any) -> None:
    assert code_of(answer) not in WRONG, f"{answer.details()}\n{request}"


def within_bounds(config: Any) -> None:
    """Keep a pod that might be made inside of what the test clears away."""
    config.linux.security_context.namespace_options.network = NODE
    if config.linux.cgroup_parent.startswith("/"):
        config.linux.cgroup_parent = CGROUP


COMMON = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@COMMON
@given(data=st.data())
def test_any_pod(daemon: Daemon, data: st.DataObject) -> None:
    request = data.draw(messages(api.RunPodSandboxRequest.DESCRIPTOR, 4))
    within_bounds(request.config)
    answer = call(daemon, "RuntimeService", "RunPodSandbox", request)
    look(answer, request)
    if code_of(answer) is None:
        daemon.remove_pod(answer.pod_sandbox_id)
    assert nothing_is_there(daemon)


@COMMON
@given(data=st.data())
def test_any_container(daemon: Daemon, image: str, data: st.DataObject) -> None:
    pod = daemon.pod("any-container")
    try:
        config = data.draw(messages(api.ContainerConfig.DESCRIPTOR, 4))
        config.image.Clear()
        config.image.image = image
        if data.draw(st.booleans()):
            config.metadata.name = "fine"
        request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        answer = call(daemon, "RuntimeService", "CreateContainer", request)
        look(answer, request)
    finally:
        daemon.remove_pod(pod)
    assert nothing_is_there(daemon)


ENDING = ("StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer", "CheckpointContainer")
OTHERS = [
    (service, method)
    for service, method in methods()
    if method not in ("RunPodSandbox", "CreateContainer", "PullImage", "GetContainerEvents", "RemoveImage")
]


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str, str]]:
    """A daemon of its own with a pod and a container in it that runs."""
    with running_with_image(tmp_path_factory.mktemp("idle")) as (daemon, image):
        pod = daemon.pod("idle")
        yield daemon, pod, daemon.run(pod, image, "while :; do sleep 0.1; done")


@COMMON
@given(data=st.data())
def test_any_other_call(idle: tuple[Daemon, str, str], data: st.DataObject) -> None:
    daemon, pod, container = idle
    service, method = data.draw(st.sampled_from(OTHERS))
    request = data.draw(messages(SERVICES[service].methods_by_name[method].input_type, 4))
    names = request.DESCRIPTOR.fields_by_name
    if method not in ENDING and data.draw(st.booleans()):
        for name, id in (("container_id", container), ("pod_sandbox_id", pod)):
            if name in names:
                setattr(request, name, id)
    look(call(daemon, service, method, request), (method, request))


def test_after_all_that_it_is_as_before(idle: tuple[Daemon, str, str]) -> None:
    daemon, _, container = idle
    assert daemon.status(container).state == api.CONTAINER_RUNNING
    assert daemon.exec(container, "echo", "here").stdout == b"here\n"
