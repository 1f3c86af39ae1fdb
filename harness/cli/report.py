"""``seatrial report``: show runs again."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.screen import wants_colour


@click.command(
    "report",
    epilog="""\b
Examples:
  seatrial report                                   the newest run in results/
  seatrial report results/20261123-* --format html > matrix.html
  seatrial report RUN --format markdown >> "$GITHUB_STEP_SUMMARY"
  seatrial report RUN RUN RUN                       runs of several machines: what differs between them""",
)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "html", "junit", "csv"]),
    default="table",
    show_default=True,
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Where runs are looked for when none is named.",
)
def report(runs: tuple[Path, ...], form: str, output: Path) -> None:
    """Write a report of one run, or of several merged into one, to stdout.

    Runs of several machines are compared: first stands what does not end alike on all of them, then every step, with one
    column for each subject on each machine.
    """
    from harness.report.formats import render
    from harness.store import newest

    folders = list(runs) or [newest(output)]
    colour = wants_colour()
    click.echo(render(form, folders, colour=colour), color=colour)
