"""`Stepper.perform`: one step of a voyage, called, metered, checked and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from harness.client.verbs import Client
from harness.clock import SYSTEM_CLOCK, Clock
from harness.errors import RuntimeRefusal, WaitTimeout
from harness.meter import Meter, spent
from harness.model.lifecycle import Operation
from harness.model.record import Cpu, Memory, Outcome, Phase, Record
from harness.model.subject import Subject

T = TypeVar("T")


FINDINGS = (AssertionError, RuntimeRefusal, WaitTimeout)
"""What a trial raises where the runtime is at fault; anything else is the harness' own fault."""


class StepFailed(AssertionError):
    """A step failed; its record is written."""


SETTLE_PAUSE_S = 0.001
SETTLE_ROUNDS = 25


class Recorder(Protocol):
    """Takes the records as they come."""

    def append(self, record: Record) -> None: ...


@dataclass(slots=True)
class Stepper:
    """Performs the steps of one subject. `suite`, `test`, `block`, `iteration` and `network` go into its records and
    are set by whoever leads the voyage; `scenario`, `twin` and `load` by a bench.
    """

    subject: Subject
    client: Client
    meter: Meter
    recorder: Recorder
    clock: Clock = SYSTEM_CLOCK
    suite: str = ""
    test: str = ""
    block: int | None = None
    iteration: int | None = None
    network: str = ""
    phase: Phase = Phase.MEASURE
    resident: bool = True
    """whether the engine stays between calls; a runtime that ends with its command holds no memory to speak of"""
    weighs: bool = True
    """whether each step ends with weighing the engine's processes one by one, which takes long where they are many"""
    scenario: str = ""
    twin: int | None = None
    load: int | None = None
    failures: list[str] = field(default_factory=list)

    def perform(self, operation: str, call: Callable[[], T], postcondition: Callable[[T], str] = lambda _: "") -> T:
        """Make `call`, then ask `postcondition` what is wrong with its outcome ("" for nothing), and record both.

        The clock stops as soon as the call returns. The CPU account stays open a little longer, until the engine's
        counter stands still for a moment (`SETTLE_ROUNDS` ms at the most): a runtime that answers early and works
        later pays all the same. Memory is read after that, outside of every bracket.

        Raises `StepFailed` where `call` raises, once that is recorded.
        """
        tally = self.client.tally
        rpcs, execs = tally.rpcs, tally.execs
        opened_cpu_ns, opened_ns = self.clock.thread_cpu_ns(), self.clock.monotonic_ns()
        before = self.meter.cpu()
        before_cpu_ns, started_ns = self.clock.thread_cpu_ns(), self.clock.monotonic_ns()
        try:
            result = call()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self._note(operation, Outcome.FAIL if isinstance(error, FINDINGS) else Outcome.ERROR, reason, started_ns)
            raise StepFailed(f"{operation}: {reason}") from error
        ended_ns, after_cpu_ns = self.clock.monotonic_ns(), self.clock.thread_cpu_ns()
        after = self.meter.cpu()
        closed_ns, closed_cpu_ns = self.clock.monotonic_ns(), self.clock.thread_cpu_ns()
        after = self._settled(after)
        rpcs, execs = tally.rpcs - rpcs, tally.execs - execs
        memory = self.meter.memory(
            detail=self.resident and self.weighs, alone=self.resident and self.weighs and operation is Operation.START
        )
        if not self.resident:
            memory = Memory(pods=memory.pods)
        wrong = postcondition(result)
        if wrong:
            self.failures.append(f"{operation}: {wrong}")
        self._note(
            operation,
            Outcome.FAIL if wrong else Outcome.PASS,
            wrong,
            started_ns,
            wall_ns=ended_ns - started_ns,
            harness_wall_ns=(started_ns - opened_ns) + (closed_ns - ended_ns),
            harness_cpu_ns=(before_cpu_ns - opened_cpu_ns) + (closed_cpu_ns - after_cpu_ns),
            cpu=spent(before, after),
            memory=memory,
            rpcs=rpcs,
            execs=execs,
        )
        return result

    def weigh(self, operation: str, daemon: int = 0) -> Memory:
        """Record what the engine holds now, all that can be had of it. `daemon`: its main process, told from the others."""
        memory = self.meter.memory(detail=True, alone=True, daemon=daemon)
        self._note(operation, Outcome.PASS, "", self.clock.monotonic_ns(), memory=memory)
        return memory

    def tell(self, operation: str, memory: Memory) -> None:
        """Record what was found out of memory in another way than by the meter."""
        self._note(operation, Outcome.PASS, "", self.clock.monotonic_ns(), memory=memory)

    def fault(self, operation: str, error: BaseException) -> None:
        """Record that something went wrong around the steps."""
        outcome = Outcome.FAIL if isinstance(error, FINDINGS) else Outcome.ERROR
        self._note(operation, outcome, f"{type(error).__name__}: {error}", None)

    def not_offered(self, operation: str, why: str) -> None:
        """Record that the subject has no such step."""
        self._note(operation, Outcome.NA, why, None)

    def _settled(self, reading: Cpu) -> Cpu:
        for _ in range(SETTLE_ROUNDS):
            self.clock.sleep(SETTLE_PAUSE_S)
            last, reading = reading, self.meter.cpu()
            if reading.engine == last.engine:
                break
        return reading

    def _note(
        self,
        operation: str,
        outcome: Outcome,
        reason: str,
        started_ns: int | None,
        *,
        wall_ns: int | None = None,
        harness_wall_ns: int | None = None,
        harness_cpu_ns: int | None = None,
        cpu: Cpu | None = None,
        memory: Memory | None = None,
        rpcs: int | None = None,
        execs: int | None = None,
    ) -> None:
        subject = self.subject
        self.recorder.append(
            Record(
                subject=subject.name,
                engine=subject.engine,
                client=subject.client,
                handler=subject.handler,
                suite=self.suite,
                test=self.test,
                operation=str(operation),
                outcome=outcome,
                phase=self.phase,
                via=self.client.via(operation) if isinstance(operation, Operation) else "",
                reason=reason,
                block=self.block,
                iteration=self.iteration,
                network=self.network,
                scenario=self.scenario,
                twin=self.twin,
                load=self.load,
                started_ns=started_ns,
                wall_ns=wall_ns,
                harness_wall_ns=harness_wall_ns,
                harness_cpu_ns=harness_cpu_ns,
                cpu_ns=cpu or Cpu(),
                memory_bytes=memory or Memory(),
                rpcs=rpcs,
                execs=execs,
            )
        )
