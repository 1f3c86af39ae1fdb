"""Subjects from names and definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import UnknownSubject, UsageError
from harness.model.capability import WHY_NOT, Capability
from harness.model.subject import BUILT_IN, CAPABILITIES_OF_CLIENT, Subject, parse_subject


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


@pytest.mark.parametrize(
    "row",
    [row for row in BUILT_IN if row.engine != "none"],
    ids=lambda row: row.name,
)
def test_a_row_attached_to_a_socket(row: Subject) -> None:
    subject = parse_subject(f"theirs={row.name}@/run/some.sock")
    assert subject == replace(row, name="theirs", socket="/run/some.sock")
    assert parse_subject(subject.words) == subject


def test_a_name_like_that_of_its_row() -> None:
    """Private and attached stand side by side in a run: only their names tell them apart."""
    subject = parse_subject("systemd-containerd:grpc:runc=containerd:grpc:runc@/run/containerd/containerd.sock")
    assert subject.name == "systemd-containerd:grpc:runc"
    assert subject.slug != parse_subject("containerd:grpc:runc").slug


def test_words_of_a_row_that_was_attached_by_an_option() -> None:
    subject = replace(parse_subject("docker:sdk:runc"), socket="/run/docker.sock")
    assert subject.words == "docker:sdk:runc --attach /run/docker.sock"


@pytest.mark.parametrize("text", ["mine=oci:/opt/mine", "x=containerd:grpc:/opt/mine", "c=cri:unix:///run/c@home.sock"])
def test_words_of_own_runtimes(text: str) -> None:
    assert parse_subject(text).words == text


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("x=containerd:grcp:runc@/run/x.sock", "did you mean 'containerd:grpc:runc'"),
        ("x=oci:runc@/run/x.sock", "has an engine to attach to"),
        ("x=nothing@/run/x.sock", "there are minirt:grpc"),
        ("x=@/run/x.sock", "there are minirt:grpc"),
        ("x=docker:sdk:runc@run/x.sock", "write docker:sdk:runc@/absolute/path"),
        ("x=docker:sdk:runc@", "write docker:sdk:runc@/absolute/path"),
        ("x=docker:sdk:runc@unix:///run/x.sock", "write docker:sdk:runc@/absolute/path"),
        ("x=docker:sdk:rnc", "containerd:grpc:runc@/path/to.sock"),
    ],
)
def test_errors_about_a_row_and_a_socket_teach(text: str, lesson: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_subject(text)
    assert lesson in str(caught.value)


def test_a_runtime_of_ones_own_cannot_be_put_below_an_engine_that_runs() -> None:
    table = [*BUILT_IN, parse_subject("mine=docker:sdk:/opt/mine")]
    with pytest.raises(UsageError, match="/opt/mine cannot be put below"):
        parse_subject("x=mine@/run/docker.sock", table)


def test_every_capability_has_a_reason_for_its_absence() -> None:
    assert set(WHY_NOT) == set(Capability)
