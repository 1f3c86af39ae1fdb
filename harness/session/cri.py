"""`CriTrial`: pods and containers of one subject, made in every way that the CRI has words for, one test at a time."""

from __future__ import annotations

import contextlib
import copy
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from harness.client.cri_config import sandbox_config
from harness.client.cri_door import CALL_TIMEOUT_S, CriDoor, dial
from harness.client.crilog import parse_cri_log
from harness.client.streams import Streams, open_command, open_port
from harness.clock import SYSTEM_CLOCK, wait_until
from harness.errors import NotExpressible, RuntimeRefusal, WaitTimeout
from harness.linux.leases import is_open_for_writing
from harness.model.container import ExecResult, LogLine, Network, Stream
from harness.session.trial import IMAGE, Trial
from harness.session.witness import Sighting

EXITED, RUNNING, CREATED = 2, 1, 0
"""runtime.v1.ContainerState"""
READY, NOT_READY = 0, 1
"""runtime.v1.PodSandboxState"""
POD, CONTAINER, NODE, TARGET = 0, 1, 2, 3
"""runtime.v1.NamespaceMode"""
T = TypeVar("T")
SLEEP = ("/bin/sleep", "3600")
PATIENCE_S = 15.0
SETTLE_PAUSE_S, SETTLED_ROUNDS = 0.01, 4
OPEN_LOG_S = 3.0
"""How long an engine may take to close the log of a container that has ended, before it is taken for one that never does."""

MILESTONES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "1.26": ("ListPodSandboxMetrics", {}),
    "1.28": ("RuntimeConfig", {}),
    "1.33": ("UpdatePodSandboxResources", {"pod_sandbox_id": "no-such-pod"}),
}
"""By release of the API a call that came with it. Fields have no version of their own: a server that does not know the
call was not built from that release, and cannot know its fields either."""


def settle(log: Path) -> None:
    """Wait until the log of a container that has ended is whole: an engine may tell of the end before it has written the last
    lines. That is when nobody can write to it any more; of an engine that keeps it open, when it stands still.
    """
    with contextlib.suppress(WaitTimeout):
        wait_until(lambda: not is_open_for_writing(log), OPEN_LOG_S, f"{log} to be closed")
    size, still = -1, 0
    while still < SETTLED_ROUNDS:
        SYSTEM_CLOCK.sleep(SETTLE_PAUSE_S)
        last, size = size, log.stat().st_size if log.exists() else 0
        still = still + 1 if size == last else 0


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod sandbox, and what it was made from."""

    id: str
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.config["metadata"]["name"])

    @property
    def logs(self) -> Path:
        return Path(self.config["log_directory"])


@dataclass(frozen=True, slots=True)
class Box:
    """A container, and what it was made from."""

    id: str
    pod: Pod
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.config["metadata"]["name"])

    @property
    def log(self) -> Path:
        return self.pod.logs / str(self.config["log_path"])


@dataclass(frozen=True, slots=True)
class Ran:
    """A container that ran to its end."""

    box: Box
    status: Any
    """``ContainerStatus``"""
    text: str
    """its stdout"""
    errors: str
    """its stderr"""

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(slots=True)
class CriTrial:
    """What the tests of ``suites/cri`` hold in hands. `tidy` removes what one test has made."""

    trial: Trial
    door: CriDoor
    """the way of the test's own calls; a proof puts a broken one here"""
    patience_s: float = PATIENCE_S
    """how long a test waits for what has to come; a proof waits for what never comes, and not as long"""
    _honest: CriDoor = field(init=False)
    _harbour: dict[str, Pod] = field(default_factory=dict)
    _pods: list[Pod] = field(default_factory=list)
    _boxes: list[Box] = field(default_factory=list)
    _connections: list[socket.socket] = field(default_factory=list)
    _known: dict[str, bool] = field(default_factory=dict)
    _status: Any = None

    def __post_init__(self) -> None:
        self._honest = self.door

    def __repr__(self) -> str:
        return f"<CRI of {self.trial.subject.name}>"

    def call(self, rpc: str, /, within_s: float = CALL_TIMEOUT_S, **request: Any) -> Any:
        """Make a call; its answer. Raises `RuntimeRefusal`."""
        return self.door.call(rpc, request, within_s)

    def image(self, name: str = IMAGE) -> str:
        return self.trial.image(name)

    def wait(self, predicate: Callable[[], T], what: str) -> T:
        """Wait until `predicate` is true; its value. Raises `WaitTimeout`."""
        return wait_until(predicate, self.patience_s, f"{self.trial.subject.name}: {what}")

    # What the runtime says it can do

    def since(self, release: str) -> None:
        """Go on only where the runtime knows the API as of `release`. Raises `NotExpressible`."""
        rpc, request = MILESTONES[release]
        if release not in self._known:
            self._known[release] = self._knows(rpc, request)
        if not self._known[release]:
            raise NotExpressible(self.trial.subject.name, f"does not know the API of {release}: it has no {rpc}")

    def needs_call(self, rpc: str, **request: Any) -> None:
        """Go on only where the runtime implements `rpc`, asked with a harmless request. Raises `NotExpressible`."""
        if rpc not in self._known:
            self._known[rpc] = self._knows(rpc, request)
        if not self._known[rpc]:
            raise NotExpressible(self.trial.subject.name, f"answers Unimplemented to {rpc}")

    def _knows(self, rpc: str, request: Mapping[str, Any]) -> bool:
        try:
            self._honest.call(rpc, request)
        except RuntimeRefusal as refusal:
            return refusal.code != "UNIMPLEMENTED"
        return True

    def needs_feature(self, feature: str) -> None:
        """Go on only where ``Status`` reports `feature` of the runtime or of its handler. Raises `NotExpressible`."""
        if self._status is None:
            self._status = self._honest.call("Status", {})
        handlers = {handler.name: handler.features for handler in self._status.runtime_handlers}
        mine = handlers.get(self.trial.engine.handler) or handlers.get("")
        if not (getattr(self._status.features, feature, False) or getattr(mine, feature, False)):
            raise NotExpressible(self.trial.subject.name, f"does not report the feature {feature}")

    def needs_sight(self, *paths: str) -> None:
        """Go on only where the client passes on these fields (``Rpc.field``). Raises `NotExpressible`."""
        for path in paths:
            if path in self.door.blind:
                raise NotExpressible(self.trial.subject.client, f"does not show or take {path}")

    # Pods

    def pod_config(self, network: Network = Network.HOST, **more: Any) -> dict[str, Any]:
        """A ``PodSandboxConfig`` with `more` put on top of what every pod of a trial has."""
        name = self.trial.name("pod")
        logs = self.trial.arena.state / "client" / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        return merged(sandbox_config(name, network, self.trial.engine.cgroup_parent, logs), more)

    def pod(self, network: Network = Network.HOST, *, handler: str | None = None, **more: Any) -> Pod:
        """Run a pod, removed with the test."""
        return self.run_pod(self.pod_config(network, **more), handler=handler)

    def run_pod(self, config: Mapping[str, Any], *, handler: str | None = None) -> Pod:
        return self._run_pod(self.door, config, handler)

    def _run_pod(self, door: CriDoor, config: Mapping[str, Any], handler: str | None) -> Pod:
        request = {"config": config, "runtime_handler": self.trial.engine.handler if handler is None else handler}
        pod = Pod(door.call("RunPodSandbox", request).pod_sandbox_id, config)
        self._pods.append(pod)
        return pod

    def shared_pod(self, network: Network = Network.HOST) -> Pod:
        """A pod for containers that ask for nothing else; the same for all tests, and whole also in a proof."""
        if network not in self._harbour:
            pod = self._run_pod(self._honest, self.pod_config(network), None)
            self._pods.remove(pod)
            self._harbour[network] = pod
        return self._harbour[network]

    def pod_status(self, pod: Pod | str, **request: Any) -> Any:
        """``PodSandboxStatus``."""
        where = pod if isinstance(pod, str) else pod.id
        return self.call("PodSandboxStatus", pod_sandbox_id=where, **request).status

    def stop_pod(self, pod: Pod) -> None:
        self.call("StopPodSandbox", pod_sandbox_id=pod.id)

    def remove_pod(self, pod: Pod) -> None:
        self.call("RemovePodSandbox", pod_sandbox_id=pod.id)

    # Containers

    def config(self, command: Sequence[str] | None = SLEEP, image: str = IMAGE, **more: Any) -> dict[str, Any]:
        """A ``ContainerConfig`` with `more` put on top of what every container of a trial has; the image is pulled."""
        reference = self.image(image)
        if not self._honest.call("ImageStatus", {"image": {"image": reference}}).image.id:
            self._honest.call("PullImage", {"image": {"image": reference}})
        name = self.trial.name("box")
        base: dict[str, Any] = {
            "metadata": {"name": name},
            "image": {"image": reference},
            "envs": [{"key": "SEATRIAL_ID", "value": name}],
            "log_path": f"{name}.log",
            "linux": {"security_context": {"namespace_options": {"pid": CONTAINER}}},
        }
        if command is not None:
            base["command"] = list(command)
        return merged(base, more)

    def create(
        self, command: Sequence[str] | None = SLEEP, *, pod: Pod | None = None, image: str = IMAGE, **more: Any
    ) -> Box:
        """Create a container in `pod` or in the shared one; it is removed with the test."""
        pod = pod or self.shared_pod()
        config = self.config(command, image, **more)
        options = config["linux"]["security_context"]["namespace_options"]
        options.setdefault("network", pod.config["linux"]["security_context"]["namespace_options"].get("network", POD))
        return self.create_from(pod, config)

    def create_from(self, pod: Pod, config: Mapping[str, Any]) -> Box:
        answer = self.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        box = Box(answer.container_id, pod, config)
        self._boxes.append(box)
        return box

    def start(self, box: Box) -> None:
        self.call("StartContainer", container_id=box.id)

    def launch(
        self, command: Sequence[str] | None = SLEEP, *, pod: Pod | None = None, image: str = IMAGE, **more: Any
    ) -> Box:
        """Create and start a container."""
        box = self.create(command, pod=pod, image=image, **more)
        self.start(box)
        return box

    def run(self, *command: str, pod: Pod | None = None, image: str = IMAGE, **more: Any) -> Ran:
        """Run a container to its end. One word is a script for the shell."""
        words = ("/bin/sh", "-c", *command) if len(command) == 1 else command
        box = self.launch(words or None, pod=pod, image=image, **more)
        return self.ended(box)

    def ended(self, box: Box) -> Ran:
        """Wait for the end of a container. Raises `WaitTimeout`."""
        status = self.await_exit(box)
        settle(box.log)
        lines = self.log(box)
        said = {stream: "".join(f"{line.text}\n" for line in lines if line.stream is stream) for stream in Stream}
        return Ran(box, status, said[Stream.STDOUT], said[Stream.STDERR])

    def status(self, box: Box, **request: Any) -> Any:
        """``ContainerStatus``."""
        return self.call("ContainerStatus", container_id=box.id, **request).status

    def await_exit(self, box: Box) -> Any:
        """The status of a container that has ended. Raises `WaitTimeout`."""
        found: list[Any] = []

        def over() -> bool:
            found[:] = [self.status(box)]
            return bool(found[0].state == EXITED)

        self.wait(over, f"{box.name} to end")
        return found[0]

    def stop(self, box: Box, timeout: int = 0) -> None:
        self.call("StopContainer", container_id=box.id, timeout=timeout)

    def remove(self, box: Box) -> None:
        self.call("RemoveContainer", container_id=box.id)

    def execute(self, box: Box, *command: str, timeout: int = 10) -> ExecResult:
        """``ExecSync``. One word is a script for the shell."""
        words = ("/bin/sh", "-c", *command) if len(command) == 1 else command
        answer = self.call("ExecSync", container_id=box.id, cmd=list(words), timeout=timeout)
        return ExecResult(answer.stdout, answer.stderr, answer.exit_code)

    def said(self, box: Box, *command: str) -> str:
        """What a command inside of a container prints, which has to succeed."""
        result = self.execute(box, *command)
        assert result.exit_code == 0, (
            f"{command} ended with {result.exit_code}: {result.stdout[-400:]!r} {result.stderr[-400:]!r}"
        )
        return result.stdout.decode(errors="replace").rstrip("\n")

    def log(self, box: Box) -> list[LogLine]:
        """What the engine has written of a container's output; nothing yet where there is no file."""
        try:
            return parse_cri_log(box.log.read_bytes().decode(errors="replace"))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise AssertionError(str(error)) from None

    def await_line(self, box: Box, text: str, count: int = 1) -> None:
        """Wait until a container has printed a line, as often as `count`. Raises `WaitTimeout`."""
        self.wait(
            lambda: sum(line.text.rstrip("\r") == text for line in self.log(box)) >= count,
            f"{count} lines {text!r} in the log of {box.name}",
        )

    def processes(self, box: Box) -> list[Sighting]:
        """The kernel's view of a container: its processes, init first."""
        return self.trial.witness.processes(box.name)

    def family(self, box: Box) -> list[Sighting]:
        """The same, once there is one. Raises `WaitTimeout`."""
        # An engine may answer before the kernel has exchanged its program for the container's.
        return self.wait(lambda: self.processes(box), f"a process of {box.name}")

    def init(self, box: Box) -> int:
        """The process number, as seen from outside, of a container's init."""
        return self.family(box)[0].pid

    # Streams

    def dial(self, address: SplitResult | tuple[str, int]) -> socket.socket:
        """A connection from the engine's network namespace, closed with the test. Raises `OSError`."""
        connection = dial(self.trial.arena.netns, address)
        self._connections.append(connection)
        return connection

    def url(self, rpc: str, **request: Any) -> SplitResult:
        """The URL that ``Exec``, ``Attach`` or ``PortForward`` answers."""
        self.needs_sight(f"{rpc}.url")
        return urlsplit(str(self.call(rpc, **request).url))

    def open(self, rpc: str, box: Box, transport: str, **request: Any) -> Streams:
        """``Exec`` or ``Attach``, connected."""
        wanted = {"stdin": False, "stdout": True, "stderr": not request.get("tty"), **request}
        url = self.url(rpc, container_id=box.id, **wanted)
        channels = [name for name in ("stdin", "stdout", "stderr") if wanted[name]]
        if wanted.get("tty"):
            channels.append("resize")
        return self._patient(open_command(self.dial(url), url, channels, transport))

    def open_port(self, pod: Pod, port: int, transport: str) -> Streams:
        """``PortForward``, connected to one port."""
        url = self.url("PortForward", pod_sandbox_id=pod.id, port=[port])
        return self._patient(open_port(self.dial(url), url, port, transport))

    def _patient(self, streams: Streams) -> Streams:
        streams.patience_s = self.patience_s
        return streams

    @contextlib.contextmanager
    def stream(self, rpc: str, **request: Any) -> Iterator[Iterator[Any]]:
        with self.door.stream(rpc, request) as answers:
            yield answers

    # The end

    def tidy(self) -> None:
        """Remove what the test has made, through the honest door; what is gone already is nothing to speak of."""
        self.door = self._honest
        for connection in self._connections:
            connection.close()
        gone = {pod.id for pod in self._pods}
        for box in self._boxes:
            if box.pod.id not in gone:
                self._quietly("RemoveContainer", container_id=box.id)
        for pod in self._pods:
            self._quietly("StopPodSandbox", pod_sandbox_id=pod.id)
            self._quietly("RemovePodSandbox", pod_sandbox_id=pod.id)
        self._connections.clear()
        self._boxes.clear()
        self._pods.clear()

    def close(self) -> None:
        """Remove the shared pods too."""
        self._pods.extend(self._harbour.values())
        self._harbour.clear()
        self.tidy()

    def _quietly(self, rpc: str, **request: Any) -> None:
        with contextlib.suppress(RuntimeRefusal, NotExpressible):
            self._honest.call(rpc, request)


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `more` on top: mappings are merged, lists of ``envs`` joined, all else is replaced; None takes away."""
    result = copy.deepcopy(dict(base))
    for key, value in more.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif key == "envs":
            result[key] = [*result.get(key, []), *value]
        else:
            result[key] = copy.deepcopy(value)
    return result


def secured(**context: Any) -> dict[str, Any]:
    """The ``linux`` part of a container's configuration with this security context."""
    return {"security_context": context}
