"""Device rules of a v1 cgroup in use: from the list that it has to the one that is wanted, without a moment of refusing all.

The kernel keeps either a list of what is allowed, or (once everything was allowed) one of what is not, which it does not
show. A rule adds to an entry with the same kind and numbers, or takes from it (the kernel's admin-guide/cgroup-v1/devices.rst).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.minirt.container.resources import DeviceRule

    Exceptions = dict[tuple[str, str], set[str]]


def effect(rules: Iterable[DeviceRule]) -> tuple[bool, Exceptions]:
    """What is left of a list of rules: whether everything is allowed, and the exceptions, by kind and ``major:minor``."""
    everything, exceptions = False, dict[tuple[str, str], set[str]]()
    for rule in rules:
        if rule.kind == "a":
            everything, exceptions = rule.allow, {}
            continue
        major, minor = ("*" if number is None else str(number) for number in (rule.major, rule.minor))
        letters = exceptions.setdefault((rule.kind, f"{major}:{minor}"), set())
        if rule.allow != everything:
            letters |= set(rule.access)
        else:
            letters -= set(rule.access)
    return everything, {key: letters for key, letters in exceptions.items() if letters}


def parse_list(text: str) -> tuple[bool, Exceptions]:
    """The same of ``devices.list``; the exceptions of a cgroup that allows everything are not shown there."""
    exceptions: Exceptions = {}
    for line in text.splitlines():
        kind, numbers, letters = line.split(" ")
        if kind == "a":
            return True, {}
        exceptions[kind, numbers] = set(letters)
    return False, exceptions


def changes(now: str, rules: Iterable[DeviceRule]) -> list[tuple[str, str]]:
    """``(file, text)`` to write, in order, so that the rules hold. `now`: the text of ``devices.list``."""
    everything, wanted = effect(rules)
    had_everything, had = parse_list(now)
    if everything or had_everything:
        first = "devices.allow" if everything else "devices.deny"
        other = "devices.deny" if everything else "devices.allow"
        return [(first, "a"), *((other, _rule(key, letters)) for key, letters in wanted.items())]
    added = [(key, letters - had.get(key, set())) for key, letters in wanted.items()]
    removed = [(key, letters - wanted.get(key, set())) for key, letters in had.items()]
    return [
        *(("devices.allow", _rule(key, letters)) for key, letters in added if letters),
        *(("devices.deny", _rule(key, letters)) for key, letters in removed if letters),
    ]


def restored(before: str, after: str) -> list[tuple[str, str]]:
    """``(file, text)`` to write so that a list is again what it was. An allowance for everything loses its exceptions."""
    everything, wanted = parse_list(before)
    if everything:
        return [("devices.allow", "a")]
    now_everything, now = parse_list(after)
    if now_everything:
        return [("devices.deny", "a"), *(("devices.allow", _rule(key, letters)) for key, letters in wanted.items())]
    return [
        *(("devices.allow", _rule(key, letters)) for key, letters in wanted.items()),
        *(("devices.deny", _rule(key, rest)) for key, had in now.items() if (rest := had - wanted.get(key, set()))),
    ]


def _rule(key: tuple[str, str], letters: set[str]) -> str:
    return f"{key[0]} {key[1]} {''.join(letter for letter in 'rwm' if letter in letters)}"
