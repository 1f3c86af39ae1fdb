"""A trial: one subject with its arena, engine, client, meter and witness, ready to sail."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.arena import Arena
from harness.client.opening import open_client
from harness.client.verbs import Client, Site
from harness.clock import wait_until
from harness.engine import RunningEngine, start_engine
from harness.errors import RuntimeRefusal, WaitTimeout
from harness.image.bundle import unpack
from harness.image.registry import serve
from harness.linux.cgroups import read_layout
from harness.meter import Meter, open_meter
from harness.model.capability import Capability
from harness.model.container import ContainerSpec, Network
from harness.model.lifecycle import Contract, State
from harness.model.subject import Subject
from harness.session.step import Recorder, Stepper
from harness.session.witness import Sighting, Witness

IMAGE = "seatrial/busybox:1"
SPARE_IMAGE = "seatrial/spare:1"
PAUSE_IMAGE = "seatrial/pause:1"
UNKNOWN = "seatrial-no-such-container"
GRACE_S = 5.0
FREEZE_S = 1.0
PATIENCE_S = 30.0
"""for what the runtime does by itself; an emulated machine is many times slower"""

SLEEPER = ("/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; echo ready; sleep 3600 & wait")
"""Ends at once, with status 0, when it is asked to; its last word goes to the log."""
STUBBORN = ("/bin/sh", "-c", "trap '' TERM; echo ready; sleep 3600 & while :; do wait; done")
"""Hears SIGTERM and stays."""

_SERIAL = itertools.count(1)
"""One for all trials of a process: two may be clients of the same engine."""


@dataclass(slots=True, repr=False)
class Trial:
    """One subject afloat. The containers and sandboxes made through it are gone when it closes."""

    subject: Subject
    arena: Arena
    engine: RunningEngine
    client: Client
    meter: Meter
    witness: Witness
    steps: Stepper
    registry: str
    """``host:port`` of the registry, as this engine reaches it"""
    blobs: Path
    """the folder of the images that it serves"""
    _containers: dict[str, ContainerSpec] = field(default_factory=dict)
    _sandboxes: list[str] = field(default_factory=list)
    _harbour: dict[Network, str] = field(default_factory=dict)
    _moored: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<trial of {self.subject.name}>"

    def offers(self, capability: Capability) -> bool:
        return capability in self.subject.capabilities

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of this subject's figures has to know."""
        notes = [*self.engine.notes, *self.meter.notes]
        if not self.steps.resident:
            notes.append("no memory of the engine: an OCI runtime ends with its command")
        return tuple(f"{self.subject.name}: {note}" for note in notes)

    def image(self, name: str = IMAGE) -> str:
        """The reference by which this engine pulls a test image."""
        return f"{self.registry}/{name}"

    def name(self, stem: str) -> str:
        """A name that no other container or sandbox of a trial has."""
        return f"{stem}-{next(_SERIAL)}-{os.getpid()}"

    def sandbox(self, network: Network = Network.HOST) -> str:
        """The pod that containers of this trial share when no test asks for one of its own; "" for a subject without."""
        if not self.offers(Capability.SANDBOX):
            return ""
        if network not in self._harbour or not self.client.sandbox_ready(self._harbour[network]):
            self._harbour[network] = self.run_sandbox(network)
        return self._harbour[network]

    def run_sandbox(self, network: Network = Network.HOST) -> str:
        """A new pod, removed with the trial at the latest."""
        sandbox = self.client.run_sandbox(self.name("pod"), network)
        self._sandboxes.append(sandbox)
        return sandbox

    def spec(
        self,
        argv: tuple[str, ...] = SLEEPER,
        *,
        stem: str = "box",
        sandbox: str | None = None,
        network: Network = Network.HOST,
        env: tuple[tuple[str, str], ...] = (),
    ) -> ContainerSpec:
        """A container to create, in the shared pod unless `sandbox` says otherwise."""
        within = self.sandbox(network) if sandbox is None else sandbox
        return ContainerSpec(self.name(stem), self.image(), argv, env, network, within)

    def create(self, spec: ContainerSpec) -> str:
        """Create a container, removed with the trial at the latest. The image is pulled first where it is missing."""
        if self.offers(Capability.IMAGES) and not self.client.has_image(spec.image):
            self.client.pull(spec.image)
        container = self.client.create(spec)
        self._containers[container] = spec
        return container

    def launch(self, spec: ContainerSpec, word: str = "ready") -> str:
        """Create and start a container, and wait until it has printed `word` (where the subject gives logs)."""
        container = self.create(spec)
        self.client.start(container)
        self.await_word(container, word)
        return container

    def moored(self, state: State) -> tuple[ContainerSpec, str]:
        """A container in `state` that tests share: any of the shared ones that is in it now, or one that is brought there.

        For `State.ABSENT` the name of a container that never was.
        """
        if state is State.ABSENT:
            return self.spec(stem="absent"), UNKNOWN
        for container in list(self._moored):
            spec = self._containers[container]
            now = self.state(spec, container)
            if now is state:
                return spec, container
            if now is State.ABSENT:
                self._moored.remove(container)
        if state in (State.PAUSED, State.STOPPED):
            spec, container = self.moored(State.RUNNING)
            if state is State.PAUSED:
                self.client.pause(container)
                self.await_frozen(spec)
            else:
                self.client.stop(container, GRACE_S)
            return spec, container
        spec = self.spec(stem="moored")
        container = self.create(spec) if state is State.CREATED else self.launch(spec)
        self._moored.append(container)
        return spec, container

    def await_frozen(self, spec: ContainerSpec) -> bool:
        """Whether the kernel has frozen every process of the container; the freezer of cgroup v1 may take a moment."""
        processes = self.witness.processes(spec.name)
        with contextlib.suppress(WaitTimeout):
            return wait_until(lambda: all(map(self.witness.frozen, processes)), FREEZE_S, "the freezer")
        return False

    def await_word(self, container: str, word: str) -> None:
        """Wait until a line of the container's log is `word`; nothing to wait for without logs."""
        if word and self.offers(Capability.LOGS):
            wait_until(
                lambda: any(line.text == word for line in self.client.logs(container)),
                PATIENCE_S,
                f"{self.subject.name}: the line {word!r} in the log of {container}",
            )

    def await_state(self, container: str, state: State) -> None:
        """Wait until the runtime reports `state`. Raises `WaitTimeout`."""
        wait_until(
            lambda: self.client.state(container) is state, PATIENCE_S, f"{self.subject.name}: {container} to be {state}"
        )

    def state(self, spec: ContainerSpec, container: str) -> State:
        """What the runtime reports; `PAUSED` where the kernel holds the container of an interface without that state."""
        state = self.client.state(container)
        if state is State.RUNNING and any(self.witness.frozen(process) for process in self.init(spec)):
            return State.PAUSED
        return state

    def init(self, spec: ContainerSpec) -> list[Sighting]:
        """The container's first process, as a list of one; empty where there is none."""
        return self.witness.processes(spec.name)[:1]

    def discard(self, container: str, sandbox: str = "", *, paused: bool = True) -> None:
        """Take a container (and a pod) down by whatever it takes; what is gone already is no error.

        `paused`: whether it may be paused. The kernel is asked then, for a native tool that resumes it takes longer than all
        the rest.
        """
        if container:
            thaw = (self.client.resume,) if paused and self._may_be_paused(container) else ()
            for verb in (*thaw, lambda it: self.client.stop(it, 0), self.client.remove):
                with contextlib.suppress(RuntimeRefusal):
                    verb(container)
        with contextlib.suppress(RuntimeRefusal):
            if container in self._containers and self.client.state(container) is State.ABSENT:
                del self._containers[container]
        if sandbox:
            for drop in (self.client.stop_sandbox, self.client.remove_sandbox):
                with contextlib.suppress(RuntimeRefusal):
                    drop(sandbox)
            if sandbox in self._sandboxes:
                self._sandboxes.remove(sandbox)

    def _may_be_paused(self, container: str) -> bool:
        """Whether the kernel holds a process of it, or cannot tell: it knows only what was made through `create`."""
        if not self.offers(Capability.PAUSE):
            return False
        if container not in self._containers or self.offers(Capability.OWN_KERNEL):
            return True
        return any(map(self.witness.frozen, self.witness.processes(self._containers[container].name)))

    def close(self) -> None:
        """Remove every container and pod that is still there; from an engine that is not ours the test images too."""
        for container in list(self._containers):
            self.discard(container)
        for sandbox in list(self._sandboxes):
            self.discard("", sandbox)
        if self.subject.socket:
            for name in (IMAGE, SPARE_IMAGE):
                with contextlib.suppress(RuntimeRefusal):
                    self.client.remove_image(self.image(name))


@contextlib.contextmanager
def open_trial(
    subject: Subject, run_id: str, recorder: Recorder, blobs: Path, port: int | None = None, berth: str = ""
) -> Iterator[Trial]:
    """Put `subject` afloat: arena, registry, engine, client, meter; everything is gone afterwards.

    `blobs` is the folder of the test images (`harness.image.build.write_images`); `port` that of the registry, by default
    5000 in a network namespace of its own, and any free one beside an engine that runs already. `berth` tells trials of the
    same subject apart that are afloat at the same time. Raises `ArenaError`, `EngineError`, `MachineError`.
    """
    attached = bool(subject.socket)
    with contextlib.ExitStack() as stack:
        arena = stack.enter_context(Arena.open(run_id, f"{subject.slug}-{berth}".strip("-"), attach=attached))
        if port is None:
            port = 0 if attached else 5000
        address = str(stack.enter_context(serve(arena, blobs, port)))
        engine = stack.enter_context(start_engine(subject, arena, address))
        workspace = arena.state / "client"
        workspace.mkdir(parents=True, exist_ok=True)
        rootfs = {}
        if subject.client == "oci":
            unpack(blobs, IMAGE, arena.root / "rootfs")
            rootfs[f"{address}/{IMAGE}"] = arena.root / "rootfs"
        site = Site(
            runner=arena,
            socket=engine.socket,
            handler=engine.handler,
            native=engine.native,
            cgroup_parent=engine.cgroup_parent,
            workspace=workspace,
            rootfs=rootfs,
            pause_image=f"{address}/{PAUSE_IMAGE}",
            command=engine.command,
            environment=engine.environment,
        )
        client = stack.enter_context(open_client(subject, site))
        if client.contract is Contract.CRI and not engine.native:
            # CRI has no pause of its own, and this engine came without a tool that does it.
            subject = replace(subject, capabilities=subject.capabilities - {Capability.PAUSE})
        layout = read_layout()
        meter = stack.enter_context(open_meter(layout, _groups(arena, engine)))
        witness = Witness(layout, _where(arena, engine), arena.keeper_pid)
        trial = Trial(
            subject, arena, engine, client, meter, witness, Stepper(subject, client, meter, recorder), address, blobs
        )
        trial.steps.resident = subject.engine != "none"
        stack.callback(trial.close)
        yield trial


def _groups(arena: Arena, engine: RunningEngine) -> dict[str, str]:
    # Below the arena's cgroup there is none of an engine's that puts its containers elsewhere: absent, and not 0.
    pods = {"pods": arena.cgroups.pods} if engine.cgroup_parent else {}
    return {"engine": engine.cgroup, "client": arena.cgroups.client, **pods}


def _where(arena: Arena, engine: RunningEngine) -> Callable[[], list[int]]:
    """Where this engine's containers may be: below the arena's cgroup, or anywhere for an engine that is not ours."""
    if engine.cgroup_parent:
        return lambda: arena.pids("pods")
    return lambda: [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
