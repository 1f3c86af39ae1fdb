"""Runs from disk, as data frames of raw numbers. pandas is imported here, late: other commands never load it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.model.record import Cpu, Memory, Outcome, Phase, Record
from harness.report.words import name as clean_name
from harness.store import RunData, read_folder

if TYPE_CHECKING:
    import pandas

LOCAL = "local"
"""The name of the machine that a run names none for: the one that Seatrial was started on."""

_PARTS = {"cpu_ns": Cpu, "memory_bytes": Memory}
NUMBERS = (
    *(
        "block",
        "iteration",
        "twin",
        "load",
        "started_ns",
        "wall_ns",
        "harness_wall_ns",
        "harness_cpu_ns",
        "rpcs",
        "execs",
    ),
    *(f"cpu_{field.name}_ns" for field in dataclasses.fields(Cpu)),
    *(f"memory_{field.name}" for field in dataclasses.fields(Memory)),
)
"""The columns of a frame that are numbers, absent values among them; memory in bytes."""


def load(folders: Sequence[Path]) -> list[RunData]:
    """Read runs. Raises `StoreError` for the first that is none."""
    return [read_folder(folder) for folder in folders]


def machine_of(data: RunData) -> str:
    """The name of the machine on which a run was held."""
    return clean_name(str(data.run.machine.get("name") or LOCAL))


def by_machine(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs by machine, machines and runs in the order of `runs`."""
    found: dict[str, list[RunData]] = {}
    for data in runs:
        found.setdefault(machine_of(data), []).append(data)
    return found


def tells_machines(runs: Sequence[RunData]) -> bool:
    """Whether machines matter to a report on `runs`: there are several, or one has failed."""
    return len(by_machine(runs)) > 1 or any(data.run.machine.get("fault") for data in runs)


def frame(runs: Sequence[RunData]) -> pandas.DataFrame:
    """One row a record, one column a number: `run` is the index into `runs`, nested fields are spread out."""
    import pandas

    names = [field.name for field in dataclasses.fields(Record) if field.name not in _PARTS]
    columns = ["run", *names, *(name for name in NUMBERS if name not in names)]
    rows = [{"run": index, **_flat(record)} for index, data in enumerate(runs) for record in data.records]
    table = pandas.DataFrame(rows, columns=columns)
    for name in NUMBERS:
        table[name] = pandas.array([None if pandas.isna(value) else int(value) for value in table[name]], dtype="Int64")
    return table


def measured(table: pandas.DataFrame) -> pandas.DataFrame:
    """Of a `frame` the measured samples that went well: floats, with sums over the groups, and over kinds of memory."""
    good = (table["phase"] == Phase.MEASURE.value) & (table["outcome"] == Outcome.PASS.value)
    samples = table[good].astype(dict.fromkeys(NUMBERS, "float64"))
    # Without the engine's share a sum would only look like a cost.
    parts = samples[["cpu_engine_ns", "cpu_client_ns", "cpu_pods_ns"]]
    samples["cpu_ns"] = parts.sum(axis=1).where(samples["cpu_engine_ns"].notna())
    samples["memory_pss"] = samples["memory_pss_anon"] + samples["memory_file_alone"]
    return samples


def _flat(record: Record) -> dict[str, object]:
    values = {
        field.name: getattr(record, field.name) for field in dataclasses.fields(Record) if field.name not in _PARTS
    }
    values["outcome"], values["phase"] = record.outcome.value, record.phase.value
    values |= {f"cpu_{field.name}_ns": getattr(record.cpu_ns, field.name) for field in dataclasses.fields(Cpu)}
    values |= {f"memory_{field.name}": getattr(record.memory_bytes, field.name) for field in dataclasses.fields(Memory)}
    return values
