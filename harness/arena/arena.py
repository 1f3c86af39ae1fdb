"""`Arena`: opens, runs commands in, and takes down the private place of one engine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.arena.cgroups import ArenaCgroups, bases, open_cgroups
from harness.arena.process import ArenaProcess, Capture, request_start
from harness.command import CommandTimeout, Completed, Group, HostProcess, HostRunner
from harness.errors import ArenaError, MachineError, SeatrialError, UsageError
from harness.keeper import ladder, runs, wire
from harness.linux.cgroups import Mode
from harness.linux.mounts import Mount, read_mounts

LONGEST_NAME = 32
"""Of an arena's folder. Socket paths end at 107 bytes, and engines add up to 50 of their own."""

ENTRY = "import sys; sys.path.insert(0, sys.argv[2]); from harness.keeper.process import main; main(int(sys.argv[1]))"

MOUNT_POINTS = {"/var/lib/cni": "cni", "/var/lib/containers": "containers", "/etc/docker": "etc-docker"}
"""Host folders that engines write to without an option to say otherwise → the folder of `Arena.root` seen there."""


class Arena:
    """A private place for one engine. A context manager, made by `open`; implements `harness.command.Runner`.

    Its processes are children of the keeper, in the keeper's mount and network namespace and in the arena's cgroups.
    Commands may be run from several threads at once. An environment of None is that of the harness when the arena opened.
    """

    def __init__(
        self,
        run_id: str,
        name: str,
        cgroups: ArenaCgroups,
        lock: int,
        *,
        attached: bool,
        covers: Mapping[str, str] = MOUNT_POINTS,
    ) -> None:
        self.run_id = run_id
        self.cgroups = cgroups
        self.attached = attached
        self.covers = covers
        self.root = Path(runs.DATA, run_id, name)
        self.state = Path(runs.STATE, run_id, name)
        self.logs = self.state / "logs"
        self.keeper_pid = 0
        self._lock = lock
        self._keeper: HostProcess | None = None
        self._channel: socket.socket | None = None
        self._spawners: dict[Group, socket.socket] = {}
        self._spawner_pids: set[int] = set()
        self._started: list[ArenaProcess] = []
        self._guard = threading.Lock()

    @classmethod
    def open(cls, run_id: str, slug: str, *, attach: bool = False, covers: Mapping[str, str] = MOUNT_POINTS) -> Arena:
        """Make folders, cgroups, and the keeper with its namespaces (none with `attach`: the host's are used then).

        `covers`: folders of the host that are covered inside, each by the folder of `root` that is named.

        Raises `MachineError` where this machine cannot do it, `ArenaError` for any other failure, `UsageError` for a
        name that is no path component. Nothing is left of an arena that could not be opened.
        """
        if os.geteuid() != 0:
            raise MachineError("an arena needs root", "run it again as root")
        name = arena_name(slug)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", run_id):
            raise UsageError(f"{run_id!r} cannot be the id of a run")
        arena = None
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: runs.sweep(run_id, bases()))
            with runs.turnstile():
                try:
                    lock = runs.hold(run_id)
                except BlockingIOError:
                    raise ArenaError(f"what a killed run {run_id} left is being removed just now") from None
                except OSError as error:
                    raise ArenaError(f"cannot make {error.filename}: {error.strerror}") from error
                undo.callback(os.close, lock)
                state = Path(runs.STATE, run_id, name)
                try:
                    state.mkdir(mode=0o711)
                except FileExistsError:
                    raise ArenaError(f"run {run_id} has an arena {name} already: {state} exists") from None
                undo.callback(ladder.climb, arena_site(run_id, name))
                try:
                    cgroups = open_cgroups(run_id, name)
                    arena = cls(run_id, name, cgroups, lock, attached=attach, covers=covers)
                    arena.root.mkdir(mode=0o711, parents=True)
                    arena.logs.mkdir()
                    if not attach:
                        runs.make_mount_points(covers)
                except OSError as error:
                    raise ArenaError(f"cannot make {error.filename}: {error.strerror}") from error
            undo.callback(arena.dismiss)
            arena.start_keeper()
            undo.pop_all()
        return arena

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SeatrialError as second:
            if error is None:
                raise
            error.add_note(f"then, while cleaning up: {second}")

    @property
    def netns(self) -> Path:
        """The arena's network namespace (the host's where it is attached)."""
        return Path(f"/proc/{self.keeper_pid}/ns/net")

    @property
    def mntns(self) -> Path:
        return Path(f"/proc/{self.keeper_pid}/ns/mnt")

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        group: Group = Group.CLIENT,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> Completed:
        words, program = _resolve(argv, env)
        channel = self._spawner(group)
        capture = Capture(input, stdout_fd, stderr_fd)
        try:
            process = request_start(channel, words, program, env, (), capture.stdio)
            try:
                capture.hand_over()
                return capture.run(process, timeout_s)
            finally:
                process.close()
        finally:
            capture.close()

    def start(
        self,
        argv: Sequence[str],
        *,
        group: Group = Group.ENGINE,
        env: Mapping[str, str] | None = None,
        stdout_fd: int,
        stderr_fd: int,
    ) -> ArenaProcess:
        words, program = _resolve(argv, env)
        stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process = request_start(
                self._open_channel(), words, program, env, self.cgroups.folders(group), (stdin, stdout_fd, stderr_fd)
            )
        finally:
            os.close(stdin)
        self._started.append(process)
        return process

    def mounts(self) -> list[Mount]:
        """The mounts of the arena's mount namespace."""
        return read_mounts(self.keeper_pid)

    def pids(self, group: str = "pods") -> list[int]:
        """Processes in the subtree of ``engine``, ``client`` or ``pods``; the arena's own spawners are left out."""
        return [pid for pid in self.cgroups.pids(group) if pid not in self._spawner_pids]

    def end_pods(self) -> None:
        """Kill every container, frozen ones too: for an engine that would wait long for them when it stops."""
        for tree in self.cgroups.trees():
            ladder.thaw(f"{tree}/pods")
        for pid in self.pids("pods"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_keeper(self) -> None:
        """Start the keeper and wait until its namespaces are made. Raises `ArenaError`."""
        here, there = wire.pair()
        self._channel = here
        plan = {
            "private": not self.attached,
            "run": self.run_id,
            "state": str(self.state),
            "folders": [str(self.root), str(self.state)],
            "cgroups": self.cgroups.trees(),
            "bases": bases(),
            "unified": str(self.cgroups.layout.unified) if self.cgroups.mode is Mode.HYBRID else "",
            "binds": [[str(self.root / name), target] for target, name in self.covers.items()],
        }
        argv = [sys.executable, "-I", "-S", "-c", ENTRY, str(there.fileno()), str(Path(__file__).parents[2])]
        with there, (self.logs / "keeper.log").open("wb") as log:
            self._keeper = HostRunner().start(
                argv, stdout_fd=log.fileno(), stderr_fd=log.fileno(), pass_fds=(there.fileno(),)
            )
        try:
            wire.send(here, plan, [self._lock])
            received = wire.receive(here)
        except OSError:
            received = None
        if received is None:
            tail = (self.logs / "keeper.log").read_text(errors="replace")[-2000:]
            raise ArenaError(f"the keeper died while it started: {tail}")
        if "error" in received[0]:
            raise ArenaError(f"cannot make the arena's namespaces: {received[0]['error']}")
        self.keeper_pid = received[0]["pid"]

    def close(self) -> None:
        """End all processes, and remove mounts, cgroups and folders. Raises `ArenaError` for what stays.

        A second call does nothing.
        """
        if self._channel is None:
            return
        complaints: list[str] = []
        try:
            # The keeper may be dead; its part is done below then.
            with contextlib.suppress(OSError):
                wire.send(self._channel, {"op": "close"})
                received = wire.receive(self._channel)
                complaints += received[0]["complaints"] if received else []
        finally:
            # An interrupt must not keep the lock: the run would be taken for alive.
            try:
                complaints += self.dismiss()
                complaints += ladder.climb(arena_site(self.run_id, self.state.name))
            finally:
                os.close(self._lock)
                runs.sweep(self.run_id, bases())
        if complaints:
            raise ArenaError("; ".join(complaints))

    def dismiss(self) -> list[str]:
        """End all conversations, upon which the keeper ends; what went wrong with that."""
        for conversation in (self._channel, *self._spawners.values(), *self._started):
            if conversation is not None:
                conversation.close()
        self._channel, self._spawners, self._started = None, {}, []
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            try:
                keeper.wait(2 * ladder.PATIENCE_S)
            except CommandTimeout:
                keeper.stop(0)
                return [f"the keeper (process {keeper.pid}) did not end and was killed"]
        return []

    def _open_channel(self) -> socket.socket:
        if self._channel is None:
            raise ArenaError("the arena is closed")
        return self._channel

    def _spawner(self, group: Group) -> socket.socket:
        """The spawner of a group, made at first use.

        What it starts is born in the right cgroups. Moving a process costs the whole machine an RCU grace period, some
        10 ms each time, which would end up in the time of a step.
        """
        with self._guard:
            channel = self._open_channel()
            if group not in self._spawners:
                here, there = wire.pair()
                try:
                    with there:
                        wire.send(
                            channel,
                            {"op": "spawner", "cgroups": self.cgroups.folders(group)},
                            [there.fileno()],
                        )
                    received = wire.receive(here)
                except OSError as error:
                    here.close()
                    raise ArenaError(f"the keeper does not answer: {error.strerror}") from error
                if received is None:
                    here.close()
                    raise ArenaError(f"the keeper cannot enter the cgroup {group}; see {self.logs / 'keeper.log'}")
                self._spawner_pids.add(received[0]["pid"])
                self._spawners[group] = here
            return self._spawners[group]


def arena_name(slug: str) -> str:
    """`slug`, or a shorter word that is as unique. Raises `UsageError` where it is no ``[a-z0-9-]`` word."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug):
        raise UsageError(f"{slug!r} cannot be the name of an arena")
    if len(slug) <= LONGEST_NAME:
        return slug
    return f"{slug[: LONGEST_NAME - 9]}-{hashlib.sha256(slug.encode()).hexdigest()[:8]}"


def arena_site(run_id: str, name: str) -> ladder.Site:
    """Where an arena is or was, for `ladder.climb`."""
    return ladder.Site(
        tuple(f"{base}/{run_id}/{name}" for base in bases()),
        (f"{runs.DATA}/{run_id}/{name}", f"{runs.STATE}/{run_id}/{name}"),
    )


def _resolve(argv: Sequence[str], env: Mapping[str, str] | None) -> tuple[list[str], str]:
    words = [str(word) for word in argv]
    program = shutil.which(words[0], path=None if env is None else env.get("PATH"))
    if program is None:
        raise MachineError(f"there is no program {words[0]}", "install it, or put it on PATH")
    return words, program
