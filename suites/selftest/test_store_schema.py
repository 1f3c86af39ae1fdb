"""results/schema.json says what records and runs are: no field of the code is missing there, and none is made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.machine.facts import read_facts
from harness.model.record import SCHEMA_VERSION, Cpu, Memory, Outcome, Phase, Record, Run

RESULTS = Path(__file__).parents[2] / "results"
SCHEMA = json.loads((RESULTS / "schema.json").read_text())["$defs"]
GOLDEN = RESULTS / f"golden/v{SCHEMA_VERSION}"


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_fields() -> None:
    assert set(SCHEMA["run"]["properties"]) == names(Run)
    record = SCHEMA["record"]["properties"]
    assert set(record) == names(Record)
    assert set(record["cpu_ns"]["properties"]) == names(Cpu)
    assert set(record["memory_bytes"]["properties"]) == names(Memory)
    assert record["outcome"]["enum"] == [outcome.value for outcome in Outcome]
    assert record["phase"]["enum"] == [phase.value for phase in Phase]
    assert SCHEMA["run"]["properties"]["schema"] == {"const": SCHEMA_VERSION}


def test_what_is_known_of_a_machine() -> None:
    described = set(SCHEMA["run"]["properties"]["machine"]["properties"])
    of_a_campaign = {"name", "accelerator", "box", "checks", "fault"}
    assert described == set(read_facts().to_json()) | of_a_campaign


TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
}


def check(value: Any, schema: dict[str, Any], where: str) -> None:
    """The part of JSON Schema that ours uses."""
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    if "type" in schema:
        assert isinstance(value, TYPES[schema["type"]]), where
    if "minimum" in schema:
        assert value >= schema["minimum"], where
    if isinstance(value, list):
        for item in value:
            check(item, schema.get("items", {}), f"{where}[]")
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), where
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            assert inner is not False, f"{where}.{key} is not in the schema"
            check(item, inner, f"{where}.{key}")


def test_the_golden_run_keeps_to_it() -> None:
    check(json.loads((GOLDEN / "run.json").read_text()), SCHEMA["run"], "run")
    for number, line in enumerate((GOLDEN / "records.jsonl").read_text().splitlines(), 1):
        check(json.loads(line), SCHEMA["record"], f"line {number}")


@pytest.mark.parametrize("change", [{"outcome": "ok"}, {"wall_ns": -1}, {"wall_ns": "3"}, {"more": 1}, {"test": None}])
def test_the_check_checks(change: dict[str, Any]) -> None:
    line = json.loads((GOLDEN / "records.jsonl").read_text().splitlines()[0])
    with pytest.raises(AssertionError):
        check({**line, **change}, SCHEMA["record"], "line")
