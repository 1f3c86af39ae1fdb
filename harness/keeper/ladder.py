"""Take down what an arena left: processes, mounts, folders, cgroups, in that order.

Used by the keeper when its arena closes or its harness dies, and by the harness when the keeper died too. Every rung goes
on past what it cannot remove; the complaints come back as sentences, the first one being the cause of the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness.linux import mounts, syscalls
from harness.linux.cgroups import read_pids

GRACE_S = 2.0
PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where an arena is. `cgroups`: its folder in each hierarchy; `folders`: its data and state."""

    cgroups: tuple[str, ...]
    folders: tuple[str, ...]


def climb(
    site: Site,
    *,
    unmount: Callable[[], list[str]] | None = None,
    descendants_of: int = 0,
    reap: Callable[[], None] = lambda: None,
) -> list[str]:
    """Remove all of `site`, and every process below `descendants_of` (0: only what the cgroups hold).

    `unmount` is asked to undo mounts, in the caller's own mount namespace; without it those in the site's folders are
    undone. `reap` is called between the looks at who still lives. Returns what could not be done; empty when nothing is
    left.
    """
    complaints = end_processes(site.cgroups, descendants_of, reap)
    complaints += unmount() if unmount else [text for folder in site.folders for text in unmount_below(folder)]
    for folder in site.folders:
        complaints += remove_tree(folder)
    for cgroup in site.cgroups:
        complaints += remove_cgroups(cgroup)
    return complaints


def end_processes(
    cgroups: Iterable[str], descendants_of: int = 0, reap: Callable[[], None] = lambda: None
) -> list[str]:
    """Containers (cgroup ``pods``) are killed at once, the others get SIGTERM and a moment first."""
    trees = tuple(cgroups)

    def everyone() -> set[int]:
        reap()
        found = {pid for tree in trees for pid in read_pids(tree)}
        return (found | descendants(descendants_of) if descendants_of else found) - {os.getpid()}

    def killed() -> bool:
        for tree in trees:
            thaw(tree)
        _signal(everyone(), signal.SIGKILL)
        return not everyone()

    for tree in trees:
        thaw(tree)
    _signal((pid for tree in trees for pid in read_pids(f"{tree}/pods")), signal.SIGKILL)
    _signal(everyone(), signal.SIGTERM)
    if _wait(lambda: not everyone(), GRACE_S) or _wait(killed, PATIENCE_S):
        return []
    left = ", ".join(f"{pid} ({_name(pid)})" for pid in sorted(everyone())[:10])
    return [f"processes do not die: {left}"]


def thaw(tree: str) -> None:
    """Resume every frozen cgroup at or below the folder `tree`: a frozen process of v1 cannot even be killed."""
    for folder, _, files in os.walk(tree):
        for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if name in files:
                with contextlib.suppress(OSError), open(f"{folder}/{name}", "w") as state:
                    state.write(word)


def descendants(ancestor: int) -> set[int]:
    """Every process below `ancestor`, zombies left out."""
    children: dict[int, list[int]] = {}
    dead: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).append(int(entry))
                if state in "ZX":
                    dead.add(int(entry))
    found: set[int] = set()
    todo = [ancestor]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found - dead


def unmount_below(folder: str) -> list[str]:
    """Unmount everything at or below `folder` that this mount namespace has there, the last mounted first."""
    return _unmount(mounts.mounts_below(mounts.read_mounts(), folder))


def unmount_since(known: frozenset[int]) -> list[str]:
    """Unmount everything that this mount namespace has, but the mounts with the numbers `known`."""
    return _unmount([mount for mount in reversed(mounts.read_mounts()) if mount.id not in known])


def _unmount(doomed: list[mounts.Mount]) -> list[str]:
    complaints = []
    for mount in doomed:
        try:
            syscalls.umount2(mount.target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            complaints.append(f"cannot unmount {mount.target}: {error.strerror}")
    return complaints


def remove_tree(folder: str) -> list[str]:
    """Remove a folder and all in it, but never follow a mount or a symlink out of it."""
    try:
        device = os.lstat(folder).st_dev
    except FileNotFoundError:
        return []
    # A bind mount can have the folder's own device number, so that is no proof.
    mounted = mounts.mounts_below(mounts.read_mounts(), folder)
    if mounted:
        return [f"{folder} is left alone, because {mounted[0].target} is still mounted"]
    complaints: list[str] = []
    _remove(folder, device, complaints)
    return complaints


def _remove(path: str, device: int, complaints: list[str]) -> None:
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(path)
            return
        if status.st_dev != device:
            complaints.append(f"{path} is a mount: left alone")
            return
        for name in os.listdir(path):
            _remove(f"{path}/{name}", device, complaints)
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if not complaints:
            complaints.append(f"cannot remove {path}: {error.strerror}")


def remove_cgroups(tree: str) -> list[str]:
    """Remove the cgroup folder `tree` and all below it, deepest first. The kernel may need a moment after a death."""

    def removed() -> bool:
        for folder, _, _ in os.walk(tree, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not os.path.isdir(tree)

    if _wait(removed, PATIENCE_S):
        return []
    return [f"cannot remove the cgroup {tree}: still held by {sorted(read_pids(tree)) or 'the kernel'}"]


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "?"


def _wait(true: Callable[[], bool], timeout_s: float) -> bool:
    # harness.clock is not for this process: it would bring in the error tree and more.
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while not true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.05)
    return True
