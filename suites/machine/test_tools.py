"""The engines, clients and runtimes of the machine under trial, and the services that come with them."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

from harness.machine.tools import SERVICES, TOOLS, Tool

SEARCH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/cni:/opt/cni/bin:/usr/libexec/cni"
OLDEST = {"containerd": (1, 6), "docker": (20, 10), "podman": (4, 3), "runc": (1, 1), "crun": (1, 8), "crictl": (1, 26)}
"""The oldest versions that Seatrial was tried with."""
SOCKETS = {
    "containerd": "/run/containerd/containerd.sock",
    "docker": "/run/docker.sock",
    "podman": "/run/podman/podman.sock",
}
"""where the machine's own services listen"""


@pytest.fixture(params=[tool for tool in TOOLS.values() if tool.default], ids=lambda tool: str(tool.name))
def tool(request: pytest.FixtureRequest, host: Host) -> Tool:
    """One tool that is installed."""
    chosen: Tool = request.param
    for program in chosen.programs:
        if host.run(f"{SEARCH} command -v {program}").rc:
            pytest.skip(f"{program} is not installed: seatrial setup {chosen.name}")
    return chosen


def test_package_is_whole(host: Host, tool: Tool) -> None:
    """Where a program came with a Debian package, that one is fully installed, not left half configured."""
    if not host.run("command -v dpkg-query").stdout:
        pytest.skip("this machine has no Debian packages")
    known = [name for name in tool.packages if host.run(f"dpkg-query -W {name}").rc == 0]
    if not known:
        pytest.skip(f"{tool.name} did not come with a Debian package")
    for name in known:
        assert host.check_output(f"dpkg-query -W -f '${{Status}}' {name}") == "install ok installed"
        assert host.package(name).version


@pytest.mark.parametrize("tool", [TOOLS[name] for name in OLDEST], ids=list(OLDEST), indirect=True)
def test_version_is_not_too_old(host: Host, tool: Tool) -> None:
    text = host.check_output(f"{SEARCH} {tool.programs[0]} --version")
    match = re.search(r"\bv?(\d+)\.(\d+)", text)
    assert match, f"no version in {text!r}"
    assert (int(match[1]), int(match[2])) >= OLDEST[tool.name]


@pytest.mark.parametrize("name", list(SERVICES))
def test_service_that_is_enabled_also_runs(host: Host, name: str) -> None:
    """A service that is to run and does not would be on the machine's mind (restarts) while figures are taken."""
    if not host.file("/run/systemd/system").is_directory:
        pytest.skip("systemd does not run here: there are no services")
    service = host.service(SERVICES[name])
    if not service.is_enabled:
        pytest.skip(f"{SERVICES[name]} is not enabled")
    assert service.is_running
    assert host.file(SOCKETS[name]).is_socket
