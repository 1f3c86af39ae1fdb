"""The command line, ``seatrial``: the only place that prints, and that turns an error into an exit status."""

from harness.cli.main import main

__all__ = ["main"]
