"""The configurations of pods and containers that the CRI clients send: plain data in the shape of the CRI v1 messages.

The keys are those of the protobuf messages, so that one value serves gRPC (messages are built from it) and crictl (which
reads the same as JSON). Everything not set is left to the engine, as a kubelet's plain pod would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.model.container import ContainerSpec, Network

NAMESPACE = "seatrial"
_POD, _CONTAINER, _NODE = 0, 1, 2
"""runtime.v1.NamespaceMode"""


def sandbox_config(name: str, network: Network, cgroup_parent: str, log_directory: Path) -> dict[str, Any]:
    """A ``PodSandboxConfig``. Its containers have PID namespaces of their own; IPC is the pod's."""
    linux: dict[str, Any] = {"security_context": {"namespace_options": _namespaces(network)}}
    if cgroup_parent:
        linux["cgroup_parent"] = cgroup_parent
    config: dict[str, Any] = {
        "metadata": {"name": name, "uid": name, "namespace": NAMESPACE, "attempt": 0},
        "log_directory": str(log_directory),
        "linux": linux,
    }
    if network is Network.BRIDGE:
        config["hostname"] = name
    return config


def container_config(spec: ContainerSpec, network: Network) -> dict[str, Any]:
    """A ``ContainerConfig``. `network` is that of its pod."""
    return {
        "metadata": {"name": spec.name, "attempt": 0},
        "image": {"image": spec.image},
        "command": list(spec.argv),
        "envs": [{"key": key, "value": value} for key, value in (*spec.env, ("SEATRIAL_ID", spec.name))],
        "log_path": f"{spec.name}.log",
        "linux": {"security_context": {"namespace_options": _namespaces(network)}},
    }


def _namespaces(network: Network) -> dict[str, int]:
    return {"network": _NODE if network is Network.HOST else _POD, "pid": _CONTAINER, "ipc": _POD}
