"""The meter of one arena: a gauge each for its engine, its client and its pods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.linux.cgroups import Layout, path_of
from harness.meter.gauge import Gauge
from harness.meter.null import NullGauge
from harness.meter.processes import PROC, read_file_alone, read_total_pss
from harness.meter.v1 import V1Gauge
from harness.meter.v2 import V2Gauge
from harness.model.record import Cpu, Memory


class Meter:
    """Reads what was spent and what is held. Owns its gauges; a context manager.

    `cpu` is cheap enough to stand directly before and after a step (three `pread`, some microseconds); `memory` comes
    after it. CPU counters only grow: a step's cost is the difference of two readings (`spent`).
    """

    def __init__(self, engine: Gauge, client: Gauge, pods: Gauge, proc: Path = PROC) -> None:
        self._engine, self._client, self._pods = engine, client, pods
        self._proc = proc
        self._notes: dict[str, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a value is absent or means less than its name says; one sentence each, for ``run.json``."""
        return tuple(
            dict.fromkeys((*self._engine.notes, *self._client.notes, *self._pods.notes, *self._notes))  # in order, once
        )

    def cpu(self) -> Cpu:
        """CPU time spent so far."""
        return Cpu(self._engine.cpu_ns(), self._client.cpu_ns(), self._pods.cpu_ns())

    def memory(self, detail: bool = False, alone: bool = False, daemon: int = 0) -> Memory:
        """What is held now.

        `detail` adds the engine's processes and their proportional set sizes (about 1 ms each), `alone` also the files
        that they map, as if nobody else did (some more); with both, `daemon` (its process id) adds what all others hold.
        """
        engine = self._engine.memory()
        pss = processes = file_alone = monitors = None
        if detail:
            pids = self._engine.pids()
            processes = len(pids) or None
            file_alone = read_file_alone(pids, self._proc) if alone else None
            try:
                pss = read_total_pss(pids, self._proc)
                if alone and daemon:
                    others = [pid for pid in pids if pid != daemon]
                    apart = read_total_pss(others, self._proc)
                    monitors = (apart.anon if apart else 0) + (read_file_alone(others, self._proc) or 0)
            except PermissionError as error:
                self._notes[f"proportional set sizes cannot be had: {error.strerror}"] = None
        return Memory(
            engine=engine.headline,
            pods=self._pods.memory().headline,
            anon=engine.anon,
            shmem=engine.shmem,
            kernel=engine.kernel,
            slab=engine.slab,
            file=engine.file,
            pss_anon=pss.anon if pss else None,
            pss_file=pss.file if pss else None,
            file_alone=file_alone,
            monitors=monitors,
            processes=processes,
        )

    def engine_pids(self) -> list[int]:
        """The processes on the engine's account now: daemon, shims, monitors."""
        return self._engine.pids()

    def close(self) -> None:
        """Give the open files back; a second call does nothing."""
        for gauge in (self._engine, self._client, self._pods):
            gauge.close()


def spent(before: Cpu, after: Cpu) -> Cpu:
    """The CPU time between two readings; absent where one of them is."""
    return Cpu(
        _difference(before.engine, after.engine),
        _difference(before.client, after.client),
        _difference(before.pods, after.pods),
    )


def open_meter(layout: Layout, groups: Mapping[str, str]) -> Meter:
    """A meter of the cgroups in `groups`: absolute paths by ``engine``, ``client``, ``pods``.

    A group that `groups` leaves out has no values and needs no reason. One that is named but cannot be read has none
    either, and `Meter.notes` says why; nothing is raised.
    """
    engine, client, pods = (_open_gauge(layout, name, groups.get(name, "")) for name in ("engine", "client", "pods"))
    return Meter(engine, client, pods)


def _open_gauge(layout: Layout, name: str, cgroup: str) -> Gauge:
    if not cgroup:
        return NullGauge()
    try:
        if layout.is_v2("memory"):
            folder = path_of(layout, "memory", cgroup)
            return V2Gauge(folder) if folder.is_dir() else NullGauge(f"{name}: there is no cgroup {cgroup}")
        return V1Gauge(
            *(
                path_of(layout, controller, cgroup) if controller in layout.controllers else None
                for controller in ("cpuacct", "memory")
            )
        )
    except ValueError as error:
        return NullGauge(f"{name}: {error}")


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
