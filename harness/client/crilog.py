"""The CRI log format: one line ``TIME STREAM TAGS MESSAGE`` for each line, or part of a line, that a container printed.

kubernetes/design-proposals "CRI: Logging"; ``F`` marks a full line (or the last part of one), ``P`` a part that goes on.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator

from harness.model.container import LogLine, Stream

_ROW = re.compile(r"(?P<at>\S+) (?P<stream>stdout|stderr) (?P<tags>[A-Z](?::\S*)?)(?: (?P<text>.*))?", re.DOTALL)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


def parse_time_ns(text: str) -> int:
    """Nanoseconds since 1970 UTC of an RFC 3339 time, with up to nine decimals.

    Raises `ValueError`, of a leap second too: the clocks of Go, by which runtimes write logs, have none.
    """
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a time of RFC 3339")
    seconds = int(datetime.datetime.fromisoformat(found[1] + found[3]).timestamp())
    return seconds * 1_000_000_000 + int((found[2] or "0")[:9].ljust(9, "0"))


def parse_cri_log(text: str) -> list[LogLine]:
    """The lines in the order in which they were finished; a line that came in parts has the time of its first one.

    Raises `ValueError`, with the row, for one that is not in the format. A last row without its newline is still being
    written, and left out.
    """
    return list(_joined(text.split("\n")[:-1]))


def lines_of(output: bytes) -> list[str]:
    """The lines of what a container printed, also the last one where it has no newline."""
    lines = output.decode(errors="replace").split("\n")
    return lines if lines[-1] else lines[:-1]


def _joined(rows: Iterable[str]) -> Iterator[LogLine]:
    begun: dict[Stream, tuple[int, list[str]]] = {}
    for row in rows:
        found = _ROW.fullmatch(row)
        if not found:
            raise ValueError(f"not a row of a CRI log: {row!r}")
        stream, text = Stream(found["stream"]), found["text"] or ""
        at_ns, parts = begun.pop(stream) if stream in begun else (parse_time_ns(found["at"]), [])
        parts.append(text)
        if found["tags"].split(":")[0] == "P":
            begun[stream] = at_ns, parts
        else:
            yield LogLine(stream, "".join(parts), at_ns)
    for stream, (at_ns, parts) in begun.items():
        yield LogLine(stream, "".join(parts), at_ns)
