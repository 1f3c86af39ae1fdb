"""Frozen records with slots, without `dataclasses`: importing that costs more than starting a container does.

A subclass lists annotated fields, with defaults after those without, exactly as a dataclass; type checkers treat it as
one. Records compare by value and cannot be changed; `changed` makes a copy with other values.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_):
        return lambda decorated: decorated


@dataclass_transform(frozen_default=True)
class RecordType(type):
    """Turns a class's annotations into slots and constructor arguments."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordType:
        own = [field for field, kind in namespace.get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
        defaults: dict[str, Any] = {}
        fields: tuple[str, ...] = ()
        for base in bases:
            defaults |= getattr(base, "_defaults", {})
            fields += getattr(base, "_fields", ())
        defaults |= {field: namespace.pop(field) for field in own if field in namespace}
        namespace["__slots__"] = tuple(own)
        namespace["_fields"] = fields + tuple(own)
        namespace["_defaults"] = defaults
        return super().__new__(mcls, name, bases, namespace)


class Record(metaclass=RecordType):
    """Base of all records."""

    if not TYPE_CHECKING:

        def __init__(self, *values, **named):
            put = object.__setattr__
            fields = self._fields
            if len(values) > len(fields):
                raise TypeError(f"{type(self).__name__} takes {len(fields)} values, not {len(values)}")
            for field, value in zip(fields, values):  # noqa: B905
                put(self, field, value)
            for field in fields[len(values) :]:
                if field in named:
                    put(self, field, named.pop(field))
                elif field in self._defaults:
                    put(self, field, self._defaults[field])
                else:
                    raise TypeError(f"{type(self).__name__} lacks {field}")
            if named:
                raise TypeError(f"{type(self).__name__} has no {', '.join(named)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and as_tuple(self) == as_tuple(other)

    def __hash__(self) -> int:
        return hash(as_tuple(self))

    def __repr__(self) -> str:
        inside = ", ".join(f"{field}={getattr(self, field)!r}" for field in fields_of(self))
        return f"{type(self).__name__}({inside})"


def fields_of(record: object) -> tuple[str, ...]:
    """Names of a record's fields, those of its bases first."""
    fields: tuple[str, ...] = type(record)._fields  # type: ignore[attr-defined]
    return fields


def as_tuple(record: object) -> tuple[Any, ...]:
    """A record's values, in the order of its fields."""
    return tuple(getattr(record, field) for field in fields_of(record))


def changed(record: R, **values: Any) -> R:
    """A copy of a record with some values replaced."""
    old = {field: getattr(record, field) for field in fields_of(record)}
    return type(record)(**(old | values))
