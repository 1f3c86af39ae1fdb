"""Benches as data: what is done (scenarios), which figures are drawn from it, and the limit that each has.

`harness.session.scenarios` knows how a scenario is performed, `harness.report.bench` how a figure is computed. A further
bench is a further row of `BENCHES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from harness.errors import UsageError
from harness.model.lifecycle import POD_CALLS, Operation

TWINS = 2
"""Engines of each subject in a bench. What tells the one from the other is chance, and no smaller difference counts."""

LIST = "list"
"""operation: all containers are listed"""
FRESH = "fresh"
"""operation: the engine is weighed as it has just started"""
RUN = "run"
"""operation: a container is created, started, awaited and deleted by one command"""
FLOOR = "floor"
"""operation: the smallest memory limit is looked for with which a container starts"""
WEIGH = "weigh"
"""operation: the engine is weighed with `Record.load` pods, after it has worked"""


class Quantity(StrEnum):
    """What of a sample a figure is about."""

    WALL = "wall"
    CPU = "CPU"
    """of engine, client and pods together"""
    PSS = "PSS"
    """of the engine's processes, as if no other engine ran"""
    SLOPE = "PSS a pod"
    """the same, by number of pods: what each further one adds"""
    PEAK = "peak"
    """the largest resident set of a command's own process"""
    LIMIT = "memory limit"
    """the smallest limit of a container's memory with which it starts"""


class Against(StrEnum):
    """What a figure is divided by."""

    REFERENCE = "reference"
    """the reference subject, in the same run"""
    IDLE = "idle"
    """the same subject with no pods but the one in question"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that is done again and again, by each subject in its turn."""

    name: str
    what: str
    blocks: int
    """turns of each engine"""
    quick: int
    """the same with ``--quick``"""
    fresh: bool = False
    """whether each turn starts an engine of its own, alone on the machine"""
    slow: bool = False
    """whether it is left out for the reference with ``--quick``"""

    @property
    def warms_up(self) -> bool:
        """Whether the first turn is kept apart: page cache, lazily loaded parts."""
        return not self.fresh


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with a limit, drawn from the samples of a scenario. Named ``scenario.what``."""

    name: str
    title: str
    quantity: Quantity
    limit: float | None = None
    """the largest ratio that is within; None: no limit is set"""
    operations: tuple[str, ...] = ()
    """the operations whose samples count; empty: all of the scenario"""
    against: Against = Against.REFERENCE
    monitors: bool = False
    """whether of the reference only the processes beside its daemon count: its shims"""

    @property
    def scenario(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Bench:
    """Scenarios, and the figures drawn from them, in the order of a report."""

    name: str
    title: str
    clients: frozenset[str]
    """the clients whose subjects can take part"""
    subjects: tuple[str, ...]
    """who takes part where nobody is named"""
    reference: str
    calls: tuple[tuple[str, tuple[str, ...]], ...]
    """scenarios of which each call is shown by itself, and these calls"""
    scenarios: tuple[Scenario, ...]
    figures: tuple[Figure, ...]

    def choose(self, names: Sequence[str]) -> tuple[Scenario, ...]:
        """The scenarios of which `names` are figures, or which they name themselves; all for none. Raises `UsageError`."""
        known = {figure.name: figure.scenario for figure in self.figures} | {it.name: it.name for it in self.scenarios}
        for name in names:
            if name not in known:
                raise UsageError(f"the bench {self.name} has no figure {name!r}; it has: {', '.join(known)}")
        wanted = {known[name] for name in names}
        return tuple(scenario for scenario in self.scenarios if not names or scenario.name in wanted)


CRI = Bench(
    name="cri",
    title="CRI daemons",
    clients=frozenset({"grpc", "crictl"}),
    subjects=("minirt:grpc",),
    reference="containerd:grpc:runc",
    calls=(("pod-host", POD_CALLS), ("pod-bridge", POD_CALLS)),
    scenarios=(
        Scenario("pod-host", "The eight calls of one pod with one container, host network, image present.", 16, 4),
        Scenario("pod-bridge", "The same on a bridge, by CNI plugins.", 16, 4),
        Scenario("exec", "ExecSync of /bin/true in a running container.", 12, 4),
        Scenario("list", "ListContainers with many containers, created and not started.", 12, 4),
        Scenario(
            "pull", "PullImage of 200 MB in 5 layers that the engine does not have, from a registry on loopback.", 6, 2
        ),
        Scenario(
            "memory",
            "An engine is started, weighed, does the work of one pod, and is weighed with 0, 5, 10 and 20 pods.",
            4,
            2,
            fresh=True,
        ),
        Scenario(
            "load",
            "The eight calls on the host network, with no other pod, with many running, and with none again.",
            2,
            1,
            fresh=True,
            slow=True,
        ),
    ),
    figures=(
        Figure("pod-host.wall", "one pod, eight calls, host network", Quantity.WALL, 0.25),
        Figure("pod-host.cpu", "one pod, eight calls, host network", Quantity.CPU, 0.25),
        Figure("pod-bridge.wall", "one pod, eight calls, bridge network", Quantity.WALL, 0.40),
        Figure("pod-bridge.cpu", "one pod, eight calls, bridge network", Quantity.CPU, 0.40),
        Figure("exec.wall", "ExecSync of true", Quantity.WALL, 0.35),
        Figure("exec.cpu", "ExecSync of true", Quantity.CPU, 0.35),
        Figure("list.wall", "ListContainers, many containers", Quantity.WALL, 1.0),
        Figure("list.cpu", "ListContainers, many containers", Quantity.CPU),
        Figure("pull.wall", "cold pull, 200 MB in 5 layers", Quantity.WALL, 1.0),
        Figure("pull.cpu", "cold pull, 200 MB in 5 layers", Quantity.CPU),
        Figure("memory.fresh", "engine just started", Quantity.PSS, 1.0, (FRESH,)),
        Figure("memory.idle", "engine idle after work", Quantity.PSS, 1.0, (WEIGH,)),
        Figure("memory.pod", "each further pod, against a shim", Quantity.SLOPE, 0.15, (WEIGH,), monitors=True),
        Figure("load.wall", "one pod with many running, against none", Quantity.WALL, 1.3, against=Against.IDLE),
        Figure("load.cpu", "one pod with many running, against none", Quantity.CPU, against=Against.IDLE),
    ),
)

_MADE = (Operation.CREATE, Operation.START, Operation.REMOVE)

OCI = Bench(
    name="oci",
    title="OCI runtimes",
    clients=frozenset({"oci"}),
    subjects=("oci:minirt", "oci:crun"),
    reference="oci:runc",
    calls=(("cycle", _MADE),),
    scenarios=(
        Scenario("cycle", "create, start and delete of a container whose program ends by itself.", 16, 6),
        Scenario("run", "run of a container whose program ends at once, to its end.", 16, 6),
        Scenario("exec", "exec of /bin/true in a running container.", 12, 4),
        Scenario("peak", "The largest resident set of each command's own process.", 4, 2),
        Scenario("floor", "The smallest memory limit, in steps of 1 MiB, with which run starts a container.", 2, 1),
    ),
    figures=(
        Figure("cycle.wall", "create, start, delete", Quantity.WALL, 1.0),
        Figure("cycle.cpu", "create, start, delete", Quantity.CPU),
        Figure("run.wall", "run to the end", Quantity.WALL),
        Figure("run.cpu", "run to the end", Quantity.CPU),
        Figure("exec.wall", "exec of true", Quantity.WALL),
        Figure("exec.cpu", "exec of true", Quantity.CPU),
        Figure("peak.create", "create", Quantity.PEAK, 1.0, (Operation.CREATE,)),
        Figure("peak.start", "start", Quantity.PEAK, 1.0, (Operation.START,)),
        Figure("peak.exec", "exec", Quantity.PEAK, None, (Operation.EXEC,)),
        Figure("peak.delete", "delete", Quantity.PEAK, 1.0, (Operation.REMOVE,)),
        Figure("floor.limit", "run starts a container", Quantity.LIMIT, None, (FLOOR,)),
    ),
)

BENCHES: Mapping[str, Bench] = MappingProxyType({bench.name: bench for bench in (CRI, OCI)})
"""By name, as ``seatrial bench NAME`` takes it."""
