"""The ``config.json`` that a conformance test starts from, and changes to it by path.

A path is ``linux.resources.memory.limit``; a number picks an element of a list (-1: the last), ``+`` adds one. Where a key
has a dot in it, the path is a tuple of its parts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from harness.client.oci_config import CAPABILITIES

Path = str | tuple[str, ...]
GONE: Any = object()
"""As a value: takes the field away."""
PATH = "PATH=/bin"
VERSION = "1.0.2"


def base_config(container: str, cgroup: str) -> dict[str, Any]:
    """A container with namespaces of its own but for the network, the file systems of "Default Filesystems" that need no
    privilege, and Docker's capabilities. Its root is ``rootfs``, writable; it asks for nothing else.
    """
    return {
        "ociVersion": VERSION,
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": [PATH, f"SEATRIAL_ID={container}"],
            "cwd": "/",
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        },
        "mounts": [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            **({"cgroupsPath": cgroup} if cgroup else {}),
        },
    }


def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    """An entry of ``mounts``."""
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        **({"options": list(options)} if options else {}),
    }


def bind(source: object, destination: str, *options: str) -> dict[str, Any]:
    """A bind mount; ``bind`` is among its options unless ``rbind`` is."""
    return mount(destination, "none", str(source), *([] if "rbind" in options else ["bind"]), *options)


def changed(config: Mapping[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    """A copy of `config` with each of `changes` made, in their order."""
    result = copy.deepcopy(dict(config))
    for path, value in changes.items():
        put(result, path, copy.deepcopy(value) if value is not GONE else GONE)
    return result


def parts_of(path: Path) -> list[str]:
    return path.split(".") if isinstance(path, str) else list(path)


def put(config: Any, path: Path, value: Any) -> None:
    """Set one field, making the objects on the way to it; `GONE` takes it away."""
    parts = parts_of(path)
    holder = config
    for part in parts[:-1]:
        if isinstance(holder, list):
            holder = holder[int(part)]
        else:
            if not isinstance(holder.get(part), dict | list):
                holder[part] = {}
            holder = holder[part]
    last = parts[-1]
    if last == "+":
        holder.append(value)
    elif isinstance(holder, list):
        if value is GONE:
            del holder[int(last)]
        else:
            holder[int(last)] = value
    elif value is GONE:
        holder.pop(last, None)
    else:
        holder[last] = value


def drop(config: Any, path: Path) -> None:
    """Take one field away; nothing happens where it, or what should hold it, is not there."""
    parts = parts_of(path)
    holder = config
    for part in parts[:-1]:
        holder = _step(holder, part)
    if isinstance(holder, list):
        if -len(holder) <= int(parts[-1]) < len(holder):
            del holder[int(parts[-1])]
    elif isinstance(holder, dict):
        holder.pop(parts[-1], None)


def _step(holder: Any, part: str) -> Any:
    if isinstance(holder, list):
        return holder[int(part)] if -len(holder) <= int(part) < len(holder) else None
    return holder.get(part) if isinstance(holder, dict) else None
