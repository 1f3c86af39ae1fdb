"""``seatrial clean``: remove what a killed run left."""

from __future__ import annotations

import os

import click

from harness.errors import MachineError


@click.command("clean")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def clean(dry_run: bool) -> None:
    """Remove what runs that were killed (SIGKILL, power loss) left behind: processes, mounts, cgroups, folders.

    Runs that are under way, and whatever Seatrial did not start, are not touched.
    """
    from harness.arena.leftovers import find_leftovers, remove

    if os.geteuid() != 0:
        raise MachineError("what a run leaves belongs to root", "run it again as root: sudo seatrial clean")
    found = find_leftovers()
    for leftover in found:
        click.echo(f"{'would remove' if dry_run else 'removing'} {leftover}")
        if not dry_run:
            remove(leftover)
    if not found:
        click.echo("nothing is left behind")
