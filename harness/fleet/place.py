"""Where the hypervisor of a machine is: libvirt's service of this computer, or one of our own that nobody else sees."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.arena.leftovers import await_and_remove
from harness.clock import wait_until
from harness.command import Completed, HostProcess, HostRunner
from harness.errors import MachineError, SeatrialError
from harness.fleet.berth import ARENA, KEEP, READY, run_of
from harness.fleet.box import cache
from harness.keeper import runs

URI = "qemu:///system"
END_LIMIT_S = 30.0
"""for a berth's process, which takes down all that it keeps before it ends"""
PROGRAMS = {
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "vagrant": "vagrant and vagrant-libvirt",
    "ssh": "openssh-client",
}


class Place(Protocol):
    """Where Vagrant is run for one machine."""

    @property
    def private(self) -> bool:
        """Whether all that is there goes with it."""
        ...

    @property
    def folder(self) -> Path:
        """For what belongs to the machine; goes with it."""
        ...

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """`argv` so that it runs where the hypervisor and the machine's network are."""
        ...

    def keep(self) -> None:
        """Let it outlive this process: until then it ends with it."""
        ...

    def leave(self) -> None:
        """Take down what was made for the machine."""
        ...


class Service:
    """The computer has a libvirtd: machines are its domains, and only `vagrant destroy` ends them."""

    private = False

    def __init__(self, name: str) -> None:
        self.folder = cache() / "machines" / name

    def wrap(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def keep(self) -> None:
        """It does anyway."""

    def leave(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Private:
    """A berth: libvirtd of our own in an arena, kept by a process of its own (`harness.fleet.berth`)."""

    private = True

    def __init__(self, name: str, pid: int, keeper: int, owner_fd: int | None = None) -> None:
        self.name, self.pid, self.keeper = name, pid, keeper
        self._owner_fd = owner_fd
        self._process: HostProcess | None = None
        self.folder = Path(runs.DATA, run_of(name), ARENA)

    @classmethod
    def find(cls, name: str, owner_fd: int | None = None) -> Private | None:
        """The berth that is there for a machine."""
        try:
            facts = json.loads(_ready(name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        # A berth that was killed is cleaned up by its keeper; until then its file is there.
        if not runs.is_alive(run_of(name)):
            return None
        return cls(name, facts["pid"], facts["keeper"], owner_fd)

    @classmethod
    def make(cls, name: str) -> Private:
        """Make the berth, which ends with this process. Raises `MachineError`; nothing is left then."""
        read_fd, owner_fd = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as undo, tempfile.TemporaryFile() as log:
            undo.callback(os.close, owner_fd)
            argv = (sys.executable, "-m", "harness.fleet.berth", name, str(read_fd))
            try:
                process = HostRunner().start(argv, stdout_fd=log.fileno(), stderr_fd=log.fileno(), pass_fds=(read_fd,))
            finally:
                os.close(read_fd)
            try:
                wait_until(lambda: process.poll() is not None or _ready(name).exists(), 60.0, "a private libvirtd")
            except BaseException:
                process.stop(grace_s=30.0)
                raise
            if process.poll() is not None:
                log.seek(0)
                said = log.read().decode(errors="replace").strip()
                raise MachineError(f"a private libvirtd does not start: {said or 'it ended without a word'}")
            found = cls.find(name, owner_fd)
            if found is None:
                process.stop(grace_s=30.0)
                raise MachineError("a private libvirtd has ended while it was being started")
            found._process = process
            undo.pop_all()
        return found

    def wrap(self, argv: Sequence[str]) -> list[str]:
        root = f"/proc/{self.keeper}/ns"
        return ["nsenter", f"--net={root}/net", f"--mount={root}/mnt", "--", *argv]

    def keep(self) -> None:
        if self._owner_fd is not None:
            os.write(self._owner_fd, KEEP)
        self._let_go()

    def leave(self) -> None:
        """End the berth by its pid, and see that all of it is gone, its process too. Raises `ArenaError`."""
        if Private.find(self.name) is not None:
            with contextlib.suppress(ProcessLookupError), contextlib.ExitStack() as undo:
                berth = os.pidfd_open(self.pid)
                undo.callback(os.close, berth)
                signal.pidfd_send_signal(berth, signal.SIGTERM)
                select.select([berth], [], [], END_LIMIT_S)
        await_and_remove(run_of(self.name))
        if self._process is not None:
            self._process.wait(END_LIMIT_S)
        self._let_go()

    def _let_go(self) -> None:
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None


def open_place(name: str) -> Place:
    """A new place for a machine that is not up. Raises `MachineError`."""
    require_programs()
    if has_service():
        service = Service(name)
        service.folder.mkdir(parents=True, exist_ok=True)
        return service
    left = Private.find(name)
    if left is not None:
        # By somebody who was killed: it goes with them, and would not with us.
        left.leave()
    return Private.make(name)


def find_place(name: str) -> Place | None:
    """The place of a machine that was brought up; None where it was not."""
    private = Private.find(name)
    if private is not None:
        return private
    service = Service(name)
    return service if service.folder.is_dir() else None


def require_programs() -> None:
    """Raises `MachineError` for what is not installed."""
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=search)]
    if missing:
        raise MachineError(f"virtual machines need {', '.join(missing)}", "seatrial setup vm")


def has_service() -> bool:
    """Whether a libvirtd of this computer's answers."""
    try:
        return HostRunner().run(("virsh", "--connect", URI, "version"), timeout_s=30).status == 0
    except SeatrialError:
        return False


class PlaceRunner:
    """`harness.fleet.lines.Starter`, and short commands, in a place."""

    def __init__(self, place: Place, env: Mapping[str, str] | None = None) -> None:
        self._place, self._env = place, env

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        return HostRunner().run(self._place.wrap(argv), timeout_s=timeout_s, env=self._env)

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdout_fd: int, stderr_fd: int
    ) -> HostProcess:
        return HostRunner().start(
            self._place.wrap(argv), env=env or self._env, stdout_fd=stdout_fd, stderr_fd=stderr_fd
        )


def _ready(name: str) -> Path:
    return Path(runs.STATE, run_of(name), ARENA, READY)
