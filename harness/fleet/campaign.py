"""A trial on several machines: each on its own account, side by side as cores allow, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import secrets
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__
from harness.command import Completed, HostProcess, HostRunner
from harness.errors import Recalled, SeatrialError, StoreError
from harness.fleet.accelerator import Kind
from harness.fleet.cargo import PATH
from harness.fleet.checks import check_machine
from harness.fleet.definition import Definition, find_definition, read_definitions
from harness.fleet.expedition import hold, shipped
from harness.fleet.lines import Recall, Say
from harness.fleet.link import Link, parse_address
from harness.fleet.machine import Machine, bring_up, find_machine, reserved
from harness.model.record import Run
from harness.model.subject import Subject, parse_subject
from harness.store import RunFolder, hidden_folder

LOCAL = "local"
"""Names this computer among machines."""


@dataclass(frozen=True, slots=True)
class Order:
    """What every machine is to do."""

    command: tuple[str, ...]
    """as it was typed"""
    options: tuple[str, ...]
    """of ``seatrial run``, without subjects"""
    subjects: tuple[str, ...]
    """none: what the machine's definition says, elsewhere all that Seatrial knows"""
    pytest_options: tuple[str, ...]
    config: Path | None
    output: Path
    quick: bool
    seed: int
    ssh_config: Path | None = None
    """for hosts that are named by their address"""


@dataclass(frozen=True, slots=True)
class Target:
    """One machine: a definition, an address, or this computer."""

    name: str
    definition: Definition | None = None

    @property
    def cores(self) -> int:
        """Of this computer, that it keeps busy."""
        return self.definition.cpus if self.definition else 0

    def table(self, known: tuple[Subject, ...]) -> tuple[Subject, ...]:
        """The subjects there are: those `known`, and what its definition attaches. Raises `UsageError`."""
        attached = self.definition.spelt(self.definition.attach) if self.definition else ()
        return (*known, *(parse_subject(word, known) for word in attached))

    def spelt(self, subjects: tuple[str, ...]) -> tuple[str, ...]:
        """`subjects` as a command line there has them: what its definition attaches has a name only here."""
        return self.definition.spelt(subjects) if self.definition else subjects


class LocalShore:
    """A place to hold a trial: here."""

    name = LOCAL

    def run(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> Completed:
        return HostRunner().run(argv, timeout_s=timeout_s)

    def start(self, argv: Sequence[str], *, stdout_fd: int, stderr_fd: int) -> HostProcess:
        return HostRunner().start(argv, stdout_fd=stdout_fd, stderr_fd=stderr_fd)


def find_targets(names: Sequence[str]) -> list[Target]:
    """The machines called `names`, each once. Raises `UsageError`."""
    known: dict[str, Definition] = {}
    found = []
    for name in dict.fromkeys(names):
        if name == LOCAL:
            found.append(Target(name))
        elif name.startswith("ssh://"):
            parse_address(name)
            found.append(Target(name))
        else:
            known = known or read_definitions()
            found.append(Target(name, find_definition(name, known)))
    return found


def hold_campaign(
    targets: Sequence[Target], order: Order, say: Callable[[str, str], None], recall: Recall
) -> tuple[list[Path], KeyboardInterrupt | None]:
    """Hold the trial on every machine; the run folders, in the order of `targets`, and the Ctrl-C that ended it early.

    `say` gets a machine's name and what happens there, from several threads. A machine on which the trial cannot be held has
    a run too, with the reason as its fault. Ctrl-C ends all of them; everything is taken down all the same.
    """
    folders: dict[str, Path] = {}

    def visit(target: Target) -> None:
        folders[target.name] = _visit(target, order, lambda line: say(target.name, line), recall)

    interrupt: KeyboardInterrupt | None = None
    for group in _groups(targets):
        with ThreadPoolExecutor(len(group), thread_name_prefix="machine") as pool:
            pending = [pool.submit(visit, target) for target in group]
            for future in pending:
                while not future.done():
                    try:
                        threading.Event().wait(0.2)
                    except KeyboardInterrupt as caught:
                        interrupt = interrupt or caught
                        recall.ask()
            for future in pending:
                future.result()
    return [folders[target.name] for target in targets], interrupt


def _groups(targets: Sequence[Target]) -> list[list[Target]]:
    """Machines that run side by side: this computer by itself, other hosts together, of our own as many as have cores."""
    cores = len(os.sched_getaffinity(0))
    groups = [[target] for target in targets if target.name == LOCAL]
    group: list[Target] = []
    for target in targets:
        if target.name == LOCAL:
            continue
        if group and target.cores and sum(other.cores for other in group) + target.cores > cores:
            groups.append(group)
            group = []
        group.append(target)
    return [*groups, group] if group else groups


def _visit(target: Target, order: Order, say: Say, recall: Recall) -> Path:
    """The trial on one machine; its run folder, whatever happens. Raises `StoreError`."""
    about: dict[str, Any] = {"name": target.name}
    try:
        recall.check()
        if target.name == LOCAL:
            with hidden_folder(order.output) as folder:
                argv = (sys.executable, "-m", "harness.cli", *_words(order, order.config, folder))
                return hold(LocalShore(), argv, order.output, {}, say, recall)
        with _linked(target, order, about, say, recall) as (link, last_words):
            recall.check()
            files = {order.config.name: order.config.read_bytes()} if order.config else {}
            with shipped(link, files, say) as (place, interpreter):
                recall.check()
                say("checking the machine")
                about["checks"] = str(check_machine(link, place, interpreter, target.definition, recall))
                say(about["checks"])
                recall.check()
                config = Path(place, order.config.name) if order.config else None
                words = _words(_suited(order, target, about, say), config, Path(place, "results"))
                argv = (
                    # Where the link is lost nobody else removes what was shipped.
                    *("sh", "-c", '"$@"; status=$?; rm -rf --one-file-system "$0"; exit $status', place),
                    *("env", "-C", place, f"PATH={place}/bin:{PATH}", "LC_ALL=C.UTF-8", "NO_COLOR=1"),
                    *(f"{place}/bin/seatrial", *words),
                )
                reproduce = functools.partial(_reproduce, target)
                return hold(link, argv, order.output, about, say, recall, reproduce, last_words)
    except StoreError:
        raise
    except Recalled:
        return _failed(target, order, about, "interrupted before the trial began")
    except SeatrialError as error:
        say(f"error: {error}")
        return _failed(target, order, about, "\n".join([str(error), *getattr(error, "__notes__", ())]))


@contextlib.contextmanager
def _linked(
    target: Target, order: Order, about: dict[str, Any], say: Say, recall: Recall
) -> Iterator[tuple[Link, Callable[[], str]]]:
    """A link to the machine, and what its console says; one that is not up is brought up for as long as it is needed."""
    if target.definition is None:
        with Link(parse_address(target.name, order.ssh_config), target.name) as link:
            yield link, str
        return
    with reserved(target.name, "a trial is held there"), contextlib.ExitStack() as undo:
        machine = find_machine(target.definition)
        if machine is None:
            machine = bring_up(target.definition, say, recall=recall)
            undo.callback(_dismiss, machine, say)
        about["accelerator"] = machine.accelerator.kind.value
        about["box"] = target.definition.box
        try:
            with Link(machine.address, target.name) as link:
                yield link, lambda: machine.console
        except SeatrialError as error:
            error.add_note(machine.console.strip())
            raise


def _dismiss(machine: Machine, say: Say) -> None:
    from harness.fleet.machine import take_down

    say("taking the machine down")
    take_down(machine.definition)


def _suited(order: Order, target: Target, about: Mapping[str, Any], say: Say) -> Order:
    """`order` with subjects as the machine takes them: those that its definition has, where none is named."""
    if target.definition is None or order.subjects:
        return dataclasses.replace(order, subjects=target.spelt(order.subjects))
    slow = order.quick and about["accelerator"] == Kind.TCG.value
    subjects = target.definition.subjects(quick=slow)
    if not slow:
        return dataclasses.replace(order, subjects=subjects)
    say(f"emulated, so that --quick takes {len(subjects)} subjects and one measured turn: name subjects to have others")
    # Elsewhere checks wait more than they work, so that there is one process more than processors.
    slowly = ("--turns=1", f"--jobs={target.definition.cpus}")
    return dataclasses.replace(order, subjects=subjects, options=(*slowly, *order.options))


def _words(order: Order, config: Path | None, output: Path) -> list[str]:
    """The command line of ``seatrial run`` on a machine."""
    return [
        *("run", "--stream", f"--output={output}", f"--seed={order.seed}", *order.options),
        *((f"--config={config}",) if config else ()),
        *order.subjects,
        *(("--", *order.pytest_options) if order.pytest_options else ()),
    ]


def _reproduce(target: Target, line: str) -> str:
    head, command, rest = line.partition("seatrial run ")
    return f"{head}{command}--machine {shlex.quote(target.name)} {rest}" if command else line


def _failed(target: Target, order: Order, about: Mapping[str, Any], fault: str) -> Path:
    """A run of nothing but the reason why there is no more."""
    now = datetime.datetime.now(datetime.UTC)
    run = Run(
        run=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        seatrial=__version__,
        command=order.command,
        seed=order.seed,
        quick=order.quick,
        started=now.isoformat(timespec="seconds"),
        ended=now.isoformat(timespec="seconds"),
        machine={**about, "fault": fault},
        subjects=(),
    )
    folder = RunFolder.create(order.output, run)
    folder.update(dataclasses.replace(run, subjects=tuple(word.partition("=")[0] for word in order.subjects)))
    return folder.path
