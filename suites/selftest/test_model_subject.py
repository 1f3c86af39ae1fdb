"""Subjects from names and definitions."""

from __future__ import annotations

import pytest

from harness.errors import UnknownSubject, UsageError
from harness.model.capability import WHY_NOT, Capability
from harness.model.subject import BUILT_IN, CAPABILITIES_OF_CLIENT, parse_subject


def test_built_in_names() -> None:
    assert [subject.name for subject in BUILT_IN] == [
        "minirt:grpc",
        "minirt:crictl",
        "containerd:grpc:runc",
        "containerd:grpc:crun",
        "containerd:grpc:minirt",
        "containerd:crictl:runc",
        "containerd:ctr:runc",
        "containerd:ctr:minirt",
        "docker:sdk:runc",
        "docker:sdk:crun",
        "docker:sdk:minirt",
        "podman:cli:crun",
        "podman:cli:runc",
        "podman:cli:minirt",
        "podman:sdk:crun",
        "oci:runc",
        "oci:crun",
        "oci:minirt",
        "oci:runsc",
        "oci:youki",
    ]


@pytest.mark.parametrize("subject", BUILT_IN, ids=lambda subject: subject.name)
def test_a_name_gives_its_row_again(subject) -> None:  # type: ignore[no-untyped-def]
    assert parse_subject(subject.name) is subject


def test_slugs_are_path_components_and_differ() -> None:
    slugs = [subject.slug for subject in BUILT_IN]
    assert len(set(slugs)) == len(slugs)
    assert all(slug.replace("-", "").isalnum() and slug == slug.lower() for slug in slugs)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownSubject) as caught:
        parse_subject("containerd:grcp:runc")
    assert "did you mean 'containerd:grpc:runc'?" in str(caught.value)
    assert "docker:sdk:runc" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "engine", "client", "handler", "socket"),
    [
        ("mine=oci:/opt/mine", "none", "oci", "/opt/mine", ""),
        ("other=cri:unix:///run/other.sock", "attached", "grpc", "builtin", "/run/other.sock"),
        ("d=docker:unix:///run/d.sock", "attached", "sdk", "builtin", "/run/d.sock"),
        ("third=containerd:grpc:/opt/mine", "containerd", "grpc", "/opt/mine", ""),
        ("fourth=docker:sdk:/opt/mine", "docker", "sdk", "/opt/mine", ""),
        ("fifth=podman:cli:/opt/mine", "podman", "cli", "/opt/mine", ""),
    ],
)
def test_own_runtimes(text: str, engine: str, client: str, handler: str, socket: str) -> None:
    subject = parse_subject(text)
    assert (subject.name, subject.engine, subject.client, subject.handler, subject.socket) == (
        text.partition("=")[0],
        engine,
        client,
        handler,
        socket,
    )
    assert subject.capabilities == CAPABILITIES_OF_CLIENT[client]


@pytest.mark.parametrize(
    "text",
    [
        "mine=",
        "mine=oci:relative/path",
        "mine=cri:/run/other.sock",
        "mine=cri:unix://relative",
        "mine=containerd:grpc:runc2",
        "mine=minirt:grpc:/opt/mine",
        "mine=nothing:at:/all",
        "=oci:/opt/mine",
        "a b=oci:/opt/mine",
        "oci:runc=oci:/opt/mine",
    ],
)
def test_malformed_definitions_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_subject(text)


def test_every_capability_has_a_reason_for_its_absence() -> None:
    assert set(WHY_NOT) == set(Capability)
