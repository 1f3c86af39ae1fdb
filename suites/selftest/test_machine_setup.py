"""harness.machine.setup: plans as data, steps against a release server on loopback and an apt-get that only listens."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import socket
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.command import Completed, Group, HostRunner, Process
from harness.errors import MachineError, UsageError
from harness.machine import crictl
from harness.machine.apt import INSTALL, UPDATE, Apt
from harness.machine.release import CRICTL_SHA256, crictl_release, install_release, unpack_program
from harness.machine.setup import (
    ConfigureCrictl,
    InstallPackages,
    InstallRelease,
    LeaveAlone,
    Result,
    Status,
    Wishes,
    Workshop,
    all_failed,
    perform,
    plan,
)

ENGINE = "unix:///run/some/engine.sock"
SCRIPT = b"#!/bin/sh\necho crictl version v9.9.9\n"


def nowhere(name: str) -> Path | None:
    return None


def everywhere(name: str) -> Path | None:
    return Path("/usr/bin") / name


@dataclass
class FakeRunner:
    """Notes what it is asked to run; `answers` gives the status and stderr of each word of a command in turn."""

    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        group: Group = Group.CLIENT,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> Completed:
        self.ran.append(tuple(argv))
        queue = next((queue for word, queue in self.answers.items() if word in argv), [])
        status, stderr = queue.pop(0) if queue else (0, "")
        return Completed(tuple(argv), status, b"", stderr.encode())

    def start(
        self,
        argv: Sequence[str],
        *,
        group: Group = Group.ENGINE,
        env: Mapping[str, str] | None = None,
        stdout_fd: int,
        stderr_fd: int,
    ) -> Process:
        raise AssertionError(f"setup starts nothing, but {argv}")


def tarball(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@contextlib.contextmanager
def release_server(content: bytes) -> Iterator[str]:
    """Serves `content` under every path that ends in the name of a crictl tarball; the base address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.endswith("/crictl-v9.9.9-linux-amd64.tar.gz")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/download"
        finally:
            server.shutdown()
            thread.join()


def closed_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    runner = FakeRunner()
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "archive_Packages.lz4").touch()
    return Workshop(
        runner, Apt(runner, lists), find=nowhere, bin=tmp_path / "bin", crictl_config=tmp_path / "etc" / "crictl.yaml"
    )


def take(wishes: Wishes, workshop: Workshop) -> tuple[Result, ...]:
    workshop.crictl_config.parent.mkdir(exist_ok=True)
    return perform(plan(wishes, nowhere, "x86_64"), workshop, lambda result: None)


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_plan_without_names_is_every_default_tool() -> None:
    steps = plan(Wishes(), nowhere, "x86_64")
    assert [step.tool for step in steps if isinstance(step, InstallPackages)] == [
        "containerd",
        "docker",
        "podman",
        "runc",
        "crun",
        "cni",
        "iproute2",
        "iptables",
        "busybox",
    ]
    assert [step.release.sha256 for step in steps if isinstance(step, InstallRelease)] == [
        CRICTL_SHA256["v1.31.1", "amd64"]
    ]


def test_what_is_there_is_left_alone() -> None:
    steps = plan(Wishes(("runc", "docker")), everywhere, "x86_64")
    assert [type(step) for step in steps] == [LeaveAlone, LeaveAlone]


def test_unknown_names_addresses_and_sums_are_refused_before_anything_is_done() -> None:
    with pytest.raises(UsageError, match="did you mean 'crictl'"):
        plan(Wishes(("circtl",)), nowhere, "x86_64")
    with pytest.raises(UsageError, match="unix:///"):
        plan(Wishes(("crictl",), endpoint="/run/some.sock"), nowhere, "x86_64")
    with pytest.raises(UsageError, match="--sha256"):
        plan(Wishes(("crictl",), crictl_version="v1.99.0"), nowhere, "x86_64")
    with pytest.raises(UsageError, match="--sha256"):
        plan(Wishes(("crictl",)), nowhere, "riscv64")
    with pytest.raises(UsageError, match="not a sha256"):
        plan(Wishes(("crictl",), sha256="123"), nowhere, "x86_64")


def test_release_address_and_sum() -> None:
    release = crictl_release("1.31.1", "aarch64")
    assert release.url.endswith("/cri-tools/releases/download/v1.31.1/crictl-v1.31.1-linux-arm64.tar.gz")
    assert release.sha256 == CRICTL_SHA256["v1.31.1", "arm64"]


def test_crictl_is_downloaded_verified_unpacked_and_configured(workshop: Workshop) -> None:
    content = tarball({"./crictl": SCRIPT})
    with release_server(content) as base:
        wishes = Wishes(("crictl",), "v9.9.9", hashlib.sha256(content).hexdigest(), ENGINE, base)
        results = take(wishes, workshop)
    program = workshop.bin / "crictl"
    assert [result.status for result in results] == [Status.DONE, Status.DONE, Status.NOTED]
    assert HostRunner().run([str(program)], timeout_s=10).text == "crictl version v9.9.9\n"
    assert everything_below(workshop.bin) == [program]
    assert crictl.read_endpoint(workshop.crictl_config) == ENGINE
    assert not all_failed(results, ("crictl",))


def test_progress_is_told_up_to_the_last_byte(workshop: Workshop) -> None:
    content = tarball({"crictl": SCRIPT})
    seen: list[tuple[int, int | None]] = []
    with release_server(content) as base:
        release = crictl_release("v9.9.9", "x86_64", hashlib.sha256(content).hexdigest(), base)
        install_release(release, workshop.bin, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(content), len(content))


def test_a_wrong_sum_installs_nothing(workshop: Workshop) -> None:
    with release_server(tarball({"crictl": SCRIPT})) as base:
        results = take(Wishes(("crictl",), "v9.9.9", "0" * 64, ENGINE, base), workshop)
    assert [result.status for result in results] == [Status.FAILED]
    assert "not what was published" in results[0].text
    assert not workshop.bin.exists()
    assert not workshop.crictl_config.exists()
    assert all_failed(results, ("crictl",))


def test_a_version_that_was_never_released_says_so(workshop: Workshop) -> None:
    with release_server(b"") as base:
        results = take(Wishes(("crictl",), "v9.9.8", "0" * 64, ENGINE, base), workshop)
    assert "HTTP 404" in results[0].text


def test_offline_says_so_and_goes_on_with_the_rest(workshop: Workshop) -> None:
    base = f"http://127.0.0.1:{closed_port()}"
    results = take(Wishes(("crun", "crictl"), "v9.9.9", "0" * 64, ENGINE, base), workshop)
    assert [(result.tool, result.status) for result in results] == [("crun", Status.DONE), ("crictl", Status.FAILED)]
    assert "Connection refused" in results[1].text
    assert not all_failed(results, ("crun", "crictl"))
    assert not all_failed(results, ())


@pytest.mark.parametrize("members", [{"README": b"x"}, {"../crictl": SCRIPT}, {"sub/crictl": SCRIPT}])
def test_a_tarball_without_the_program_at_its_top_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    source = tmp_path / "release.tar.gz"
    source.write_bytes(tarball(members))
    with pytest.raises(MachineError, match="has no file crictl"):
        unpack_program(source, "crictl", tmp_path / "bin")
    assert everything_below(tmp_path) == [source]


def test_a_link_in_the_programs_place_is_not_followed(tmp_path: Path) -> None:
    source = tmp_path / "release.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        info = tarfile.TarInfo("crictl")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(MachineError, match="has no file crictl"):
        unpack_program(source, "crictl", tmp_path / "bin")


def test_a_truncated_tarball_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "release.tar.gz"
    source.write_bytes(tarball({"crictl": bytes(range(256)) * 4096})[:2000])
    with pytest.raises(MachineError, match="cannot be unpacked"):
        unpack_program(source, "crictl", tmp_path / "bin")
    assert [path for path in everything_below(tmp_path) if path.is_file()] == [source]


def test_dry_run_lines_are_whole_and_change_nothing(workshop: Workshop, tmp_path: Path) -> None:
    before = everything_below(tmp_path)
    steps = plan(Wishes(("crun", "crictl"), endpoint=ENGINE), nowhere, "x86_64")
    lines = [line for step in steps for line in step.lines(workshop)]
    assert lines[0].endswith("--no-remove crun")
    assert any(line.startswith("curl") and line.endswith("crictl-v1.31.1-linux-amd64.tar.gz") for line in lines)
    assert any(CRICTL_SHA256["v1.31.1", "amd64"] in line and "sha256sum --check" in line for line in lines)
    assert any(f"runtime-endpoint: {ENGINE}" in line for line in lines)
    assert everything_below(tmp_path) == before
    assert isinstance(workshop.runner, FakeRunner)
    assert workshop.runner.ran == []


def test_without_root_each_step_says_so(workshop: Workshop, tmp_path: Path) -> None:
    runner = FakeRunner()
    user = Workshop(runner, Apt(runner, tmp_path / "lists"), root=False, find=nowhere, bin=tmp_path / "bin")
    results = perform(plan(Wishes(("crun", "runc")), nowhere, "x86_64"), user, lambda result: None)
    assert [result.status for result in results] == [Status.FAILED, Status.FAILED]
    assert [result.tool for result in results] == ["runc", "crun"]
    assert "sudo seatrial setup runc" in results[0].text
    assert runner.ran == []
    assert all_failed(results, ("crun", "runc"))


def test_a_configuration_of_somebody_else_is_kept_unless_an_endpoint_was_named(workshop: Workshop) -> None:
    path = workshop.crictl_config
    path.parent.mkdir()
    path.write_text("runtime-endpoint: unix:///run/theirs.sock\n")
    other = crictl.parse_endpoint(ENGINE)

    left = ConfigureCrictl(other, asked_for=False)
    assert left.lines(workshop) == ()
    assert left.perform(workshop).status is Status.NOTED
    assert path.read_text() == "runtime-endpoint: unix:///run/theirs.sock\n"

    result = ConfigureCrictl(other, asked_for=True).perform(workshop)
    kept = path.with_name("crictl.yaml.before-seatrial")
    assert str(kept) in result.text
    assert kept.read_text() == "runtime-endpoint: unix:///run/theirs.sock\n"
    assert crictl.read_endpoint(path) == ENGINE

    third = crictl.parse_endpoint("unix:///run/third.sock")
    ConfigureCrictl(third, asked_for=True).perform(workshop)
    assert kept.read_text() == "runtime-endpoint: unix:///run/theirs.sock\n"
    assert ConfigureCrictl(third, asked_for=True).perform(workshop).status is Status.THERE
    assert everything_below(path.parent) == [path, kept]


def test_a_broken_configuration_is_told_and_not_overwritten(workshop: Workshop) -> None:
    path = workshop.crictl_config
    path.parent.mkdir()
    path.write_text("- a\n- list\n")
    with pytest.raises(MachineError, match="cannot be read"):
        ConfigureCrictl(crictl.parse_endpoint(ENGINE), asked_for=True).perform(workshop)
    assert path.read_text() == "- a\n- list\n"


def test_conditions_of_an_engine_in_words() -> None:
    text = """{"status": {"conditions": [
        {"type": "RuntimeReady", "status": true},
        {"type": "NetworkReady", "status": false, "reason": "NetworkPluginNotReady"}]}}"""
    assert crictl.conditions_of(text) == "RuntimeReady, not NetworkReady (NetworkPluginNotReady)"
    with pytest.raises(ValueError, match="no conditions"):
        crictl.conditions_of("{}")


def test_apt_fetches_lists_only_where_there_are_none(tmp_path: Path) -> None:
    runner = FakeRunner()
    Apt(runner, tmp_path).install(("crun",))
    assert runner.ran == [UPDATE, (*INSTALL, "crun")]
    (tmp_path / "main_Packages").touch()
    runner = FakeRunner()
    Apt(runner, tmp_path).install(("crun",))
    assert runner.ran == [(*INSTALL, "crun")]


def test_apt_tries_once_more_with_fresh_lists(tmp_path: Path) -> None:
    (tmp_path / "main_Packages").touch()
    runner = FakeRunner({"install": [(100, "E: 404  Not Found")]})
    Apt(runner, tmp_path).install(("crun",))
    assert runner.ran == [(*INSTALL, "crun"), UPDATE, (*INSTALL, "crun")]


def test_apt_asks_for_lists_only_once_where_there_is_no_network(tmp_path: Path) -> None:
    runner = FakeRunner({"update": [(100, "W: noise\nE: Could not resolve 'archive'\n")]})
    apt = Apt(runner, tmp_path)
    for package in ("crun", "runc"):
        with pytest.raises(MachineError, match="Could not resolve 'archive'"):
            apt.install((package,))
    assert runner.ran == [UPDATE]


def test_apt_never_removes_a_package() -> None:
    assert "--no-remove" in INSTALL
    assert "APT::Get::Upgrade-By-Source-Package=false" in INSTALL


def test_a_configuration_of_our_own_is_not_kept(workshop: Workshop) -> None:
    path = workshop.crictl_config
    path.parent.mkdir()
    assert crictl.write_config(crictl.parse_endpoint("unix:///run/first.sock"), path) is None
    assert crictl.write_config(crictl.parse_endpoint(ENGINE), path) is None
    assert everything_below(path.parent) == [path]
    assert crictl.read_endpoint(path) == ENGINE
