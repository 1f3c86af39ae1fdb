"""Records as JSON and back."""

from __future__ import annotations

import json

from harness.model.record import Cpu, Memory, Outcome, Phase, Record, Run


def record(**changes: object) -> Record:
    fields: dict[str, object] = {
        "subject": "oci:runc",
        "engine": "none",
        "client": "oci",
        "handler": "runc",
        "suite": "lifecycle",
        "test": "test_voyage[1-oci:runc]",
        "operation": "start",
        "outcome": Outcome.PASS,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def test_round_trip() -> None:
    whole = record(
        phase=Phase.MEASURE,
        wall_ns=12,
        cpu_ns=Cpu(engine=5, client=0),
        memory_bytes=Memory(engine=1, processes=3),
        rpcs=1,
        block=0,
    )
    assert Record.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_what_cannot_be_had_is_absent_and_zero_is_kept() -> None:
    data = record(cpu_ns=Cpu(engine=0), block=0).to_json()
    assert data["cpu_ns"] == {"engine": 0}
    assert data["block"] == 0
    assert "wall_ns" not in data
    assert "memory_bytes" not in data
    assert "reason" not in data


def test_run_round_trip() -> None:
    run = Run(
        run="r",
        seatrial="0",
        command=("seatrial", "run"),
        seed=1,
        quick=True,
        started="t",
        subjects=("a",),
        notes=("n",),
    )
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run
