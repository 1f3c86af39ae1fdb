"""Requests that make no sense, or mean harm: refused, nothing done, and the runtime goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CallTimeout, RuntimeRefusal, Unreachable
from harness.model.area import Area
from harness.session.breach import accepts, swaps
from harness.session.cri import READY, CriTrial, merged

pytestmark = pytest.mark.operation(Area.MALFORMED)

EMPTY: dict[str, dict[str, Any]] = {
    "RunPodSandbox": {},
    "RunPodSandbox without metadata": {"config": {"hostname": "x"}},
    "PodSandboxStatus": {},
    "CreateContainer": {},
    "CreateContainer without a configuration": {"pod_sandbox_id": "x"},
    "StartContainer": {},
    "ContainerStatus": {},
    "UpdateContainerResources": {},
    "ReopenContainerLog": {},
    "ExecSync": {},
    "Exec": {},
    "Attach": {},
    "PortForward": {},
    "ContainerStats": {},
    "PullImage": {},
    "PullImage without a name": {"image": {"image": ""}},
}


def refused(cri: CriTrial, call: Callable[[], Any]) -> None:
    """`call` is refused by a runtime that goes on: no time ran out, no connection broke."""
    with pytest.raises(RuntimeRefusal) as caught:
        call()
    assert not isinstance(caught.value, CallTimeout | Unreachable), caught.value
    assert cri.call("Version").runtime_name


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.breach(accepts(*{name.partition(" ")[0] for name in EMPTY}))
def test_empty_request(name: str, cri: CriTrial) -> None:
    """What a call cannot do without."""
    cri.needs_sight("any.empty")
    refused(cri, lambda: cri.call(name.partition(" ")[0], **EMPTY[name]))


BAD_NAMES = {
    "newline": "two\nlines",
    "nul": "a\0b",
    "traversal": "../../../../../../etc/x",
    "huge": "x" * 100_000,
}


def _outside(request: dict[str, Any], call: Any) -> Any:
    raise Unreachable("the runtime is gone", "UNAVAILABLE")


@pytest.mark.parametrize("kind", BAD_NAMES)
@pytest.mark.breach(swaps("RunPodSandbox", _outside))
def test_hostile_name_of_a_pod(kind: str, cri: CriTrial) -> None:
    """Refused, or taken for what it is: a word. Nothing is written by its path, and others are not harmed."""
    config = merged(cri.pod_config(), {"metadata": {"name": BAD_NAMES[kind]}})
    pod = cri.shared_pod()
    try:
        cri.run_pod(config)
    except RuntimeRefusal as refusal:
        assert not isinstance(refusal, CallTimeout | Unreachable), refusal
    assert cri.pod_status(pod).state == READY
    assert cri.run("echo afloat", pod=pod).lines == ["afloat"]


@pytest.mark.parametrize("kind", BAD_NAMES)
@pytest.mark.breach(swaps("CreateContainer", _outside))
def test_hostile_name_of_a_container(kind: str, cri: CriTrial) -> None:
    config = merged(cri.config(), {"metadata": {"name": BAD_NAMES[kind]}})
    pod = cri.shared_pod()
    try:
        cri.create_from(pod, config)
    except RuntimeRefusal as refusal:
        assert not isinstance(refusal, CallTimeout | Unreachable), refusal
    assert cri.pod_status(pod).state == READY


IDS = {"traversal": "../../etc", "slash": "/", "dot": ".", "nul": "a\0b", "star": "*", "huge": "x" * 100_000}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("rpc", ["ContainerStatus", "StartContainer", "ContainerStats"])
@pytest.mark.breach(accepts("ContainerStatus", "StartContainer", "ContainerStats"))
def test_hostile_id(rpc: str, kind: str, cri: CriTrial) -> None:
    """No container is called so."""
    cri.needs_sight("any.empty")
    refused(cri, lambda: cri.call(rpc, container_id=IDS[kind]))


def _writes_outside(request: dict[str, Any], call: Any) -> Any:
    logs = Path(request["sandbox_config"]["log_directory"])
    (logs.parent / "escaped.log").write_text("out")
    return call({**request, "config": {**request["config"], "log_path": "inside.log"}})


@pytest.mark.parametrize("path", ["../../escaped.log", "/../../../../../../../tmp/../escaped.log"])
@pytest.mark.breach(swaps("CreateContainer", _writes_outside))
def test_log_path_cannot_leave_its_directory(path: str, cri: CriTrial) -> None:
    """log_path is "relative to PodSandboxConfig.LogDirectory": a path that leads out of it is refused or kept inside."""
    pod = cri.pod()
    with contextlib.suppress(RuntimeRefusal):
        cri.ended(cri.launch(["/bin/echo", "out"], pod=pod, log_path=path))
    here = pod.logs.resolve()
    stray = [found for found in here.parents[2].rglob("escaped.log") if here not in found.parents]
    for found in stray:
        found.unlink()
    assert not stray


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"envs": [{"key": "", "value": "x"}]}, id="env-without-a-name"),
        pytest.param({"envs": [{"key": "A", "value": "a\0b"}]}, id="env-with-nul"),
        pytest.param({"command": ["/bin/echo", "a\0b"]}, id="command-with-nul"),
        pytest.param({"args": ["x" * 200_000] * 50}, id="huge-arguments"),
        pytest.param({"working_dir": "a\0b"}, id="working-dir-with-nul"),
        pytest.param({"annotations": {"x" * 1000: "y" * 1_000_000}}, id="huge-annotation"),
        pytest.param({"linux": {"resources": {"memory_limit_in_bytes": -5}}}, id="negative-memory"),
        pytest.param({"linux": {"security_context": {"run_as_user": {"value": -5}}}}, id="negative-user"),
    ],
)
@pytest.mark.breach(swaps("CreateContainer", _outside))
def test_hostile_configuration(wrong: dict[str, Any], cri: CriTrial) -> None:
    """Refused by CreateContainer or StartContainer, or done; the runtime goes on and others are not harmed."""
    pod = cri.shared_pod()
    try:
        cri.start(cri.create_from(pod, merged(cri.config(), wrong)))
    except RuntimeRefusal as refusal:
        assert not isinstance(refusal, CallTimeout | Unreachable), refusal
    assert cri.pod_status(pod).state == READY
    assert cri.call("Version").runtime_name


REFERENCES = {
    "upper": "registry/UPPER/case:1",
    "blank": "a b",
    "url": "http://x/y",
    "traversal": "../../x",
    "digest": "x@sha256:short",
    "nul": "\0",
    "tag": "x:" + "t" * 500,
    "huge": "x" * 100_000,
}


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.breach(accepts("PullImage"))
def test_hostile_name_of_an_image(kind: str, cri: CriTrial) -> None:
    """distribution-spec, "name" and "reference"."""
    name = REFERENCES[kind].replace("registry", cri.trial.registry)
    refused(cri, lambda: cri.call("PullImage", image={"image": name}))
