"""``seatrial setup``: install engines and clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.command import Runner
    from harness.machine.release import Progress
    from harness.machine.setup import Result, Step, Workshop

COLOURS = {"done": "green", "there": None, "noted": "yellow", "failed": "red"}


@click.command(
    "setup",
    epilog="""\b
Names: containerd, docker, podman, runc, crun, cni, iproute2, iptables, busybox, crictl, which are what it installs
without a name; and runsc, uidmap, criu, qemu-user, vm.
\b
Examples:
  seatrial setup --dry-run                       the commands that it would run
  seatrial setup                                 whatever is missing here
  seatrial setup crun crictl                     these two
  seatrial setup crictl --endpoint unix:///run/crio/crio.sock
\b
What is there already is left alone, wherever it came from; nothing is removed or replaced for it. Where systemd
runs, Debian's packages of containerd, docker and podman start a service of the machine's own: Seatrial does not use it.
Exit status: 0, also where something could not be installed; 3 if names were given and none of them could.""",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print the commands, change nothing.")
@click.option("--crictl-version", default="", metavar="VERSION", help="Release of crictl.  [default: v1.31.1]")
@click.option("--sha256", default="", metavar="SUM", help="Sum of crictl's tarball, for a release that is not pinned.")
@click.option(
    "--endpoint",
    default="",
    metavar="unix:///...",
    help="Engine for /etc/crictl.yaml.  [default: found, else containerd]",
)
def setup(names: tuple[str, ...], dry_run: bool, crictl_version: str, sha256: str, endpoint: str) -> int:
    """Install the engines and clients that a trial can use: Debian packages, and crictl as its project's release tarball,
    verified by its sha256, with /etc/crictl.yaml written and the engine asked through it.
    """
    from harness.command import HostRunner
    from harness.machine.apt import Apt
    from harness.machine.setup import Wishes, Workshop, all_failed, perform, plan

    runner = HostRunner()
    steps = plan(Wishes(names, crictl_version, sha256, endpoint))
    workshop = Workshop(runner, Apt(runner), root=os.geteuid() == 0)
    if dry_run:
        _show(steps, workshop)
        return 0
    if not workshop.root and any(step.changes and step.lines(workshop) for step in steps):
        _become_root(runner)
    with _bar() as progress:
        results = perform(steps, Workshop(runner, workshop.apt, workshop.root, progress=progress), _tell)
    return 3 if all_failed(results, names) else 0


def _show(steps: Sequence[Step], workshop: Workshop) -> None:
    """Every command that would run, as a script; what needs none as a comment."""
    from harness.machine.setup import LeaveAlone
    from harness.machine.tools import SERVICES

    for step in steps:
        if isinstance(step, LeaveAlone):
            click.echo(f"# {step.tool}: {step.where}")
            continue
        for line in step.lines(workshop):
            click.echo(line)
        if step.changes and step.tool in SERVICES:
            click.echo(f"# where systemd runs, the package starts {SERVICES[step.tool]}; Seatrial does not use it")


def _tell(result: Result) -> None:
    click.echo(f"{result.tool:<11} {click.style(f'{result.status:<6}', fg=COLOURS[result.status])}  {result.text}")


def _become_root(runner: Runner) -> None:
    """Start over through sudo, where it can be had; else return, and let each step say that it takes root."""
    if shutil.which("sudo") is None or "SUDO_UID" in os.environ:
        return
    # Without a terminal nobody can be asked for a password.
    if sys.stdin.isatty() or runner.run(["sudo", "--non-interactive", "true"], timeout_s=30).status == 0:
        os.execvp("sudo", ["sudo", sys.executable, "-m", "harness.cli", *sys.argv[1:]])


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on stderr for downloads; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield progress
