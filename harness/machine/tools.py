"""The engines, clients and runtimes that a trial can use, and where each comes from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from harness.engine.programs import find_program
from harness.errors import MachineError
from harness.image.build import busybox_path


@dataclass(frozen=True, slots=True)
class Tool:
    """One thing that `seatrial setup` can install."""

    name: str
    what: str
    programs: tuple[str, ...]
    """it is there when all of these are found"""
    packages: tuple[str, ...] = ()
    """Debian's packages of it; empty where there is none and it comes as a release file"""
    default: bool = True
    """whether it is installed when no name is given"""


QEMU = f"qemu-system-{platform.machine()}"
QEMU_PACKAGE = "qemu-system-x86" if platform.machine() == "x86_64" else "qemu-system-arm"

_ROWS = (
    Tool("containerd", "engine", ("containerd", "ctr"), ("containerd",)),
    Tool("docker", "engine", ("dockerd",), ("docker.io",)),
    Tool("podman", "engine", ("podman", "conmon"), ("podman",)),
    Tool("runc", "OCI runtime", ("runc",), ("runc",)),
    Tool("crun", "OCI runtime", ("crun",), ("crun",)),
    Tool("runsc", "OCI runtime (gVisor)", ("runsc",), ("runsc",), default=False),
    Tool(
        "cni",
        "network plugins of containerd, podman and minirt",
        ("host-local", "loopback"),
        ("containernetworking-plugins",),
    ),
    Tool("iproute2", "links and addresses, to look at", ("ip",), ("iproute2",)),
    Tool("iptables", "firewall rules of bridge networks", ("iptables",), ("iptables",)),
    Tool("busybox", "static programs of the test images", ("busybox",), ("busybox-static",)),
    Tool("uidmap", "ids of a user's containers", ("newuidmap", "newgidmap"), ("uidmap",), default=False),
    Tool("criu", "checkpoints of minirt's containers", ("criu",), ("criu",), default=False),
    Tool(
        "qemu-user",
        "programs of another processor, for Seatrial's own tests",
        ("qemu-aarch64",),
        ("qemu-user",),
        default=False,
    ),
    Tool("crictl", "client of any CRI engine", ("crictl",)),
    Tool(
        "vm",
        "virtual machines to hold trials on",
        (QEMU, "qemu-img", "libvirtd", "virsh", "vagrant", "mmdebstrap", "mke2fs", "ssh"),
        (
            *(QEMU_PACKAGE, "qemu-utils", "libvirt-daemon-system", "libvirt-clients", "dnsmasq-base"),
            *("vagrant", "vagrant-libvirt", "mmdebstrap", "e2fsprogs", "openssh-client"),
        ),
        default=False,
    ),
)

TOOLS: Mapping[str, Tool] = MappingProxyType({row.name: row for row in _ROWS})
"""By name, in the order in which they are installed."""

SERVICES: Mapping[str, str] = MappingProxyType(
    {"containerd": "containerd.service", "docker": "docker.service", "podman": "podman.socket"}
)
"""Tools whose Debian package starts a service of the machine's own where systemd runs. Seatrial does not use, start or
stop it: it starts private engines."""


def find_tool(program: str) -> Path | None:
    """Where a program of a tool is. Of busybox only a static one counts: no other runs in an otherwise empty image."""
    if program != "busybox":
        return find_program(program)
    try:
        return busybox_path()
    except MachineError:
        return None
