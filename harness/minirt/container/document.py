"""JSON in and out. `json` itself imports `re`; its scanner alone, which is written in C, does not, and is all we need."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_scanner  # type: ignore[attr-defined,import-not-found,unused-ignore]

from harness.linux import lean as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


LONGEST = 16 << 20
"""bytes of a document that is read from a file: nothing that is meant to be one is longer"""
_LONGEST_READ = 1 << 18


class _Options:
    """What the scanner asks its context for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012

    @staticmethod
    def parse_constant(word: str) -> float:
        raise ValueError(f"{word} is not JSON")


_scan = make_scanner(_Options)  # type: ignore[arg-type,unused-ignore]


def parse(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` with the place of the fault."""
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = _scan(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (StopIteration, SystemError):
        # The bare scanner cannot word its errors; `json` can, and here nothing waits for speed.
        import json

        return json.loads(text)
    rest = text[end:].strip(" \t\r\n")
    if rest:
        raise ValueError(f"something follows the JSON value: {rest[:20]!r}")
    return value


def render(value: Any, indent: str = "", _margin: str = "\n") -> str:
    """The JSON text of dicts, lists, tuples, str, int, float, bool and None; `indent` of blanks makes it readable."""
    if isinstance(value, str):
        return str(encode_basestring_ascii(value))
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    inner = _margin + indent
    if isinstance(value, dict):
        pairs = [
            f"{render(str(key))}:{' ' if indent else ''}{render(item, indent, inner)}" for key, item in value.items()
        ]
        opening, closing = "{", "}"
    else:
        pairs = [render(item, indent, inner) for item in value]
        opening, closing = "[", "]"
    if not indent or not pairs:
        return opening + ",".join(pairs) + closing
    return opening + inner + ("," + inner).join(pairs) + _margin + closing


def read_file(path: str) -> Any:
    """The value in a JSON file. Raises `OSError`, and `ValueError` for what is not JSON in UTF-8, or too long for us.

    May be a pipe, whose end is then awaited; one to which nobody writes is empty.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    parts, size = [], 0
    with open(fd, "rb", buffering=0) as file:
        while part := file.read(_LONGEST_READ):
            parts.append(part)
            size += len(part)
            if size > LONGEST:
                raise ValueError(f"is longer than {LONGEST >> 20} MiB")
    return parse(b"".join(parts).decode())
