"""What the daemon remembers of pods and containers: one JSON file each, replaced by rename, read again at the next start."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.errors import InvalidArgument, NotFound

CREATED, RUNNING, EXITED = range(3)
UNKNOWN_EXIT_CODE = 255


@dataclass(slots=True)
class Pod:
    """A pod sandbox. Only its owner, `pods.Pods`, changes it."""

    id: str
    config: api.PodSandboxConfig
    handler: str
    created_ns: int
    ready: bool = True
    ips: tuple[str, ...] = ()
    hostname: str = ""
    cgroup_parent: str = ""
    made_cgroup_parent: bool = False
    """whether the parent was not there before, and so should not be there after"""

    @property
    def on_host_network(self) -> bool:
        return bool(self.config.linux.security_context.namespace_options.network == api.NamespaceMode.NODE)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "config": _pack(self.config),
            "handler": self.handler,
            "created_ns": self.created_ns,
            "ready": self.ready,
            "ips": list(self.ips),
            "hostname": self.hostname,
            "cgroup_parent": self.cgroup_parent,
            "made_cgroup_parent": self.made_cgroup_parent,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Pod:
        config = api.PodSandboxConfig.FromString(base64.b64decode(row["config"]))
        return cls(**{**row, "config": config, "ips": tuple(row["ips"])})


@dataclass(slots=True)
class Container:
    """A container. Only its owner, `containers.Containers`, changes it."""

    id: str
    pod_id: str
    config: api.ContainerConfig
    image_id: str
    chain: tuple[str, ...]
    """of every layer that it needs: its own image's come first"""
    cgroup: str
    log_path: str
    stop_signal: int
    user: tuple[int, int, tuple[int, ...]]
    created_ns: int
    state: int = CREATED
    pid: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    depth: int = -1
    """how many of `chain` its root is stacked from; the others are of images that are mounted in it"""
    resources: dict[str, Any] = field(default_factory=dict)
    """limits as they are now: ``linux.resources`` of the runtime specification, and ``oom_score``"""

    @property
    def root_chain(self) -> tuple[str, ...]:
        return self.chain if self.depth < 0 else self.chain[: self.depth]

    def apply(self, facts: Mapping[str, Any]) -> bool:
        """Take over what the supervisor says; whether that is new. What has ended cannot start to run again."""
        if self.state == EXITED or (self.state == RUNNING and not facts["finished_ns"]):
            return False
        self.started_ns = facts["started_ns"]
        self.pid = facts["pid"]
        if facts["finished_ns"]:
            self.state = EXITED
            self.pid = 0
            self.finished_ns = facts["finished_ns"]
            self.exit_code = facts["exit_code"]
            self.reason = "OOMKilled" if facts.get("oom_killed") else "Error" if self.exit_code else "Completed"
            if not facts.get("exit_known", True):
                self.reason, self.message = "Unknown", "its supervisor was killed, and nobody else knows how it ended"
        else:
            self.state = RUNNING
        return True

    def fail(self, now_ns: int, exit_code: int, reason: str, message: str) -> None:
        """It has ended in a way that the supervisor does not know of."""
        self.state, self.pid = EXITED, 0
        self.finished_ns, self.exit_code, self.reason, self.message = now_ns, exit_code, reason, message

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "pod_id": self.pod_id,
            "config": _pack(self.config),
            "image_id": self.image_id,
            "chain": list(self.chain),
            "cgroup": self.cgroup,
            "log_path": self.log_path,
            "stop_signal": self.stop_signal,
            "user": [self.user[0], self.user[1], list(self.user[2])],
            "created_ns": self.created_ns,
            "state": self.state,
            "started_ns": self.started_ns,
            "finished_ns": self.finished_ns,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "message": self.message,
            "depth": self.depth,
            "resources": self.resources,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Container:
        config = api.ContainerConfig.FromString(base64.b64decode(row["config"]))
        uid, gid, groups = row["user"]
        return cls(**{**row, "config": config, "chain": tuple(row["chain"]), "user": (uid, gid, tuple(groups))})


def _pack(message: Any) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


class Folder:
    """``<folder>/<id>/<file>``: the records of one kind. An id without its file is half made, or half removed."""

    def __init__(self, folder: Path, file: str) -> None:
        self._folder = folder
        self._file = file
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, id: str) -> Path:
        return self._folder / id

    def write(self, id: str, row: Mapping[str, Any]) -> None:
        """Make or replace a record. Raises `OSError`; then the old one is still there."""
        folder = f"{self._folder}/{id}"
        temporary = f"{folder}/.{self._file}"
        with open(temporary, "wb", buffering=0) as file:
            file.write(json.dumps(row).encode())
        os.rename(temporary, f"{folder}/{self._file}")

    def remove(self, id: str) -> None:
        """Remove a record, then all that stands beside it; nothing happens where it is gone."""
        folder = f"{self._folder}/{id}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{self._file}")
        shutil.rmtree(folder, ignore_errors=True)

    def read(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Every id with its record: None where it has none, or one that cannot be read."""
        for id in sorted(os.listdir(self._folder)):
            try:
                row = json.loads((self._folder / id / self._file).read_bytes())
            except (FileNotFoundError, NotADirectoryError, ValueError):
                row = None
            yield id, row


def find_by_prefix(ids: Mapping[str, Any], text: str, what: str) -> str:
    """The one id that is, or starts with, `text`. Raises `NotFound`, or `InvalidArgument` where several do."""
    if text in ids:
        return text
    found = [id for id in ids if id.startswith(text)] if text else []
    if len(found) > 1:
        raise InvalidArgument(f"{what} {text!r} is ambiguous: {len(found)} ids start with it")
    if not found:
        raise NotFound(f"{what} {text!r} does not exist")
    return found[0]
