"""The record: what one step or one check of a trial said, as one JSON object a line.

Raw numbers only. A value that cannot be had is absent (``None`` here, no key in JSON), never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 3
"""2 has benches: `Run.bench`, `Record.scenario`, `twin` and `load`, `Memory.monitors`. 3 has benches of OCI runtimes:
`Memory.peak`, `Memory.limit`. All that an older one has is as it was."""


class Outcome(StrEnum):
    """How a cell ended. The five are never mixed up; the order is from best to worst."""

    PASS = "pass"
    """the runtime kept its contract"""
    NA = "n/a"
    """the subject does not offer it"""
    SKIP = "skip"
    """not installed, or not possible on this machine"""
    FAIL = "fail"
    """the runtime broke its contract"""
    ERROR = "error"
    """the harness itself broke"""


class Phase(StrEnum):
    """`CHECK`: correctness, possibly in parallel, its times mean nothing. `MEASURE`: alone on the machine, times count."""

    CHECK = "check"
    MEASURE = "measure"


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time in nanoseconds, by the cgroup that spent it."""

    engine: int | None = None
    client: int | None = None
    pods: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes at the end of a step.

    `engine` is the headline of the engine's cgroup: anon + shmem + unreclaimable slab + kernel stacks + page tables;
    the parts follow. `pss_anon` and `pss_file` are sums over the engine's processes, `processes` their number; `file_alone` is what
    `pss_file` would be if no other engine mapped the same files; `monitors` is `pss_anon` + `file_alone` of the engine's
    processes without its daemon: shims, monitors, a supervisor. `peak` is the largest resident set that a command's own
    process had, `limit` the smallest memory limit of a container with which a command could start it.
    """

    engine: int | None = None
    pods: int | None = None
    anon: int | None = None
    shmem: int | None = None
    kernel: int | None = None
    slab: int | None = None
    file: int | None = None
    pss_anon: int | None = None
    pss_file: int | None = None
    file_alone: int | None = None
    monitors: int | None = None
    processes: int | None = None
    peak: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One step (with its cost) or one check (without)."""

    subject: str
    engine: str
    client: str
    handler: str
    suite: str
    """folder under ``suites/``"""
    test: str
    """pytest's node name, with parameters"""
    operation: str
    """an `Operation`: the column of the table to which this record belongs"""
    outcome: Outcome
    phase: Phase = Phase.CHECK
    via: str = ""
    """the tool or interface that did it, where it is not the subject's own client"""
    reason: str = ""
    """what broke and how to reproduce it (`fail`, `error`), or why not (`n/a`, `skip`)"""
    block: int | None = None
    """number of the balanced block of turns in which it was measured"""
    iteration: int | None = None
    network: str = ""
    scenario: str = ""
    """what was being done, for a bench (`harness.model.bench`)"""
    twin: int | None = None
    """which of two engines of the subject it was, 0 or 1: the one is what the other is compared with to see mere chance"""
    load: int | None = None
    """pods (or containers) that stood by meanwhile"""
    started_ns: int | None = None
    """monotonic clock"""
    wall_ns: int | None = None
    harness_wall_ns: int | None = None
    """wall time that the harness itself added around the call: reading meters, building the record"""
    harness_cpu_ns: int | None = None
    """CPU time of the harness' own thread in the same bracket"""
    cpu_ns: Cpu = field(default_factory=Cpu)
    memory_bytes: Memory = field(default_factory=Memory)
    rpcs: int | None = None
    execs: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the keys that have no value."""
        return _pruned(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record that `data` (made by `to_json`) describes. Raises `KeyError`, `TypeError`, `ValueError`."""
        # `to_json` leaves empty strings out, those of fields without a default too.
        fields: dict[str, Any] = {"engine": "", "client": "", "handler": "", "suite": "", "operation": "", **data}
        fields["outcome"] = Outcome(fields["outcome"])
        fields["phase"] = Phase(fields.get("phase", Phase.CHECK))
        fields["cpu_ns"] = Cpu(**fields.get("cpu_ns", {}))
        fields["memory_bytes"] = Memory(**fields.get("memory_bytes", {}))
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is true of a whole run, once."""

    run: str
    """id: ``YYYYMMDD-HHMMSS-xxxx``, UTC"""
    schema: int = SCHEMA_VERSION
    seatrial: str
    command: tuple[str, ...]
    seed: int
    quick: bool
    started: str
    """ISO 8601, UTC"""
    ended: str = ""
    """empty while it runs, and for a run that was killed"""
    interrupted: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)
    """kernel, cgroup mode, CPU model, number of cores, memory, distribution"""
    versions: Mapping[str, str] = field(default_factory=dict)
    """version of each engine, client and OCI runtime by its name"""
    images: Mapping[str, str] = field(default_factory=dict)
    """manifest digest by image name"""
    subjects: tuple[str, ...] = ()
    """in the order of the report"""
    bench: str = ""
    """the bench that was held (`harness.model.bench`); empty for a trial"""
    reference: str = ""
    """the subject that the others are compared with, for a bench"""
    notes: tuple[str, ...] = ()
    """values that could not be had, and why; anything that a reader of the figures has to know"""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """The run that `data` describes. Raises `TypeError` where a key is missing or unknown."""
        fields = dict(data)
        for key in ("command", "subjects", "notes"):
            fields[key] = tuple(fields.get(key, ()))
        return cls(**fields)


def _pruned(data: dict[str, Any]) -> dict[str, Any]:
    slim = {key: _pruned(value) if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in slim.items() if value is not None and value != "" and value != {}}
