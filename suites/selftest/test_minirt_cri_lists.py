"""Lists of pods and containers: entries are kept as bytes, and tell the state of now."""

from __future__ import annotations

from typing import Any

import pytest
from cri_api.v1 import api_pb2 as api

from harness.minirt.cri import lists
from harness.minirt.cri.records import EXITED, RUNNING, Container, Pod


def list_containers(rows: list[Container], wanted: Any) -> Any:
    return api.ListContainersResponse.FromString(lists.list_containers(rows, wanted))


def list_pods(rows: list[Pod], wanted: Any) -> Any:
    return api.ListPodSandboxResponse.FromString(lists.list_pods(rows, wanted))


def container(id: str, **labels: str) -> Container:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name=f"name of {id}", attempt=2),
        image=api.ImageSpec(image="registry/image:1"),
        labels=labels,
        annotations={"note": id},
    )
    return Container(id, f"pod-{id}", config, "sha256:0", (), "", "", 15, (0, 0, ()), 7)


def pod(id: str, **labels: str) -> Pod:
    return Pod(id, api.PodSandboxConfig(metadata=api.PodSandboxMetadata(name=id, uid="u"), labels=labels), "runc", 9)


def names(rows: list[Container], **wanted: Any) -> list[str]:
    return [entry.id for entry in list_containers(rows, api.ContainerFilter(**wanted)).containers]


def test_an_entry_has_everything() -> None:
    (entry,) = list_containers([container("a", app="web")], api.ContainerFilter()).containers
    assert entry == api.Container(
        id="a",
        pod_sandbox_id="pod-a",
        metadata=api.ContainerMetadata(name="name of a", attempt=2),
        image=api.ImageSpec(image="registry/image:1"),
        image_ref="sha256:0",
        image_id="sha256:0",
        state=api.ContainerState.CONTAINER_CREATED,
        created_at=7,
        labels={"app": "web"},
        annotations={"note": "a"},
    )


def test_an_entry_follows_the_state() -> None:
    one = container("a")
    seen: list[int] = []
    for state in (one.state, RUNNING, EXITED):
        one.state = state
        seen += [list_containers([one], api.ContainerFilter()).containers[0].state for _ in range(2)]
    assert seen == [0, 0, 1, 1, 2, 2]
    shelter = pod("p")
    before = list_pods([shelter], api.PodSandboxFilter()).items[0].state
    shelter.ready = False
    after = list_pods([shelter], api.PodSandboxFilter()).items[0].state
    assert (before, after) == (api.PodSandboxState.SANDBOX_READY, api.PodSandboxState.SANDBOX_NOTREADY)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["ab", "ac", "b"]),
        ({"id": "a"}, ["ab", "ac"]),
        ({"id": "ab"}, ["ab"]),
        ({"pod_sandbox_id": "pod-b"}, ["b"]),
        ({"state": {"state": api.ContainerState.CONTAINER_RUNNING}}, ["ac"]),
        ({"state": {"state": api.ContainerState.CONTAINER_CREATED}}, ["ab", "b"]),
        ({"label_selector": {"app": "web"}}, ["ab", "b"]),
        ({"label_selector": {"app": "web", "tier": "1"}}, ["b"]),
        ({"label_selector": {"none": "x"}}, []),
    ],
)
def test_filters(wanted: dict[str, Any], found: list[str]) -> None:
    rows = [container("ab", app="web"), container("ac"), container("b", app="web", tier="1")]
    rows[1].state = RUNNING
    assert names(rows, **wanted) == found


def test_filters_of_pods() -> None:
    pods = [pod("a", app="web"), pod("b")]
    pods[1].ready = False

    def found(**wanted: Any) -> list[str]:
        return [entry.id for entry in list_pods(pods, api.PodSandboxFilter(**wanted)).items]

    assert found() == ["a", "b"]
    assert found(id="b") == ["b"]
    assert found(state={"state": api.PodSandboxState.SANDBOX_READY}) == ["a"]
    assert found(label_selector={"app": "web"}) == ["a"]


def test_an_entry_is_not_kept_on_disk() -> None:
    one = container("a")
    list_containers([one], api.ContainerFilter())
    assert "listed" not in one.to_json()
    assert Container.from_json(one.to_json()) == one
