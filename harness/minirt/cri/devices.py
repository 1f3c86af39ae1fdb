"""Devices of the host in a container: the nodes that are made, and what the devices cgroup lets through."""

from __future__ import annotations

import os
import stat
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.errors import InvalidArgument

Rows = list[dict[str, Any]]
_NOT_DEVICES = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))


def translate_devices(config: api.ContainerConfig) -> tuple[Rows, Rows]:
    """``linux.devices`` and ``linux.resources.devices``. A privileged container gets all that the host has.

    Raises `InvalidArgument` for what is no device, nor a folder with some.
    """
    nodes: Rows = []
    rules: Rows = [{"allow": False, "access": "rwm"}]
    privileged = config.linux.security_context.privileged
    if privileged:
        nodes, rules = [node for node, _ in _nodes_below("/dev", "/dev")], [{"allow": True, "access": "rwm"}]
    for device in config.devices:
        permissions = device.permissions or "rwm"
        if set(permissions) - set("rwm"):
            raise InvalidArgument(f"device {device.host_path}: permissions {permissions!r} are not made of r, w and m")
        source = os.path.realpath(device.host_path)
        try:
            found = _nodes_below(source, device.container_path or device.host_path)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"device {device.host_path}: {error}") from error
        if not found:
            raise InvalidArgument(f"device {device.host_path}: it is not a device, nor a folder with some")
        for node, kind in found:
            nodes.append(node)
            if not privileged:
                rules.append(device_rule(kind, node["major"], node["minor"], permissions))
    return nodes, rules


def device_rule(kind: str, major: int, minor: int, access: str) -> dict[str, Any]:
    """A rule that lets a device through."""
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


def device_node(path: str, target: str) -> tuple[dict[str, Any], str] | None:
    """The node for `target` that is like the host's at `path`, and its kind; None for what is no device. Raises `OSError`."""
    status = os.lstat(path)
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        return None
    node = {
        "path": target, "type": kind, "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid,
    }  # fmt: skip
    return node, kind


def _nodes_below(source: str, target: str) -> list[tuple[dict[str, Any], str]]:
    if not stat.S_ISDIR(os.lstat(source).st_mode):
        found = device_node(source, target)
        return [] if found is None else [found]
    nodes = []
    for entry in sorted(os.listdir(source)):
        if entry not in _NOT_DEVICES and (source, entry) != ("/dev", "console"):
            nodes += _nodes_below(f"{source}/{entry}", f"{target}/{entry}")
    return nodes
