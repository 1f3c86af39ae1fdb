"""When, where and with which memory a process runs: process.scheduler, ioPriority, execCPUAffinity, linux.memoryPolicy.

Imported only where a config has one of them. Scheduler and I/O priority are set by the runtime from outside: a user
namespace has no right to most of it.
"""

from __future__ import annotations

import os

from harness.linux.scheduling import set_io_priority, set_memory_policy, set_scheduler
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.record import Record
from harness.minirt.errors import StepError, step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.process import Process
    from harness.minirt.container.reader import Reader

_DEADLINE = "SCHED_DEADLINE"
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    _DEADLINE: 6,
}
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}
_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_EITHER_WAY = "MPOL_PREFERRED"
_REAL_TIME = ("SCHED_FIFO", "SCHED_RR")
_LEAST_RUNTIME_NS = 1024
_MOST_DEADLINE_NS = (1 << 63) - 1
_CLASS_SHIFT = 13
_MOST_NUMBER = 65536
"""of a CPU or a memory node: beyond any machine, and small enough for a mask"""


class Scheduler(Record):
    """What sched_setattr(2) is asked for."""

    policy: int
    nice: int = 0
    priority: int = 0
    flags: int = 0
    runtime_ns: int = 0
    deadline_ns: int = 0
    period_ns: int = 0


class Affinity(Record):
    """CPUs of an exec before and after it has joined the container's cgroup; empty: as it comes."""

    initial: tuple[int, ...] = ()
    final: tuple[int, ...] = ()


class MemoryPolicy(Record):
    """What set_mempolicy(2) is asked for; `mode` with its flags."""

    mode: int
    nodes: tuple[int, ...] = ()


def parse_scheduler(entry: Reader) -> Scheduler:
    """``process.scheduler``; refuses what the kernel would refuse."""
    policy = entry.choice("policy", POLICIES)
    word = entry.text("policy")
    nice = entry.number("nice", least=-20, most=19) or 0
    priority = entry.number("priority", least=0, most=99) or 0
    if (word in _REAL_TIME) != bool(priority):
        reason = "from 1 to 99 is needed by" if word in _REAL_TIME else "means nothing to"
        raise entry.fail("priority", f"{reason} {word}")
    names = ("runtime", "deadline", "period")
    runtime, deadline, period = (entry.count(name, most=_MOST_DEADLINE_NS) for name in names)
    if word == _DEADLINE:
        if runtime < _LEAST_RUNTIME_NS:
            raise entry.fail("runtime", f"{runtime} ns is below the {_LEAST_RUNTIME_NS} that the kernel counts in")
        if not runtime <= deadline <= (period or deadline):
            raise entry.fail("deadline", f"{deadline} is not between runtime ({runtime}) and period ({period})")
    else:
        for name in names:
            if entry.count(name, most=_MOST_DEADLINE_NS):
                raise entry.fail(name, f"means nothing to {word}")
    return Scheduler(
        policy,
        nice,
        priority,
        _flags(entry, SCHEDULER_FLAGS),
        runtime_ns=runtime,
        deadline_ns=deadline,
        period_ns=period,
    )


def parse_io_priority(entry: Reader) -> int:
    """``process.ioPriority`` as ioprio_set(2) takes it."""
    return entry.choice("class", IO_CLASSES) << _CLASS_SHIFT | entry.count("priority", most=7)


def parse_affinity(entry: Reader) -> Affinity:
    """``process.execCPUAffinity``."""
    return Affinity(parse_numbers(entry, "initial"), parse_numbers(entry, "final"))


def parse_memory_policy(entry: Reader) -> MemoryPolicy:
    """``linux.memoryPolicy``."""
    mode, word = entry.choice("mode", MEMORY_MODES), entry.text("mode")
    nodes = parse_numbers(entry, "nodes")
    if word in _WITHOUT_NODES and nodes:
        raise entry.fail("nodes", f"have to be empty with {word}")
    if word not in (*_WITHOUT_NODES, _EITHER_WAY) and not nodes:
        raise entry.fail("nodes", f"are needed by {word}")
    flags = _flags(entry, MEMORY_FLAGS)
    both = MEMORY_FLAGS["MPOL_F_STATIC_NODES"] | MEMORY_FLAGS["MPOL_F_RELATIVE_NODES"]
    if flags & both == both:
        raise entry.fail("flags", "say both MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES")
    return MemoryPolicy(mode | flags, nodes)


def _flags(entry: Reader, known: dict[str, int]) -> int:
    flags = 0
    for index, word in enumerate(entry.texts("flags")):
        if word not in known:
            raise entry.fail(f"flags[{index}]", f"{word!r} is none of {', '.join(known)}")
        flags |= known[word]
    return flags


def parse_numbers(entry: Reader, key: str) -> tuple[int, ...]:
    """A list such as ``0-3,7``, sorted; blanks around its parts and empty parts do no harm."""
    text = entry.text(key)
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first and not dash:
            continue
        for word in (first, last) if dash else (first,):
            # A long row of digits would take its time to become a number that is too large anyway.
            if not (word.isascii() and word.isdigit()) or len(word) > 9 or int(word) > _MOST_NUMBER:
                raise entry.fail(key, f"{part.strip()!r} is not a number up to {_MOST_NUMBER}, nor a range of such")
        if dash and int(first) > int(last):
            raise entry.fail(key, f"the range {part.strip()!r} is empty")
        found.update(range(int(first), int(last if dash else first) + 1))
    if text and not found:
        raise entry.fail(key, f"{text!r} names nothing")
    return tuple(sorted(found))


def apply_scheduling(pid: int, process: Process) -> None:
    """Set a process's scheduler and I/O priority. Raises `StepError`."""
    try:
        step = "set the scheduler"
        if process.scheduler is not None:
            asked = process.scheduler
            set_scheduler(
                pid,
                asked.policy,
                nice=asked.nice,
                priority=asked.priority,
                flags=asked.flags,
                runtime_ns=asked.runtime_ns,
                deadline_ns=asked.deadline_ns,
                period_ns=asked.period_ns,
            )
        step = "set the I/O priority"
        if process.io_priority is not None:
            set_io_priority(pid, process.io_priority)
    except OSError as error:
        if isinstance(error, PermissionError) and process.scheduler is not None and process.scheduler.priority:
            reason = (
                "operation not permitted (its cgroup may lack linux.resources.cpu.realtimeRuntime, or its parent's)"
            )
            raise StepError(step, error.errno or 0, reason) from None
        raise step_error(step, error) from None


class SetAffinity(Operation):
    """Run on these CPUs only, as far as the cpuset has them."""

    cpus: tuple[int, ...]

    @property
    def title(self) -> str:
        return "set the CPU affinity"

    def perform(self, stage: Stage) -> None:
        os.sched_setaffinity(0, self.cpus)


class SetMemoryPolicy(Operation):
    """Take memory from the nodes that the policy says; what is executed inherits it."""

    policy: MemoryPolicy

    @property
    def title(self) -> str:
        return "set the memory policy"

    def perform(self, stage: Stage) -> None:
        set_memory_policy(self.policy.mode, self.policy.nodes)
