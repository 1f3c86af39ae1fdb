"""Reading a parsed JSON document field by field, knowing its path: whatever is wrong becomes a `SpecError` that says where.

Go's JSON decoder, against which all config.json files are written, takes null for an absent field; so does this.
"""

from __future__ import annotations

from harness.minirt.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")


class Reader:
    """One JSON object at `path`."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, dict):
            raise SpecError(path or "the document", f"has to be an object, not {_kind(value)}")
        self.value: Mapping[str, Any] = value
        self.path = path

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def fail(self, key: str, reason: str) -> SpecError:
        """The error to raise about a field."""
        return SpecError(self.at(key), reason)

    def has(self, key: str) -> bool:
        return self.value.get(key) is not None

    def _get(self, key: str, kind: type, what: str) -> Any:
        value = self.value.get(key)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise self.fail(key, f"has to be {what}, not {_kind(value)}")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self._get(key, str, "a string")
        if value is None:
            return default
        self._check(key, value)
        return str(value)

    def _check(self, key: str, text: str) -> None:
        """A text has to be one that can be handed to the kernel."""
        if "\0" in text:
            raise self.fail(key, "holds a NUL")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise self.fail(key, "holds half of a surrogate pair") from None

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, bool, "true or false")
        return default if value is None else bool(value)

    def number(self, key: str, *, least: int = -(1 << 63), most: int = (1 << 64) - 1) -> int | None:
        value = self._get(key, int, "a whole number")
        if value is None:
            return None
        if not least <= value <= most:
            raise self.fail(key, f"{value} is not between {least} and {most}")
        return int(value)

    def count(self, key: str, default: int = 0, most: int = (1 << 32) - 1) -> int:
        """A number of at least 0."""
        value = self.number(key, least=0, most=most)
        return default if value is None else value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list, "a list of strings") or ()
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.fail(f"{key}[{index}]", f"has to be a string, not {_kind(value)}")
            self._check(f"{key}[{index}]", value)
        return tuple(values)

    def numbers(self, key: str, most: int = (1 << 32) - 1) -> tuple[int, ...]:
        values = self._get(key, list, "a list of numbers") or ()
        for index, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise self.fail(f"{key}[{index}]", f"has to be a number from 0 to {most}, not {value!r}")
        return tuple(values)

    def pairs(self, key: str) -> dict[str, str]:
        """An object whose values are strings."""
        values = self._get(key, dict, "an object of strings") or {}
        for name, value in values.items():
            if not isinstance(value, str):
                raise self.fail(f"{key}[{name!r}]", f"has to be a string, not {_kind(value)}")
            self._check(f"{key}[{name!r}]", f"{name}{value}")
        return dict(values)

    def object(self, key: str) -> Reader | None:
        value = self.value.get(key)
        return None if value is None else Reader(value, self.at(key))

    def list(self, key: str, make: Callable[[Reader], T]) -> tuple[T, ...]:
        """Each object of a list, made into something."""
        values = self._get(key, list, "a list of objects") or ()
        return tuple([make(Reader(value, f"{self.at(key)}[{index}]")) for index, value in enumerate(values)])

    def choice(self, key: str, choices: Mapping[str, T]) -> T:
        """What one of several words stands for; the word is demanded."""
        word = self.text(key)
        if word not in choices:
            raise self.fail(key, f"{word!r} is none of {', '.join(choices)}")
        return choices[word]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
