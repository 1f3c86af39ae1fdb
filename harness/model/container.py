"""What the harness asks a runtime for, and what it gets back: the same values for every client."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Network(StrEnum):
    """`HOST`: the arena's own network namespace, no CNI; `BRIDGE`: a network of the container's (pod's) own."""

    HOST = "host"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to create. `argv` replaces the image's entrypoint and command."""

    name: str
    """unique in a run, of ``[a-z0-9-]``; also put into the environment as ``SEATRIAL_ID``, by which the kernel's
    view of the container is found without asking the runtime"""
    image: str
    """reference as pulled, ``host:port/name:tag``"""
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    network: Network = Network.HOST
    sandbox: str = ""
    """id of the pod it belongs to, for clients with `Capability.SANDBOX`"""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command inside a container printed and how it ended."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class Stream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a container's log, without its newline. `at_ns`: nanoseconds since 1970 UTC, if the log has a time."""

    stream: Stream
    text: str
    at_ns: int | None = None


@dataclass(slots=True)
class Tally:
    """How much traffic a client caused so far: remote calls made and processes started. Only ever grows."""

    rpcs: int = 0
    execs: int = 0
    by_call: dict[str, int] = field(default_factory=dict)
