"""What killed runs left, found and removed without touching a run that lives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.arena.arena import arena_site
from harness.arena.cgroups import bases
from harness.clock import wait_until
from harness.errors import ArenaError, WaitTimeout
from harness.keeper import ladder, runs
from harness.linux.cgroups import read_pids


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is left of one run."""

    run: str
    arenas: tuple[str, ...]
    folders: tuple[str, ...]
    cgroups: tuple[str, ...]
    pids: tuple[int, ...]

    def __str__(self) -> str:
        parts = [
            _count(self.pids, "process", "processes"),
            _count(self.cgroups, "cgroup", "cgroups"),
            _count(self.folders, "folder", "folders"),
        ]
        return f"run {self.run}: {', '.join(part for part in parts if part)}"


def find_leftovers() -> list[Leftover]:
    """Every run that has something on this machine, but nobody alive to remove it."""
    tops = (runs.DATA, runs.STATE, *bases())
    names = {name for top in tops for name in _folders_in(top)}
    return [_look(name) for name in sorted(names) if not runs.is_alive(name)]


def remove(leftover: Leftover) -> None:
    """Remove it. Nothing happens where it is gone by now; a run of that name that lives is left alone.

    Raises `ArenaError` with everything that stays.
    """
    if runs.is_alive(leftover.run):
        return
    complaints = [text for name in leftover.arenas for text in ladder.climb(arena_site(leftover.run, name))]
    for base in bases():
        complaints += ladder.remove_cgroups(f"{base}/{leftover.run}")
    runs.sweep(leftover.run, bases())
    if complaints:
        raise ArenaError("; ".join(complaints))


def await_and_remove(run: str, timeout_s: float = 60.0) -> None:
    """Wait until nobody of `run` lives, its keepers clean up after a killed harness, then remove what is left.

    Raises `ArenaError`.
    """
    try:
        wait_until(lambda: not runs.is_alive(run), timeout_s, f"the keepers of run {run} to end")
    except WaitTimeout as error:
        raise ArenaError(str(error)) from error
    left = _look(run)
    if left.folders or left.cgroups:
        remove(left)


def _look(run: str) -> Leftover:
    places = [f"{top}/{run}" for top in (runs.DATA, runs.STATE)]
    trees = [f"{base}/{run}" for base in bases()]
    arenas = {name for place in (*places, *trees) for name in _folders_in(place)}
    return Leftover(
        run,
        tuple(sorted(arenas)),
        tuple(place for place in places if Path(place).is_dir()),
        tuple(folder for tree in trees for folder, _, _ in os.walk(tree)),
        tuple(sorted({pid for tree in trees for pid in read_pids(tree)})),
    )


def _folders_in(place: str) -> set[str]:
    """Their names; none where `place` is gone, which it may be at any moment while other runs end."""
    try:
        return {entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def _count(things: tuple[object, ...], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}" if things else ""
