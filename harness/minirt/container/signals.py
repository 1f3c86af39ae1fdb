"""Signals by name and by number, without the cost of `signal`, which makes them an enumeration."""

from __future__ import annotations

from harness.minirt.errors import UsageError

NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU "
    "XFSZ VTALRM PROF WINCH IO PWR SYS"
)
NUMBERS = {name: number for number, name in enumerate(NAMES.split(" "), 1)}
NUMBERS |= {"IOT": 6, "CLD": 17, "POLL": 29, "RTMIN": 34, "RTMAX": 64}


def parse_signal(word: str) -> int:
    """The number of ``TERM``, ``SIGTERM``, ``sigterm``, ``15``, ``RTMIN+3``; raises `UsageError`."""
    name = word.upper().removeprefix("SIG")
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = NUMBERS.get(base, int(base) if base.isascii() and base.isdigit() else 0)
    if sign and offset.isascii() and offset.isdigit():
        number += int(offset) if sign == "+" else -int(offset)
    elif sign:
        number = 0
    if not 0 < number < 65 and word != "0":
        raise UsageError(f'unknown signal "{word}"')
    return number
