"""``seatrial doctor``: what is here, what will run, what would mend the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.machine.doctor import Diagnosis, Prospect, Row

MARKS = {
    "good": click.style("ok", fg="green"),
    "limited": click.style("--", fg="yellow"),
    "bad": click.style("!!", fg="red", bold=True),
}


@click.command(
    "doctor",
    epilog="""\b
Examples:
  seatrial doctor
  seatrial doctor mine=oci:/usr/local/bin/mine
\b
ok: fine; --: something will be missing from a report; !!: nothing can run.
Exit status: 0 the bundled runtime at least can run; 3 not even that.""",
)
@click.argument("words", metavar="[SUBJECT]...", nargs=-1)
def doctor(words: tuple[str, ...]) -> int:
    """Say what this machine has (kernel, cgroups, capabilities, engines, clients and runtimes with their versions), which
    subjects will run on it, and which not, why, and the command that would mend it. Changes nothing. Subjects of a
    seatrial.toml in the current folder count too.
    """
    from harness.machine.doctor import diagnose
    from harness.machine.facts import read_facts
    from harness.machine.kernel import read_features
    from harness.model.config import Config, parse_config
    from harness.model.subject import parse_subject

    path = Path("seatrial.toml")
    table = (parse_config(path.read_text(), str(path)) if path.is_file() else Config()).table
    subjects = [parse_subject(word, table) for word in words] or table
    diagnosis = diagnose(read_facts(), read_features(), subjects)
    click.echo(render(diagnosis))
    if diagnosis.obstacle:
        click.echo(f"seatrial: nothing can run here: {diagnosis.obstacle}", err=True)
        return 3
    return 0


def render(diagnosis: Diagnosis) -> str:
    """The three tables, as text for a terminal."""
    running = sum(prospect.runs for prospect in diagnosis.prospects)
    return "\n\n".join(
        (
            _table("This machine", _rows(diagnosis.machine)),
            _table("Engines, clients and runtimes", _rows(diagnosis.tools)),
            _table(f"Subjects: {running} of {len(diagnosis.prospects)} will run", _prospects(diagnosis.prospects)),
        )
    )


def _rows(rows: Iterable[Row]) -> list[list[str]]:
    return [[MARKS[row.health], row.thing, row.state, row.remedy] for row in rows]


def _prospects(prospects: Iterable[Prospect]) -> list[list[str]]:
    return [
        [MARKS["good"], it.subject, "will run", ""] if it.runs else [MARKS["limited"], it.subject, it.reason, it.remedy]
        for it in prospects
    ]


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    body = tabulate(rows, tablefmt="plain", maxcolwidths=[None, None, 44, 44], disable_numparse=True)
    return click.style(title, bold=True) + "\n" + "\n".join(f"  {line}".rstrip() for line in body.splitlines())
