"""``seatrial``: the group of commands, and the one place where an error becomes a message and an exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import click

from harness import __version__
from harness.errors import Interrupted, SeatrialError

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "run": ("harness.cli.run:run", "Put subjects through the suites, measure them, print the table."),
        "bench": ("harness.cli.bench:bench", "Measure figures that have a limit, against a reference."),
        "report": ("harness.cli.report:report", "Render finished runs again: table, markdown, html, junit, csv."),
        "doctor": ("harness.cli.doctor:doctor", "Say what this machine has, and which subjects will run on it."),
        "setup": ("harness.cli.setup:setup", "Install the engines and clients that a trial can use."),
        "vm": ("harness.cli.vm:vm", "Linux machines to hold trials on: build, up, list, ssh, destroy."),
        "clean": ("harness.cli.clean:clean", "Remove what a killed run left behind."),
    }
)
"""Name of a command, the object that implements it, and its line in ``seatrial --help``."""

EPILOG = """\b
Examples:
  seatrial doctor                         what runs here, and what would mend the rest
  seatrial setup --dry-run                what would be installed, command by command
  seatrial run --quick                    every subject that this machine offers
  seatrial run oci:runc oci:crun          two of them, against each other
  seatrial run mine=oci:/path/to/runtime  your own runtime
  seatrial bench cri --quick              the bundled runtime's figures against containerd's
  seatrial report --format markdown       the newest run, for a step summary

Exit status: 0 all is well; 1 a cell is fail or error; 2 the command line or a configuration cannot be
understood; 3 this machine cannot do it; 130 or 143 interrupted."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command is used: ``--help`` stays fast, heavy libraries stay out."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, "--version", prog_name="seatrial")
def seatrial() -> None:
    """Take container runtimes on a sea trial.

    Every runtime goes through the same voyage (pull, create, start, pause, resume, exec, logs, stop, remove). After
    each step Seatrial checks that the runtime did what its specification says, and measures what the runtime cost.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process' own), and exit with its status."""
    sys.exit(status_of(argv))


def status_of(argv: Sequence[str] | None = None) -> int:
    """Run a command line to its exit status. A command returns its status; none is 0."""
    try:
        status = seatrial.main(argv, prog_name="seatrial", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("seatrial: interrupted", err=True)
        return 130
    except Interrupted as error:
        click.echo(f"seatrial: {error}", err=True)
        return 128 + error.signal
    except SeatrialError as error:
        click.echo(f"seatrial: {error}", err=True)
        return error.exit_status
    return status if isinstance(status, int) else 0
