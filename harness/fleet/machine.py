"""Virtual machines: brought up, found again, taken down; one user at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineError, SeatrialError
from harness.fleet.accelerator import Accelerator, Kind, find_accelerator
from harness.fleet.box import build_box, cache
from harness.fleet.definition import Definition
from harness.fleet.lines import NEVER, Recall, Say
from harness.fleet.link import Address
from harness.fleet.place import Place, find_place, open_place, require_programs
from harness.fleet.room import require_disk, require_memory
from harness.fleet.vagrant import UP_LIMIT_S, Vagrant, forget_boxes
from harness.keeper import runs

STATE = "machine.json"
SSH_CONFIG = "ssh_config"
OVERHEAD_MB = 256
"""of QEMU and libvirt, beside the guest's memory"""
DISK_BYTES = 2 << 30
"""for what a trial writes on the machine's disk, and the box' copy"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that answers by ssh."""

    definition: Definition
    place: Place
    accelerator: Accelerator
    since_s: float
    """seconds since 1970"""

    @property
    def ssh_config(self) -> Path:
        return self.place.folder / SSH_CONFIG

    @property
    def address(self) -> Address:
        """How ssh gets there from this computer."""
        return Address(self.definition.name, ("-F", str(self.ssh_config)), tuple(self.place.wrap(())))

    @property
    def console(self) -> str:
        """The end of its console, as a paragraph."""
        return Vagrant(self.definition, self.place, self.accelerator.kind).console_tail()


def bring_up(definition: Definition, say: Say, *, recall: Recall = NEVER, limit_s: float = UP_LIMIT_S) -> Machine:
    """Start a machine; it ends with this process, unless its place is told to `keep` on. The caller holds its lock.

    Raises `MachineError`: before anything is started where room, programs or the box are lacking, and with the end of the
    machine's console where it does not answer. Nothing is left of a machine that did not come up.
    """
    require_programs()
    require_memory(definition.memory_mb + OVERHEAD_MB, f"the machine {definition.name}")
    require_disk(Path(runs.DATA), DISK_BYTES, f"the machine {definition.name}")
    accelerator = find_accelerator(build_box(definition.recipe, say, recall=recall) if definition.recipe else None)
    if accelerator.notice:
        say(accelerator.notice)
    place = open_place(definition.name)
    vagrant = Vagrant(definition, place, accelerator.kind, limit_s)
    try:
        vagrant.up(say, recall)
        machine = Machine(definition, place, accelerator, time.time())
        machine.ssh_config.write_text(vagrant.ssh_config())
        facts = {"kind": accelerator.kind, "why": accelerator.why, "since_s": machine.since_s}
        (place.folder / STATE).write_text(json.dumps(facts))
    except BaseException as error:
        try:
            _take_down(vagrant, place)
        except SeatrialError as second:
            error.add_note(f"then, while taking it down: {second}")
        raise
    if definition.recipe:
        forget_boxes(definition.recipe.name)
    return machine


def find_machine(definition: Definition) -> Machine | None:
    """The machine where it is up."""
    place = find_place(definition.name)
    if place is None:
        return None
    try:
        facts = json.loads((place.folder / STATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return Machine(definition, place, Accelerator(Kind(facts["kind"]), facts["why"]), facts["since_s"])


def take_down(definition: Definition) -> bool:
    """End a machine, and what is left of one that did not come up whole; whether there was any. Raises `SeatrialError`."""
    place = find_place(definition.name)
    if place is None:
        return False
    _take_down(Vagrant(definition, place, Kind.TCG), place)
    return True


def _take_down(vagrant: Vagrant, place: Place) -> None:
    try:
        vagrant.destroy()
    finally:
        place.leave()


@contextlib.contextmanager
def reserved(name: str, what: str) -> Iterator[None]:
    """Be the only one that uses machine `name`, for `what`. Raises `MachineError` where somebody else does."""
    folder = cache() / "machines"
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another seatrial"
            raise MachineError(f"the machine {name} is taken: {holder}", "wait until that has ended") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{what} (process {os.getpid()})\n".encode(), 0)
        yield
    finally:
        os.close(fd)
