"""The words of the command line, by tables: `argparse` would cost more than half of what `create` does.

As runc's: options stand before the arguments of a verb, ``--name value`` and ``--name=value`` and one or two dashes are the same.
"""

from __future__ import annotations

from harness.minirt.container.record import Record
from harness.minirt.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Option(Record):
    """One option. `metavar` empty: a switch; `repeats`: may stand several times."""

    name: str
    help: str
    metavar: str = ""
    short: str = ""
    default: str = ""
    repeats: bool = False


class Verb(Record):
    """One command: its options and arguments. `least` and `most` arguments (-1: any number)."""

    name: str
    help: str
    arguments: str = ""
    options: tuple[Option, ...] = ()
    least: int = 1
    most: int = 1


class Words:
    """A parsed command line. Options by name (without dashes); `arguments` what followed them."""

    __slots__ = ("arguments", "lists", "switches", "values")

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.lists: dict[str, list[str]] = {}
        self.switches: set[str] = set()
        self.arguments: list[str] = []

    def value(self, name: str, default: str = "") -> str:
        return self.values.get(name, default)

    def has(self, name: str) -> bool:
        return name in self.switches

    def number(self, name: str) -> int:
        text = self.values.get(name, "0")
        if not (text.isascii() and text.isdigit()):
            raise UsageError(f"--{name} {text!r} is not a number")
        return int(text)


def parse_options(words: Sequence[str], options: tuple[Option, ...], *, mixed: bool = False) -> Words:
    """Options up to the first other word (with `mixed`: wherever they stand), then arguments."""
    known = {option.name: option for option in options} | {option.short: option for option in options if option.short}
    parsed = Words()
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            parsed.arguments += words[position:]
            break
        if len(word) < 2 or word[0] != "-":
            parsed.arguments.append(word)
            if mixed:
                continue
            parsed.arguments += words[position:]
            break
        name, equals, value = word.lstrip("-").partition("=")
        option = known.get(name)
        if option is None:
            raise UsageError(f"no option is called {word.partition('=')[0]}")
        if not option.metavar:
            if equals and value not in ("true", "false"):
                raise UsageError(f"--{option.name} takes no value")
            if value != "false":
                parsed.switches.add(option.name)
            continue
        if not equals:
            if position == len(words):
                raise UsageError(f"--{option.name} needs a value: {option.metavar}")
            value = words[position]
            position += 1
        parsed.values[option.name] = value
        parsed.lists.setdefault(option.name, []).append(value)
    return parsed


def check_arguments(verb: Verb, words: Words) -> None:
    """Raises `UsageError` where there are too few or too many."""
    count = len(words.arguments)
    if count < verb.least or (verb.most >= 0 and count > verb.most):
        raise UsageError(f"minirt {verb.name}: {verb.arguments or 'no argument'} expected, got {words.arguments}")
