"""The programs of engines, clients and runtimes: where they are, and which version."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.command import HostRunner
from harness.errors import CommandError, MachineError

FURTHER = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/libexec",
    "/usr/local/libexec",
)
"""Searched after PATH: a user's PATH often lacks the sbin folders."""

CNI_FOLDERS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni", "/usr/local/lib/cni")

VERSION = re.compile(r"\bv?(\d+\.\d+(?:\.\d+)?[\w.+~-]*)")


def search_path() -> str:
    """PATH and the folders that it may lack: what engines get as theirs, too."""
    return os.pathsep.join(dict.fromkeys([*os.environ.get("PATH", os.defpath).split(os.pathsep), *FURTHER]))


def find_program(name: str) -> Path | None:
    """Where a program is: on PATH, in the system folders, or in the folders of CNI plugins; an absolute path is checked.

    ``minirt`` is the one that belongs to this Python. ``dockerd`` and all others are found by name.
    """
    if name == "minirt":
        beside = Path(sys.executable).with_name("minirt")
        if beside.is_file():
            return beside
    found = shutil.which(name, path=search_path()) or shutil.which(name, path=os.pathsep.join(CNI_FOLDERS))
    return Path(found) if found else None


def find_cni(plugins: Iterable[str]) -> Path | None:
    """The first folder that has all these CNI plugins."""
    for folder in CNI_FOLDERS:
        if all(shutil.which(plugin, path=folder) for plugin in plugins):
            return Path(folder)
    return None


def version_of(program: Path) -> str:
    """What the program calls its version: the number alone where there is one, "" where it tells none."""
    try:
        stamp = program.stat().st_mtime_ns
    except OSError:
        return ""
    return _version_of(program, stamp)


@functools.lru_cache(maxsize=64)
def _version_of(program: Path, stamp: int) -> str:
    for words in (("--version",), ("-v",), ("version",)):
        try:
            said = HostRunner().run([str(program), *words], timeout_s=10, env={**os.environ, "PATH": search_path()})
        except (MachineError, CommandError):
            continue
        text = said.text if said.status == 0 else ""
        if found := VERSION.search(text):
            return found[1].rstrip(",")
    return ""
