"""Devices by the Container Device Interface: files of the host say what a container needs to use a device.

Follows the CDI specification 1.0 (cncf-tags/container-device-interface, SPEC.md). A device is called ``vendor/class=name``;
clients name it in ``CDI_devices``, older ones in annotations. Of several files with the same device the one in the later
folder counts; two in one folder make it ambiguous.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.devices import device_node, device_rule
from harness.minirt.errors import InvalidArgument, NotFound

_ANNOTATION = "cdi.k8s.io/"
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer")
"""those that the supervisor runs on the way to a started container"""
_LONGEST_HOOK_S = 10
"""unless the file says something else; nothing else is started meanwhile"""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that some file describes; `of_all` are the edits that come with any device of that file, once."""

    file: str
    edits: Mapping[str, Any]
    of_all: Mapping[str, Any]


def asked_devices(config: api.ContainerConfig) -> list[str]:
    """The names that a container's configuration asks for, each once. Raises `InvalidArgument`."""
    names = [device.name for device in config.CDI_devices]
    for key in sorted(config.annotations):
        if key.startswith(_ANNOTATION):
            names += config.annotations[key].split(",")
    for name in names:
        kind, equals, device = name.partition("=")
        if not equals or not device or kind.count("/") != 1 or not all(kind.split("/")):
            raise InvalidArgument(f"CDI device {name!r} is not of the form vendor/class=name")
    return list(dict.fromkeys(names))


def inject_devices(spec: dict[str, Any], names: Sequence[str], folders: Sequence[str]) -> None:
    """Change a config.json so that the container has these devices. Raises `NotFound` and `InvalidArgument`."""
    if not names:
        return
    known = _find_devices(folders)
    missing = [name for name in names if name not in known]
    if missing:
        raise NotFound(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}")
    edits: list[tuple[str, Mapping[str, Any]]] = []
    files: set[str] = set()
    for name in names:
        device = known[name]
        if device is None:
            raise InvalidArgument(f"CDI device {name} is ambiguous: two files of one folder describe it")
        if device.file not in files:
            files.add(device.file)
            edits.append((device.file, device.of_all))
        edits.append((name, device.edits))
    for what, edit in edits:
        try:
            _apply(spec, edit)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"CDI: {what}: {error!r}") from error
    spec["mounts"].sort(key=lambda row: row["destination"].rstrip("/").count("/"))


def _find_devices(folders: Sequence[str]) -> dict[str, Device | None]:
    known: dict[str, Device | None] = {}
    for folder in folders:
        here: dict[str, Device | None] = {}
        for path in sorted(Path(folder).glob("*")):
            for name, device in _read(path):
                here[name] = None if name in here else device
        known |= here
    return known


def _read(path: Path) -> Iterator[tuple[str, Device]]:
    """The devices in a file; none in one that is no CDI file, or a broken one, which is nobody's device."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_bytes())
        elif path.suffix in (".yaml", ".yml"):
            import yaml  # whoever has no such file need not pay for it

            content = yaml.safe_load(path.read_bytes())
        else:
            return
        kind, of_all = content["kind"], content.get("containerEdits") or {}
        rows = [(row["name"], row.get("containerEdits") or {}) for row in content["devices"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    for name, edits in rows:
        yield f"{kind}={name}", Device(str(path), edits, of_all)


def _apply(spec: dict[str, Any], edit: Mapping[str, Any]) -> None:
    process, linux = spec["process"], spec["linux"]
    if edit.get("env"):
        new = {entry.partition("=")[0]: entry for entry in edit["env"]}
        process["env"] = [entry for entry in process["env"] if entry.partition("=")[0] not in new] + list(new.values())
    for row in edit.get("deviceNodes") or ():
        _add_node(spec, row)
    for row in edit.get("mounts") or ():
        options = list(row.get("options") or ("ro", "nosuid", "nodev", "bind"))
        mount = {
            "destination": os.path.normpath(row["containerPath"]),
            "source": row["hostPath"],
            "type": row.get("type") or "bind",
            "options": options,
        }
        # What is mounted at the same place gives way.
        spec["mounts"] = [old for old in spec["mounts"] if old["destination"] != mount["destination"]] + [mount]
    for row in edit.get("hooks") or ():
        if row["hookName"] not in _HOOKS:
            raise ValueError(f"hooks of the kind {row['hookName']!r} are not run: only {', '.join(_HOOKS)}")
        hook = {"timeout": _LONGEST_HOOK_S}
        hook |= {key: row[key] for key in ("path", "args", "env", "timeout") if row.get(key)}
        spec.setdefault("hooks", {}).setdefault(row["hookName"], []).append(hook)
    if edit.get("additionalGids"):
        groups = {*process["user"]["additionalGids"], *(gid for gid in edit["additionalGids"] if gid)}
        process["user"]["additionalGids"] = sorted(groups)
    if edit.get("intelRdt"):
        linux["intelRdt"] = edit["intelRdt"]


def _add_node(spec: dict[str, Any], row: Mapping[str, Any]) -> None:
    """A node is like the host's, in what the file does not say of it; it belongs to the container's user."""
    linux, user = spec["linux"], spec["process"]["user"]
    path = row["path"]
    node: dict[str, Any] = {"path": path, "minor": 0}
    if not (row.get("type") and row.get("major")):
        found = device_node(os.path.realpath(row.get("hostPath") or path), path)
        if found is None:
            raise ValueError(f"{row.get('hostPath') or path} is not a device")
        node = found[0]
    node |= {key: row[key] for key in ("type", "major", "minor", "fileMode") if row.get(key) is not None}
    for key in ("uid", "gid"):
        node[key] = row[key] if row.get(key) is not None else user[key] or node.get(key, 0)
    if "fileMode" in node:
        node["fileMode"] = stat.S_IMODE(node["fileMode"])
    linux["devices"] = [old for old in linux["devices"] if old["path"] != path] + [node]
    if node["type"] in ("b", "c"):
        rule = device_rule(node["type"], node["major"], node["minor"], row.get("permissions") or "rwm")
        linux["resources"]["devices"].append(rule)
