"""How each scenario of the bench of OCI runtimes is performed: by the runtime's own command line, containers of /bin/true."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from harness.client.oci_door import Command
from harness.errors import Refused
from harness.model.bench import FLOOR, RUN
from harness.model.lifecycle import Operation
from harness.model.record import Memory
from harness.session.oci import OciTrial, open_oci
from harness.session.oci_box import Box
from harness.session.oci_config import Path as FieldPath
from harness.session.scenarios import Performance, Sail, Scale
from harness.session.trial import Trial

TRUE = ("/bin/true",)
MIB = 1 << 20
LARGEST_MIB = 64
"""a runtime that needs more than this to start a container is at fault"""
PROOFS = 5
"""starts on end that have to go well under a limit"""


@contextlib.contextmanager
def cycle(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Some containers a turn, each created, started and, when its program has ended, deleted."""
    oci = open_oci(trial)

    def one(box: Box) -> None:
        alive = lambda _: "" if oci.alive(box) else "it has no process"  # noqa: E731
        trial.steps.perform(Operation.CREATE, lambda: oci.create(box), alive)
        trial.steps.perform(Operation.START, lambda: oci.start(box))
        oci.await_end(box)
        trial.steps.perform(Operation.REMOVE, lambda: oci.delete(box), lambda _: _left(oci, box))

    yield _some(trial, oci, scale, one)


@contextlib.contextmanager
def run(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Some containers a turn, each by one command from beginning to end."""
    oci = open_oci(trial)

    def one(box: Box) -> None:
        trial.steps.perform(RUN, lambda: oci.create(box, verb="run"), lambda _: _left(oci, box))

    yield _some(trial, oci, scale, one)


@contextlib.contextmanager
def execute(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Some execs a turn, in a container that runs all the time."""
    oci = open_oci(trial)
    box = oci.launch()

    def turn() -> None:
        for trial.steps.iteration in range(scale.calls):
            trial.steps.perform(Operation.EXEC, lambda: oci.do("exec", box.id, *TRUE))

    try:
        yield turn
    finally:
        oci.tidy()


@contextlib.contextmanager
def peak(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """A container a turn; each command is run by a program that asks how much memory it held."""
    oci = open_oci(trial)

    def weigh(operation: Operation, verb: str, *words: str, box: Box) -> None:
        file = trial.arena.root / "peak"
        under = (sys.executable, "-m", "harness.meter.peak", str(file))
        with box.stdout.open("ab") as out, box.stderr.open("ab") as err:
            done = oci.door.call(
                Command(verb, words, under=under, stdout_fd=out.fileno(), stderr_fd=err.fileno(), env=dict(os.environ))
            )
        if done.status:
            raise Refused(f"{verb}: {box.stderr.read_text(errors='replace').strip()}", str(done.status))
        trial.steps.tell(operation, Memory(peak=int(file.read_text()) or None))

    def turn() -> None:
        box = oci.box(args=("/bin/sleep", "3600"))
        oci.write(box)
        try:
            weigh(
                Operation.CREATE, "create", "--bundle", str(box.path), "--pid-file", str(box.pid_file), box.id, box=box
            )
            weigh(Operation.START, "start", box.id, box=box)
            weigh(Operation.EXEC, "exec", box.id, *TRUE, box=box)
            oci.end(box)
            weigh(Operation.REMOVE, "delete", box.id, box=box)
        finally:
            oci.attempt("delete", "--force", box.id)
            oci.tidy()

    yield turn


@contextlib.contextmanager
def floor(trial: Trial, scale: Scale) -> Iterator[Sail]:
    """Once a turn the smallest limit is looked for: halving, then upwards until a limit proves itself."""
    oci = open_oci(trial)

    def starts(limit_mib: int) -> bool:
        changes: dict[FieldPath, object] = {
            f"linux.resources.memory.{name}": limit_mib * MIB for name in ("limit", "swap")
        }
        try:
            return oci.try_create(oci.box(changes, TRUE), verb="run").status == 0
        finally:
            oci.tidy()

    def turn() -> None:
        low, high = 0, LARGEST_MIB
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if starts(middle) else (middle, high)
        for limit in itertools.count(high):
            if all(starts(limit) for _ in range(PROOFS)):
                trial.steps.tell(FLOOR, Memory(limit=limit * MIB))
                return
            if limit > LARGEST_MIB:
                raise Refused(f"run starts no container with {LARGEST_MIB} MiB of memory")

    yield turn


OCI_PERFORMANCES: Mapping[str, Performance] = MappingProxyType(
    {"cycle": cycle, "run": run, "exec": execute, "peak": peak, "floor": floor}
)
"""By the name of the scenario (`harness.model.bench`)."""


def _some(trial: Trial, oci: OciTrial, scale: Scale, one: Callable[[Box], None]) -> Sail:
    """A turn of several containers, each with a fresh bundle."""

    def turn() -> None:
        for trial.steps.iteration in range(scale.calls):
            try:
                one(oci.box(args=TRUE))
            finally:
                oci.tidy()

    return turn


def _left(oci: OciTrial, box: Box) -> str:
    folders = oci.folders(box)
    return f"it left {folders[0]}" if folders else ""
