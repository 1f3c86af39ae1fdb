"""What kind of machine this is: kernel, cgroups, capabilities, processor, memory, disk."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.linux import capabilities, cgroups

STATE_FOLDER = Path("/var/lib")
"""Where the arenas keep the data of engines; its file system has to have room for them."""

CONSEQUENCES: Mapping[str, str] = MappingProxyType(
    {
        "CAP_SYS_ADMIN": "no namespaces, mounts or cgroups: nothing can run",
        "CAP_NET_ADMIN": "no bridges, addresses or firewall rules: only pods on the host network",
        "CAP_MKNOD": "no device nodes in containers",
        "CAP_SYS_CHROOT": "no root folder of a container's own",
        "CAP_SETUID": "no users inside containers",
        "CAP_SETGID": "no groups inside containers",
        "CAP_SETPCAP": "the capabilities of containers cannot be cut down",
        "CAP_SETFCAP": "image layers lose their file capabilities",
        "CAP_SYS_PTRACE": "memory of the engines' processes (PSS) cannot be read",
        "CAP_SYS_RESOURCE": "oom_score_adj cannot be lowered and hard limits not raised; containerd is told so "
        "(restrict_oom_score_adj), and podman (default_ulimits), other engines may refuse containers that ask for it",
    }
)
"""The capabilities that matter to a trial, and what follows where one is lacking."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine as a reader of its figures wants it described. Sizes in bytes."""

    kernel: str
    distribution: str
    architecture: str
    cgroup_mode: str
    """``v1``, ``hybrid`` or ``v2``"""
    cgroup_controllers: tuple[str, ...]
    cpu_model: str
    cores: int
    """that this process may use"""
    memory_bytes: int
    disk_free_bytes: int
    """on the file system of `STATE_FOLDER`"""
    root: bool
    systemd: bool
    """whether systemd is process 1"""
    capabilities: tuple[str, ...]
    """in effect for this process"""
    python: str

    @property
    def lacking(self) -> Mapping[str, str]:
        """The capabilities that matter and are not there, each with what follows."""
        return {name: text for name, text in CONSEQUENCES.items() if name not in self.capabilities}

    def to_json(self) -> dict[str, Any]:
        """A JSON object for ``run.json``; the capabilities by what is lacking, which is short and is what matters."""
        data = dataclasses.asdict(self)
        del data["capabilities"]
        return data | {"lacking_capabilities": list(self.lacking)}


def read_facts(proc: Path = Path("/proc"), etc: Path = Path("/etc")) -> Facts:
    """Look at this machine. Raises `OSError` and `ValueError` where ``/proc`` is not that of Linux."""
    try:
        layout = cgroups.read_layout()
        mode, controllers = str(layout.mode), tuple(sorted(layout.controllers))
    except (OSError, ValueError):
        mode, controllers = "none", ()
    status = capabilities.parse_status((proc / "self/status").read_text())
    release = etc / "os-release"
    return Facts(
        kernel=platform.release(),
        distribution=parse_distribution(release.read_text()) if release.exists() else "unknown",
        architecture=platform.machine(),
        cgroup_mode=mode,
        cgroup_controllers=controllers,
        cpu_model=parse_cpu_model((proc / "cpuinfo").read_text()),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=parse_memory((proc / "meminfo").read_text()),
        disk_free_bytes=shutil.disk_usage(STATE_FOLDER if STATE_FOLDER.exists() else "/").free,
        root=os.geteuid() == 0,
        systemd=Path("/run/systemd/system").is_dir(),
        capabilities=capabilities.names_of(status.get("effective", 0)),
        python=platform.python_version(),
    )


def parse_distribution(text: str) -> str:
    """The distribution's own name for itself in the text of ``/etc/os-release`` (os-release(5))."""
    keys = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.startswith("#"):
            keys[key.strip()] = " ".join(shlex.split(value))
    return keys.get("PRETTY_NAME") or keys.get("NAME") or keys.get("ID") or "unknown"


def parse_cpu_model(text: str) -> str:
    """The processor's name in the text of ``/proc/cpuinfo``; ARM kernels give none, then its numbers."""
    lines = [line.partition(":") for line in text.splitlines()]
    pairs = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    for key in ("model name", "Processor", "cpu model", "uarch"):
        if pairs.get(key):
            return pairs[key]
    numbers = [f"{key} {pairs[key]}" for key in ("CPU implementer", "CPU part") if key in pairs]
    return ", ".join(numbers) or "unknown"


def parse_memory(text: str) -> int:
    """Memory of the machine in bytes, from the text of ``/proc/meminfo``. Raises `ValueError` where it is not said."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"]:
            return int(words[1]) * 1024
    raise ValueError("/proc/meminfo does not give MemTotal")
