"""What the daemon remembers of pods and containers: one JSON file each, replaced by rename, read again at the next start.

Whoever reads finds the old record or the new one, also after a kill at any moment. Records are not forced to the disk: what
they tell of does not outlive the machine's power either, and a file that the power cut short is put aside like any other
that cannot be read. (Forcing would cost each container three waits for the disk.)
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from cri_api.v1 import api_pb2 as api
from google.protobuf.message import DecodeError

from harness.minirt.cri import log
from harness.minirt.errors import InvalidArgument, NotFound

CREATED, RUNNING, EXITED = range(3)
UNKNOWN_EXIT_CODE = 255
VERSION = 1
"""of the form of records; one of a later version is not understood"""


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
    listed: tuple[object, bytes] = field(default=(None, b""), init=False, repr=False, compare=False)
    """its entry in a list, and the state of which that tells (`harness.minirt.cri.lists`); not kept on disk"""

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
        """Raises `ValueError` for what is not a record of a pod."""
        with _understood():
            config = api.PodSandboxConfig.FromString(base64.b64decode(row["config"], validate=True))
            return cls(**{**_known(cls, row), "config": config, "ips": tuple(row["ips"])})


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
    listed: tuple[object, bytes] = field(default=(None, b""), init=False, repr=False, compare=False)
    """its entry in a list, and the state of which that tells (`harness.minirt.cri.lists`); not kept on disk"""

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
        """Raises `ValueError` for what is not a record of a container."""
        with _understood():
            config = api.ContainerConfig.FromString(base64.b64decode(row["config"], validate=True))
            uid, gid, groups = row["user"]
            row = {**_known(cls, row), "chain": tuple(row["chain"]), "user": (uid, gid, tuple(groups))}
            return cls(**{**row, "config": config})


def _pack(message: Any) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


def _known(kind: type[Pod] | type[Container], row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that this version knows, once their types are right."""
    if row.get("version", VERSION) > VERSION:
        raise ValueError(f"it is of version {row['version']}, written by a later minirt")
    names = {row.name: row.type for row in fields(kind)}
    for name, value in row.items():
        if names.get(name) in ("int", "str", "bool") and type(value).__name__ != names[name]:
            raise ValueError(f"{name} is not of type {names[name]}")
    return {name: value for name, value in row.items() if name in names}


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """What cannot be taken apart is not a record."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, DecodeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


Kind = TypeVar("Kind", Pod, Container)


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
            file.write(json.dumps({**row, "version": VERSION}).encode())
        os.rename(temporary, f"{folder}/{self._file}")

    def note(self, id: str, row: Mapping[str, Any]) -> None:
        """Replace a record by what the next start would find out by itself: a full disk is worth a warning, no more."""
        try:
            self.write(id, row)
        except OSError as error:
            log.warning("a record could not be written", path=self._folder / id / self._file, error=error)

    def remove(self, id: str) -> None:
        """Remove a record, then all that stands beside it; nothing happens where it is gone.

        Raises `OSError` where the record cannot be removed; then it all stays.
        """
        folder = f"{self._folder}/{id}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{folder}/{self._file}")
        shutil.rmtree(folder, ignore_errors=True)

    def has(self, id: str) -> bool:
        return os.path.exists(f"{self._folder}/{id}/{self._file}")

    def ids(self) -> list[str]:
        """Every id, with or without a record."""
        return sorted(os.listdir(self._folder))

    def read(self, kind: type[Kind]) -> Iterator[tuple[str, Kind | None]]:
        """Every id with its record; None where it has none, or one that cannot be read, which is put aside then."""
        for id in self.ids():
            path = self._folder / id / self._file
            record = None
            try:
                record = kind.from_json(json.loads(path.read_bytes()))
                if record.id != id:
                    raise ValueError(f"it is the record of {record.id!r}")
            except (FileNotFoundError, NotADirectoryError):
                pass
            except (OSError, ValueError, RecursionError) as error:
                record = None
                log.warning("a record cannot be read", path=path, kept_as=self._put_aside(id), error=error)
            yield id, record

    def _put_aside(self, id: str) -> str:
        """Keep a damaged record for a person to look at: ``<root>/damaged/<id>.<file>``; where it is, "" if it cannot be kept."""
        kept = self._folder.with_name("damaged") / f"{id}.{self._file}"
        try:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(self._folder / id / self._file, kept)
        except OSError:
            return ""
        return str(kept)


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
