"""What stdout is: a terminal that wants colours, or something that must not get any."""

from __future__ import annotations

import os
import sys


def wants_colour() -> bool:
    """Whether to colour stdout: only on a terminal, and not against https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
