"""Whether a machine that was made is what its definition says, and has what a trial is shipped to."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from harness.fleet.definition import Definition
from harness.linux.cgroups import layout_of

CLOCKS_APART_S = 120


def test_cgroup_mode_is_the_one_that_was_asked_for(host: Host, definition: Definition) -> None:
    controllers = host.file("/sys/fs/cgroup/cgroup.controllers")
    layout = layout_of(
        host.file("/proc/self/mountinfo").content_string,
        host.file("/proc/self/cgroup").content_string,
        controllers.content_string if controllers.exists else "",
    )
    assert layout.mode is definition.cgroup


def test_engine_that_is_to_be_attached_to_serves_its_socket(host: Host, definition: Definition) -> None:
    """It is run by systemd, and the socket that the subject names is there."""
    for words in definition.attach.values():
        row, _, path = words.rpartition("@")
        service = host.service(f"{row.partition(':')[0]}.service")
        assert service.is_running, f"{service.name} does not run"
        assert host.file(path).is_socket, f"there is no socket {path}"


def test_containerd_answers_the_cri(host: Host, definition: Definition) -> None:
    """Its CRI plugin is switched off by some distributions' configuration, and fails where the network is not set up."""
    if not any(words.startswith("containerd:") for words in definition.attach.values()):
        pytest.skip("no containerd of the machine's own is tried")
    plugins = [line.split() for line in host.check_output("ctr plugins ls").splitlines()]
    states = [row[-1] for row in plugins if row[:2] == ["io.containerd.grpc.v1", "cri"]]
    assert states == ["ok"]


def test_python_can_run_the_harness(host: Host) -> None:
    asked = host.run("python3 -c 'import sys, ssl, ctypes, zoneinfo; sys.exit(sys.version_info < (3, 11))'")
    assert asked.rc == 0, asked.stderr or "python3 is older than 3.11"


def test_clock_agrees_with_another(host: Host, request: pytest.FixtureRequest) -> None:
    """Records of several machines are put side by side, and certificates have dates."""
    now = request.config.getoption("--now")
    if not now:
        pytest.skip("there is no other clock to hold it against")
    assert abs(int(host.check_output("date +%s")) - now) < CLOCKS_APART_S
