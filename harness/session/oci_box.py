"""`Box`: a bundle of a test, and the container that is made from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.session.oci_config import Path as FieldPath
from harness.session.oci_config import bind, changed, put

PROBE = "/probe.sh"
JOURNAL = "/journal"


@dataclass(slots=True, repr=False)
class Box:
    """A bundle. `config` is what ``create`` writes into it; the test may change it until then."""

    id: str
    path: Path
    cgroup: str
    """its cgroup, the same in every hierarchy"""
    config: dict[str, Any]

    def __repr__(self) -> str:
        return f"<{self.id}>"

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def pid_file(self) -> Path:
        return self.path / "pid"

    @property
    def stdout(self) -> Path:
        return self.path / "stdout"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr"

    @property
    def journal(self) -> Path:
        """A file to which hooks and the container write, one line each; see `keep_journal`."""
        return self.path / "journal"

    @property
    def entries(self) -> list[str]:
        """The lines of the journal."""
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def set(self, path: FieldPath, value: Any) -> Box:
        put(self.config, path, value)
        return self

    def apply(self, changes: Mapping[FieldPath, Any]) -> Box:
        self.config = changed(self.config, changes)
        return self

    def keep_journal(self) -> Box:
        """Have `journal` in the container, as ``/journal``."""
        self.journal.touch()
        self.journal.chmod(0o666)
        return self.set("mounts.+", bind(self.journal, JOURNAL))

    def hook(self, kind: str, script: str, **more: Any) -> Box:
        """Add a hook: a script for ``/bin/sh``, which the machine and the container both have. The state is in ``$STATE``.

        It is read before anything else: a runtime that has not written all of it when the hook ends dies of SIGPIPE (crun).
        """
        hooks = self.config.setdefault("hooks", {}).setdefault(kind, [])
        script = f"STATE=$(cat); {script}"
        hooks.append({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], **more})
        return self

    def folder(self, name: str, mode: int = 0o755) -> Path:
        """A new folder of the bundle's own, for a bind mount."""
        path = self.path / name
        path.mkdir()
        path.chmod(mode)
        return path


def plant(pristine: Path, rootfs: Path) -> None:
    """A root filesystem of its own for a bundle: the folders of `pristine`, and hard links to its files."""
    for folder, _, files in os.walk(pristine):
        there = rootfs / Path(folder).relative_to(pristine)
        there.mkdir(exist_ok=True)
        there.chmod(Path(folder).stat().st_mode & 0o7777)
        for name in files:
            os.link(Path(folder, name), there / name)
