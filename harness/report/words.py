"""Numbers and foreign texts as words that any terminal, page or file can show."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from harness.report.matrix import COLUMNS, TITLES

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str, longest: int = 4000) -> str:
    """A runtime's text without anything that moves a cursor, turns the direction of writing, or is no legal XML.

    Of a text that is too long the middle is left out, for what matters stands at its two ends.
    """
    text = _CONTROLS.sub("\ufffd", _ESCAPES.sub("", text.replace("\r\n", "\n")))
    if len(text) > longest:
        text = f"{text[: longest // 2]}\n[... {len(text) - longest} characters left out ...]\n{text[-(longest // 2) :]}"
    return text


def name(text: str) -> str:
    """A foreign name, clean and on one line."""
    return " ".join(clean(text, 200).split())


def number(value: float | None) -> str:
    """Two to three figures: 0, 0.05, 1.2, 12, 123, 1234; a dash where there is none."""
    if value is None:
        return "–"
    if value < 0:
        return "-" + number(-value)
    if value == 0:
        return "0"
    if value < 0.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{'+' if value >= 0 else '-'}{number(abs(value))}"


def megabytes(value: float | None) -> str:
    """Bytes as megabytes of 1 000 000."""
    return number(None if value is None else value / 1e6)


def steps(operations: Collection[str]) -> str:
    """Steps by their titles; all of them in two words."""
    if {column.operation for column in COLUMNS} <= set(operations):
        return "every step"
    return ", ".join(TITLES.get(operation, operation) for operation in operations)


FACTS: Mapping[str, str] = {
    "distribution": "distribution",
    "kernel": "kernel",
    "architecture": "architecture",
    "cgroup_mode": "cgroups",
    "cpu_model": "CPU",
    "cores": "cores",
    "memory_bytes": "memory",
    "lacking_capabilities": "capabilities lacking",
}
"""The facts of a machine that matter to a reader, in order, by their key in ``run.json``; others follow."""


def facts(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of a machine, as pairs of words."""
    keys = [key for key in FACTS if key in machine] + [key for key in machine if key not in FACTS]
    pairs = [(FACTS.get(key, key.replace("_", " ")), _fact(key, machine[key])) for key in keys]
    return [(name(key), value) for key, value in pairs if value]


def _fact(key: str, value: Any) -> str:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 1e9:.1f} GB"
    if isinstance(value, list | tuple):
        return clean(", ".join(map(str, value)))
    if isinstance(value, Mapping):
        return clean(", ".join(f"{name} {item}" for name, item in value.items()))
    return "" if value is None else clean(str(value))
