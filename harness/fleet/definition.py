"""Machines and boxes as ``vagrant/machines.yaml`` defines them; the Vagrantfile reads the same file."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import paths
from harness.errors import BadConfig, UsageError
from harness.linux.cgroups import Mode
from harness.model.subject import BUILT_IN

ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
"""What the kernel calls an architecture, and what Debian does."""
OWN = "seatrial/"
"""Boxes of this name are built here, all others come from a public catalogue."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a box is made of."""

    name: str
    suite: str
    """of Debian"""
    packages: tuple[str, ...]
    disk_gb: int


@dataclass(frozen=True, slots=True)
class Definition:
    """One machine."""

    name: str
    box: str
    recipe: Recipe | None
    """None: a public box"""
    cpus: int
    memory_mb: int
    cgroup: Mode
    cmdline: str
    """more words for the kernel's command line"""
    attach: Mapping[str, str]
    """name of a subject, and the row and socket that it stands for"""
    quick: tuple[str, ...]
    """names of the subjects that ``--quick`` tries where the machine is emulated; none: all"""

    def subjects(self, *, quick: bool) -> tuple[str, ...]:
        """What a trial tries where nothing is named, as words of a command line: all there is, or `quick` ones."""
        return self.spelt(self.quick if quick and self.quick else (*(row.name for row in BUILT_IN), *self.attach))

    def spelt(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names`, with what those stand for that are this machine's own; all others as they are."""
        return tuple(f"{name}={self.attach[name]}" if name in self.attach else name for name in names)


def source() -> Path:
    """The file that is read."""
    return paths.vagrant() / "machines.yaml"


def read_definitions(path: Path | None = None) -> dict[str, Definition]:
    """Every machine by its name, in the order of the file. Raises `BadConfig`."""
    import yaml

    path = path or source()
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadConfig(path, "file", str(error)) from None
    if not isinstance(data, dict) or not isinstance(data.get("machines"), dict):
        raise BadConfig(path, "machines", "must be a table of machines")
    recipes = _recipes(path, data.get("boxes") or {})
    found = {}
    for name, row in data["machines"].items():
        try:
            found[str(name)] = _definition(str(name), {**(data.get("defaults") or {}), **row}, recipes)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise BadConfig(path, f"machines.{name}", reason) from None
    return found


def find_definition(name: str, known: Mapping[str, Definition]) -> Definition:
    """The machine `name`. Raises `UsageError`, with the names there are."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UsageError(
            f"no machine is called {name!r}{hint}. Known: {', '.join(known)}; or write ssh://user@host[:port]"
        )
    return known[name]


def _definition(name: str, row: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> Definition:
    _only(row, ("box", "cpus", "memory_mb", "cgroup", "cmdline", "attach", "quick"))
    box, attach = str(row["box"]), dict(row.get("attach") or {})
    quick = tuple(map(str, row.get("quick") or ()))
    if unknown := set(quick) - {row.name for row in BUILT_IN} - set(attach):
        raise ValueError(f"does not know the subjects {', '.join(sorted(unknown))} of 'quick'")
    recipe = recipes[box.removeprefix(OWN)] if box.startswith(OWN) else None
    return Definition(
        name=name,
        box=box,
        recipe=recipe,
        cpus=int(row["cpus"]),
        memory_mb=int(row["memory_mb"]),
        cgroup=Mode(row["cgroup"]),
        cmdline=str(row.get("cmdline", "")),
        attach=attach,
        quick=quick,
    )


def _recipes(path: Path, rows: Mapping[str, Any]) -> dict[str, Recipe]:
    defaults = rows.get("defaults") or {}
    found = {}
    for name, row in rows.items():
        if name == "defaults":
            continue
        try:
            _only(row, ("suite", "packages", "more", "disk_gb"))
            merged = {**defaults, **row}
            packages = _packages([*merged["packages"], *row.get("more", ())])
            found[str(name)] = Recipe(str(name), str(merged["suite"]), packages, int(merged["disk_gb"]))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise BadConfig(path, f"boxes.{name}", reason) from None
    return found


def _packages(names: Sequence[str]) -> tuple[str, ...]:
    arch = ARCHITECTURES.get(platform.machine(), platform.machine())
    return tuple(name.replace("{arch}", arch) for name in names)


def _only(row: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in row:
        if key not in known:
            raise ValueError(f"does not know the key {key!r}; known: {', '.join(known)}")
