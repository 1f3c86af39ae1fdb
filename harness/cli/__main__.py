"""``python -m harness.cli``: the same as ``seatrial``."""

from harness.cli.main import main

main()
