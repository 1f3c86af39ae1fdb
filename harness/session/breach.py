"""Ways in which a runtime may break its contract: what a test is about, undone at the door.

Each test of ``suites/cri`` names the breach that it has to find (``@pytest.mark.breach(...)``). The selftests put that
breach between the test and a good runtime, and expect a `fail`: a test that passes nevertheless proves nothing.

A path is ``Rpc.field.field``; a number picks an element of a list.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.client.cri_door import CALL_TIMEOUT_S, CriDoor
from harness.client.cri_door_grpc import answer_of
from harness.errors import NotFound, RuntimeRefusal

Call = Callable[[dict[str, Any]], Any]
Answer = Callable[[str, dict[str, Any], Call], Any]
"""Given the RPC, its request, and the honest call: the answer of the broken runtime."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A way to break a contract. `begin` makes the broken runtime of one test: what it remembers ends with that."""

    begin: Callable[[], Answer]


def drops(*paths: str) -> Breach:
    """The runtime ignores these fields of requests."""

    def breach(rpc: str, request: dict[str, Any], call: Call) -> Any:
        for path in _of(rpc, paths):
            holder = _holder(request, path[:-1])
            if isinstance(holder, dict):
                holder.pop(path[-1], None)
        return call(request)

    return Breach(lambda: breach)


def puts(path: str, value: Any) -> Breach:
    """The runtime takes `value` for what a field of a request says."""

    def breach(rpc: str, request: dict[str, Any], call: Call) -> Any:
        for words in _of(rpc, (path,)):
            holder = request
            for word in words[:-1]:
                holder = holder.setdefault(word, {}) if isinstance(holder, dict) else holder[int(word)]
            holder[words[-1]] = value
        return call(request)

    return Breach(lambda: breach)


def answers(path: str, value: Any = None) -> Breach:
    """The runtime answers `value` in a field, or leaves it out."""

    def breach(rpc: str, request: dict[str, Any], call: Call) -> Any:
        answer = call(request)
        for words in _of(rpc, (path,)):
            _put(answer, words, value)
        return answer

    return Breach(lambda: breach)


def pretends(*rpcs: str) -> Breach:
    """The runtime says that it has done what it has not."""

    def breach(rpc: str, request: dict[str, Any], call: Call) -> Any:
        return answer_of(rpc) if rpc in rpcs else call(request)

    return Breach(lambda: breach)


def accepts(*rpcs: str) -> Breach:
    """The runtime says that it has done what it should refuse, and does nothing."""

    def breach(rpc: str, request: dict[str, Any], call: Call) -> Any:
        if rpc not in rpcs:
            return call(request)
        try:
            return call(request)
        except RuntimeRefusal:
            return answer_of(rpc)

    return Breach(lambda: breach)


def refuses(rpc: str, since: int = 1) -> Breach:
    """The runtime refuses the call, from the one on with this number."""

    def begin() -> Answer:
        calls = itertools.count(1)

        def breach(name: str, request: dict[str, Any], call: Call) -> Any:
            if name == rpc and next(calls) >= since:
                raise NotFound(f"{rpc}: broken on purpose", "NOT_FOUND")
            return call(request)

        return breach

    return Breach(begin)


def swaps(rpc: str, other: Callable[[dict[str, Any], Call], Any]) -> Breach:
    """The runtime answers one call in a way of its own."""

    def breach(name: str, request: dict[str, Any], call: Call) -> Any:
        return other(request, call) if name == rpc else call(request)

    return Breach(lambda: breach)


class BrokenDoor:
    """`CriDoor` to a runtime that breaks its contract in one way."""

    def __init__(self, door: CriDoor, breach: Breach) -> None:
        self._door, self._breach = door, breach.begin()

    @property
    def blind(self) -> frozenset[str]:
        return self._door.blind

    def call(self, rpc: str, request: Mapping[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> Any:
        words = copy.deepcopy(dict(request))
        return self._breach(rpc, words, lambda changed: self._door.call(rpc, changed, timeout_s))

    @contextlib.contextmanager
    def stream(self, rpc: str, request: Mapping[str, Any]) -> Iterator[Iterator[Any]]:
        with self._door.stream(rpc, request) as honest:
            yield (self._breach(rpc, {}, lambda _, found=answer: found) for answer in honest)  # type: ignore[misc]


def _of(rpc: str, paths: tuple[str, ...]) -> list[list[str]]:
    return [words[1:] for path in paths if (words := path.split("."))[0] == rpc]


def _holder(value: Any, path: list[str]) -> Any:
    for word in path:
        if isinstance(value, list):
            value = value[int(word)] if int(word) < len(value) else None
        else:
            value = value.get(word) if isinstance(value, dict) else None
    return value


def _put(message: Any, path: list[str], value: Any) -> None:
    for word in path[:-1]:
        if word.isdigit():
            if int(word) >= len(message):
                return
            message = message[int(word)]
        else:
            message = getattr(message, word)
    field = path[-1]
    message.ClearField(field)
    if value is None:
        return
    holder = getattr(message, field)
    if isinstance(value, dict):
        holder.update(value)
    elif isinstance(value, list):
        holder.extend(value)
    else:
        setattr(message, field, value)
