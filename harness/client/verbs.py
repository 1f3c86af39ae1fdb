"""What every client can be asked for, in the same words: `Client`; and where it works: `Site`.

What the verbs have in common:

- Whatever a runtime refuses is raised as a `RuntimeRefusal` of the right class (`harness.client.refusals` says which),
  with the client's own code for it: a gRPC status name, an HTTP status, the exit status of a command. A runtime that does
  not answer in time is `CallTimeout`, one that cannot be reached at all `Unreachable`. All other exceptions are faults of
  the harness or of the machine.
- A verb is one request to the runtime wherever the interface allows it, and adds nothing to it: no look before the leap,
  no second try. What a client must ask besides is said where it does so.
- Ids are what the runtime gave, or what it was given where the caller chooses them (``ctr``, ``oci``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from harness.command import Runner
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Tally
from harness.model.lifecycle import Contract, Operation, State


@dataclass(frozen=True, slots=True)
class Site:
    """What a client needs to know of the place where it works. All paths are the same inside and outside of an arena."""

    runner: Runner
    """starts the client's commands, and reaches the same network and mounts as the engine"""
    socket: Path | None
    """of the engine's API; None where there is no engine"""
    handler: str
    """name of the runtime handler (CRI, Docker), program of the OCI runtime (``ctr``, ``oci``); "" for the default"""
    native: Mapping[str, tuple[str, ...]]
    """the engine's own tool for what the client's interface lacks: argv without the container's id, by ``pause`` and
    ``resume``; empty where there is none"""
    cgroup_parent: str
    """cgroup below which containers are put; "" for the engine's default"""
    workspace: Path
    """an existing folder of the client's own; whoever made it removes it"""
    rootfs: Mapping[str, Path]
    """unpacked root filesystem by image reference, for the client that has no images"""
    pause_image: str
    """reference of the image of sandboxes, for engines that let the client choose"""
    command: tuple[str, ...] = ()
    """argv, up to its verb, of an engine's own command line, for the client that is it (``cli``)"""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """of `command`"""


class Client(Protocol):
    """One way to drive a runtime. Not safe for use by more than one thread."""

    @property
    def contract(self) -> Contract:
        """The specification that its calls are held to."""
        ...

    @property
    def tally(self) -> Tally:
        """Calls made and processes started so far."""
        ...

    def via(self, operation: Operation) -> str:
        """The tool or interface that does `operation`; "" for the client's own."""
        ...

    def version(self) -> str:
        """Name and version of the engine (of the OCI runtime, where there is none), as it gives them."""
        ...

    def pull(self, image: str) -> str:
        """Pull, also where the image is there already; the reference by which the runtime knows it: a digest or an id.

        Raises `NotFound` for a name or tag that the registry does not have, `Unreachable` for one that does not answer.
        """
        ...

    def has_image(self, image: str) -> bool: ...

    def remove_image(self, image: str) -> None: ...

    def run_sandbox(self, name: str, network: Network) -> str:
        """Create and start a pod; its id."""
        ...

    def sandbox_ready(self, sandbox: str) -> bool:
        """False also for one that is not there."""
        ...

    def sandbox_exists(self, sandbox: str) -> bool: ...

    def stop_sandbox(self, sandbox: str) -> None: ...

    def remove_sandbox(self, sandbox: str) -> None: ...

    def create(self, spec: ContainerSpec) -> str:
        """Create a container that starts nothing yet; its id."""
        ...

    def start(self, container: str) -> None: ...

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        """Run a command inside a container to its end.

        For a command that cannot be started runtimes either give an exit status (126 or 127) or an error. This verb
        hands on what the runtime said: `ExecResult` where it gave a status, `Refused` with its words where it gave an
        error. Raises `CallTimeout` when the command has not ended after `timeout_s`.
        """
        ...

    def pause(self, container: str) -> None: ...

    def resume(self, container: str) -> None: ...

    def logs(self, container: str) -> list[LogLine]:
        """Everything that the container has printed so far. Lines of one stream are in order; across the two streams
        the order is that of their times, where lines have times.
        """
        ...

    def state(self, container: str) -> State:
        """What the runtime reports, `ABSENT` where it knows no such container. CRI has no word for a paused container
        and reports `RUNNING`: whoever must know asks the kernel.
        """
        ...

    def exit_code(self, container: str) -> int | None:
        """Status with which the container ended, 128 + N after signal N; None while it has not, and where the interface
        does not tell.
        """
        ...

    def stop(self, container: str, grace_s: float) -> None:
        """SIGTERM, and SIGKILL once `grace_s` seconds are over; returns when the container has stopped."""
        ...

    def remove(self, container: str) -> None: ...

    def close(self) -> None:
        """Let go of connections. Containers stay as they are."""
        ...


@runtime_checkable
class Lister(Protocol):
    """A client that can list: those of CRI."""

    def list_containers(self) -> list[str]:
        """The ids of all containers that the engine has, in whatever state."""
        ...
