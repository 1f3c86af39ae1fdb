"""Where programs are and what their versions are; which subjects can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.engine import availability, versions
from harness.engine.programs import find_cni, find_program, version_of
from harness.errors import UsageError
from harness.model.subject import BUILT_IN, Subject, define, parse_subject


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_programs_beyond_path_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_program("dockerd") == Path("/usr/sbin/dockerd")
    assert find_program("no-such-program") is None
    bridge = find_program("bridge")
    assert bridge is not None


def test_cni_plugins_are_found_together() -> None:
    assert find_cni(["bridge", "host-local", "loopback"]) is not None
    assert find_cni(["bridge", "no-such-plugin"]) is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('test "$1" = --version && echo "runc version 1.1.5+ds1"', "1.1.5+ds1"),
        ('test "$1" = --version && echo "Docker version 20.10.24+dfsg1, build 5d6db84"', "20.10.24+dfsg1"),
        ('test "$1" = --version && echo "containerd github.com/containerd/containerd 1.6.20~ds1 x"', "1.6.20~ds1"),
        ('test "$1" = --version && echo "crictl version v1.31.1"', "1.31.1"),
        ('test "$1" = version && echo "tool 3.2"', "3.2"),
        ("echo nothing", ""),
        ("exit 1", ""),
    ],
)
def test_versions_are_read_from_many_forms(tmp_path: Path, text: str, version: str) -> None:
    assert version_of(script(tmp_path / "tool", text)) == version


def test_an_upgraded_program_has_its_new_version(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "echo 1.0")
    assert version_of(tool) == "1.0"
    script(tool, "echo 2.0 # a later time").touch()
    assert version_of(tool) == "2.0"
    assert version_of(tmp_path / "missing") == ""


def test_every_built_in_subject_is_judged() -> None:
    for subject in BUILT_IN:
        reason = availability(subject)
        assert reason == "" or ": " in reason
        assert isinstance(versions(subject), dict)


def test_what_is_missing_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.engine.opening.find_program", lambda name: None)
    assert availability(parse_subject("containerd:grpc:runc")) == "containerd is not on PATH: seatrial setup containerd"
    assert availability(parse_subject("minirt:crictl")) == "crictl is not on PATH: seatrial setup crictl"
    assert availability(parse_subject("podman:cli:runc")) == "podman is not on PATH: seatrial setup podman"
    assert "not a program" in availability(define("mine", "oci:/nonexistent/runtime"))
    assert "no socket" in availability(define("far", "cri:unix:///nonexistent.sock"))


def test_podman_needs_something_to_make_networks_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.engine.podman.find_cni", lambda plugins: None)
    monkeypatch.setattr("harness.engine.podman.HELPERS", (str(tmp_path),))
    subject = parse_subject("podman:cli:crun")
    assert availability(subject) == "podman has neither netavark nor CNI plugins for its networks: seatrial setup cni"
    script(tmp_path / "netavark", "true")
    assert availability(subject) == ""


def test_root_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in availability(parse_subject("oci:runc"))


def test_versions_name_engine_client_and_runtime() -> None:
    assert set(versions(parse_subject("containerd:ctr:runc"))) == {"containerd", "ctr", "runc"}
    assert set(versions(parse_subject("minirt:grpc"))) == {"minirt"}
    assert set(versions(parse_subject("podman:cli:crun"))) == {"podman", "conmon", "crun"}


def test_an_unknown_engine() -> None:
    with pytest.raises(UsageError, match="no engine is called 'lxd'"):
        availability(Subject("x", "lxd", "grpc", "runc", frozenset()))
