"""Ways in which an OCI runtime may break its contract: what a test is about, undone at the door.

Each test of ``suites/oci`` names the breach that it has to find (``@pytest.mark.breach(...)``). The selftests put that
breach between the test and a good runtime, and expect a `fail`: a test that passes nevertheless proves nothing.

A breach of a configuration works on the ``config.json`` that a bundle gets, by path (`harness.session.oci_config`); one
of a verb on its command line, its exit status, and what it prints.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.client.oci_door import Command, OciDoor
from harness.command import Completed
from harness.session.oci_config import GONE, drop, put
from harness.session.oci_config import Path as FieldPath

Call = Callable[[Command], Completed]
Answer = Callable[[Command, Call], Completed]
"""Given a command and the honest call: what the broken runtime did."""
Rewrite = Callable[[Any], Any]
"""Given a configuration: the one that the broken runtime goes by."""


def _same(config: Any) -> Any:
    return config


def _honest(command: Command, call: Call) -> Completed:
    return call(command)


@dataclass(frozen=True, slots=True)
class OciBreach:
    """A way to break a contract. `begin` makes the broken runtime of one test: what it remembers ends with that."""

    rewrite: Rewrite = _same
    begin: Callable[[], Answer] = lambda: _honest


def drops(*paths: FieldPath) -> OciBreach:
    """The runtime ignores these fields of the configuration."""

    def rewrite(config: Any) -> Any:
        for path in paths:
            drop(config, path)
        return config

    return OciBreach(rewrite)


def puts(path: FieldPath, value: Any) -> OciBreach:
    """The runtime takes `value` for what a field of the configuration says."""

    def rewrite(config: Any) -> Any:
        if isinstance(config, dict):
            put(config, path, copy.deepcopy(value))
        return config

    return OciBreach(rewrite)


def takes(other: Rewrite) -> OciBreach:
    """The runtime reads the configuration in a way of its own."""
    return OciBreach(other)


def answers(verb: str, path: FieldPath, value: Any = GONE) -> OciBreach:
    """What `verb` prints (JSON) has `value` in a field, or leaves it out."""

    def answer(command: Command, call: Call) -> Completed:
        done = call(command)
        if command.verb != verb or done.status:
            return done
        said = json.loads(done.stdout)
        if value is GONE:
            drop(said, path)
        else:
            put(said, path, value)
        return replace(done, stdout=json.dumps(said).encode())

    return OciBreach(begin=lambda: answer)


def says(verb: str, status: int | None = None, stdout: bytes | None = None, stderr: bytes | None = None) -> OciBreach:
    """`verb` does its work, and ends with another status or prints something else."""

    def answer(command: Command, call: Call) -> Completed:
        done = call(command)
        if command.verb != verb:
            return done
        return replace(
            done,
            status=done.status if status is None else status,
            stdout=done.stdout if stdout is None else stdout,
            stderr=done.stderr if stderr is None else stderr,
        )

    return OciBreach(begin=lambda: answer)


def pretends(*verbs: str, since: int = 1) -> OciBreach:
    """The runtime says that it has done what it has not, from the call on with this number."""

    def begin() -> Answer:
        calls = itertools.count(1)

        def answer(command: Command, call: Call) -> Completed:
            if command.verb in verbs and next(calls) >= since:
                return _nothing(command)
            return call(command)

        return answer

    return OciBreach(begin=begin)


def accepts(*verbs: str) -> OciBreach:
    """The runtime says that it has done what it should refuse, and does nothing."""

    def answer(command: Command, call: Call) -> Completed:
        done = call(command)
        return _nothing(command) if command.verb in verbs and done.status else done

    return OciBreach(begin=lambda: answer)


def refuses(verb: str, since: int = 1) -> OciBreach:
    """The runtime refuses the verb, from the call on with this number."""

    def begin() -> Answer:
        calls = itertools.count(1)

        def answer(command: Command, call: Call) -> Completed:
            if command.verb == verb and next(calls) >= since:
                return Completed((verb,), 1, b"", b"broken on purpose\n")
            return call(command)

        return answer

    return OciBreach(begin=begin)


def swallows(verb: str, flag: str, *, value: bool = True) -> OciBreach:
    """The runtime ignores a flag of a verb ("" for the flags before the verb), with its value."""

    def answer(command: Command, call: Call) -> Completed:
        if verb:
            if command.verb == verb:
                command = replace(command, words=_without(command.words, flag, value))
        else:
            command = replace(command, globals=_without(command.globals, flag, value))
        return call(command)

    return OciBreach(begin=lambda: answer)


def swaps(verb: str, other: Answer) -> OciBreach:
    """The runtime does one verb in a way of its own."""

    def answer(command: Command, call: Call) -> Completed:
        return other(command, call) if command.verb == verb else call(command)

    return OciBreach(begin=lambda: answer)


def also(verb: str, *first: Command) -> OciBreach:
    """The runtime does other things before a verb; ``ID`` among their words stands for the last word of the verb."""

    def answer(command: Command, call: Call) -> Completed:
        if command.verb == verb:
            for further in first:
                call(_about(further, command))
        return call(command)

    return OciBreach(begin=lambda: answer)


def follows(verb: str, *then: Command) -> OciBreach:
    """The runtime does other things after a verb that succeeded; ``ID`` as in `also`."""

    def answer(command: Command, call: Call) -> Completed:
        done = call(command)
        if command.verb == verb and done.status == 0:
            for further in then:
                call(_about(further, command))
        return done

    return OciBreach(begin=lambda: answer)


def _about(further: Command, command: Command) -> Command:
    return replace(further, words=tuple(command.words[-1] if word == "ID" else word for word in further.words))


def _nothing(command: Command) -> Completed:
    return Completed((command.verb,), 0, b"", b"")


def _without(words: tuple[str, ...], flag: str, value: bool) -> tuple[str, ...]:
    kept, skip = [], 0
    for word in words:
        if skip:
            skip -= 1
        elif word == flag:
            skip = int(value)
        elif not (value and word.startswith(f"{flag}=")):
            kept.append(word)
    return tuple(kept)


class BrokenOciDoor:
    """`OciDoor` to a runtime that breaks its contract in one way."""

    def __init__(self, door: OciDoor, breach: OciBreach) -> None:
        self._door, self._rewrite, self._answer = door, breach.rewrite, breach.begin()

    def write(self, path: Path, document: Any) -> None:
        self._door.write(path, self._rewrite(copy.deepcopy(document)))

    def call(self, command: Command) -> Completed:
        return self._answer(command, self._door.call)
