"""``seatrial vm``: machines to hold trials on."""

from __future__ import annotations

import sys
import time
from functools import partial

import click

from harness.cli.teller import Teller
from harness.errors import MachineError, UsageError


@click.group(
    "vm",
    epilog="""\b
Examples:
  seatrial vm list                      machines there are, and which are up
  seatrial vm up trixie                 make its box where there is none, start it, wait for ssh
  seatrial vm ssh trixie                a shell there
  seatrial vm ssh trixie -- uname -a    one command
  seatrial vm destroy --all
  seatrial run --quick --machine trixie a trial there: needs no `vm up`
\b
Machines are defined in vagrant/machines.yaml. Boxes are kept in /var/cache/seatrial (SEATRIAL_CACHE names another folder).
Exit status: 0 it is done; 2 bad usage; 3 this computer cannot.""",
)
def vm() -> None:
    """Linux machines to hold trials on: made from Debian's own packages, or public Vagrant boxes."""


@vm.command("list")
def list_() -> None:
    """List the machines, and what there is of them."""
    from rich import box as frames
    from rich.console import Console
    from rich.table import Table

    from harness.fleet.box import find_box
    from harness.fleet.definition import read_definitions
    from harness.fleet.machine import find_machine

    table = Table(box=frames.SIMPLE_HEAD, pad_edge=False)
    for title in ("machine", "state", "box", "built", "cgroup", "size"):
        table.add_column(title, no_wrap=True)
    for definition in read_definitions().values():
        box = find_box(definition.recipe) if definition.recipe else None
        machine = find_machine(definition)
        built = f"{box.size_bytes / 1e6:.0f} MB, {_ago(box.built_s)}" if box else "not built"
        table.add_row(
            definition.name,
            f"up, {machine.accelerator.kind}, {_ago(machine.since_s)}" if machine else "–",
            definition.box,
            built if definition.recipe else "public",
            definition.cgroup,
            f"{definition.cpus} cores, {definition.memory_mb} MB",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@vm.command()
@click.argument("names", metavar="MACHINE...", nargs=-1, required=True)
@click.option("--fresh", is_flag=True, help="Make it anew, with the packages of today.")
def build(names: tuple[str, ...], fresh: bool) -> None:
    """Make the boxes of machines, from packages of this computer's Debian archive.

    A box is kept until its definition changes. The same versions of packages give the same content (its digest is shown).
    """
    from harness.fleet.box import build_box
    from harness.fleet.definition import find_definition, read_definitions

    _root()
    known = read_definitions()
    for definition in [find_definition(name, known) for name in names]:
        if definition.recipe is None:
            raise UsageError(f"{definition.box} is a public box: there is nothing to build, `vm up` fetches it")
        started = time.monotonic()
        with Teller() as tell:
            box = build_box(definition.recipe, partial(tell, definition.recipe.name), fresh=fresh)
        click.echo(f"{box.path}: {box.size_bytes / 1e6:.0f} MB, content {box.content[:16]}, {_took(started)}")


@vm.command()
@click.argument("names", metavar="MACHINE...", nargs=-1, required=True)
def up(names: tuple[str, ...]) -> None:
    """Start machines, and wait until they answer by ssh. They stay until they are destroyed."""
    from harness.cli.signals import sigterm_as_interrupt
    from harness.fleet.definition import find_definition, read_definitions
    from harness.fleet.machine import bring_up, find_machine, reserved

    _root()
    known = read_definitions()
    for definition in [find_definition(name, known) for name in names]:
        with sigterm_as_interrupt(), reserved(definition.name, "it is being brought up"):
            if find_machine(definition):
                click.echo(f"{definition.name} is up already")
                continue
            started = time.monotonic()
            with Teller() as tell:
                machine = bring_up(definition, partial(tell, definition.name))
            machine.place.keep()
        click.echo(f"{definition.name} is up, {_took(started)}: seatrial vm ssh {definition.name}")


@vm.command()
@click.argument("name", metavar="MACHINE")
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str, command: tuple[str, ...]) -> None:
    """Open a shell on a machine, or run one command; its exit status is that of this command."""
    import os

    from harness.fleet.definition import find_definition, read_definitions
    from harness.fleet.machine import find_machine

    _root()
    machine = find_machine(find_definition(name, read_definitions()))
    if machine is None:
        raise MachineError(f"{name} is not up", f"seatrial vm up {name}")
    address = machine.address
    sys.stdout.flush()
    argv = [*address.prefix, "ssh", *address.options, address.host, *command]
    os.execvp(argv[0], argv)


@vm.command()
@click.argument("names", metavar="[MACHINE...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All machines that are up.")
def destroy(names: tuple[str, ...], every: bool) -> None:
    """End machines and remove their disks. Boxes stay."""
    from harness.fleet.definition import find_definition, read_definitions
    from harness.fleet.machine import reserved, take_down

    _root()
    known = read_definitions()
    if bool(names) == every:
        raise UsageError("name the machines, or say --all")
    for definition in [find_definition(name, known) for name in (known if every else names)]:
        with reserved(definition.name, "it is being destroyed"):
            if take_down(definition):
                click.echo(f"{definition.name} is gone")
            elif not every:
                click.echo(f"{definition.name} is not up")


def _root() -> None:
    import os

    if os.geteuid() != 0:
        words = " ".join(sys.argv[1:])
        raise MachineError("virtual machines need root here: private networks, disks", f"sudo seatrial {words}")


def _ago(when_s: float) -> str:
    hours = (time.time() - when_s) / 3600
    return (
        f"{hours * 60:.0f} min ago"
        if hours < 2
        else f"{hours:.0f} h ago"
        if hours < 48
        else f"{hours / 24:.0f} days ago"
    )


def _took(started_s: float) -> str:
    return f"{time.monotonic() - started_s:.0f} s"
