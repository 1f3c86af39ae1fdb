"""Every exception that Seatrial raises on purpose.

::

    SeatrialError                  exit status 1
    ├── UsageError                 exit status 2: what was asked for cannot be understood
    │   ├── UnknownSubject
    │   └── BadConfig
    ├── MachineError               exit status 3: this machine cannot do it (no root, nothing installed, port taken)
    ├── CommandError               a command ended with a status that it should not have
    │   └── CommandTimeout
    ├── ArenaError                 the private namespaces, folders or cgroups could not be made or taken down
    ├── EngineError                an engine did not start, or died
    ├── StoreError                 results could not be written or read
    ├── WaitTimeout                a condition did not come true in time
    ├── NotExpressible             the client has no words for a call: n/a, not a finding
    ├── Interrupted                exit status 128 + signal
    ├── Recalled                   the user has asked for the end while a thread was at this
    └── RuntimeRefusal             the runtime under trial answered with an error
        ├── NotFound               the image, sandbox or container is not there
        ├── Conflict               it is there, in a state that forbids this
        ├── Unreachable            the registry (or the engine) does not answer
        ├── CallTimeout            no answer in time
        └── Refused                any other error: the runtime gave its reason in words only

A class carries its facts as fields and renders them with one template, so that a caller can look at
``error.argv`` and a person reads a whole sentence. Only `harness.cli` turns one into output and an exit status.
Errors of `RuntimeRefusal` are findings about a runtime; all others are faults of the harness, the machine or the user.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class SeatrialError(Exception):
    """Base of all; `template` is filled from the instance's fields by `str()`."""

    exit_status: ClassVar[int] = 1
    template: ClassVar[str] = "{message}"

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return self.template.format(**vars(self))


class UsageError(SeatrialError):
    """The words of a command or of a file cannot be understood; nothing was done."""

    exit_status = 2


class UnknownSubject(UsageError):
    """No subject has that name. `known` lists the names there are; `close` the nearest, if any."""

    template = "no subject is called {name!r}{hint}. Known: {known_text}"

    def __init__(self, name: str, known: Sequence[str], close: str | None = None) -> None:
        super().__init__(name)
        self.name = name
        self.known = tuple(known)
        self.close = close
        self.hint = f" (did you mean {close!r}?)" if close else ""
        self.known_text = ", ".join(known)


class BadConfig(UsageError):
    """A configuration file is malformed. `where` is the key's path inside it, or a line."""

    template = "{path}: {where}: {reason}"

    def __init__(self, path: Path | str, where: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.where, self.reason = str(path), where, reason


class MachineError(SeatrialError):
    """The machine cannot do what was asked; `remedy` is what would mend it, in words or as a command."""

    exit_status = 3
    template = "{message}{remedy_text}"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy
        self.remedy_text = f"; {remedy}" if remedy else ""


class CommandError(SeatrialError):
    """A command failed. The text has its argv as a line to replay, its status and the tail of its stderr."""

    template = "command failed with status {status}: {replay}{tail_text}"

    def __init__(self, argv: Sequence[str], status: int, stderr: str = "") -> None:
        super().__init__(stderr)
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr
        self.replay = shlex.join(argv)
        tail = "\n".join(stderr.strip().splitlines()[-8:])
        self.tail_text = f"\n{tail}" if tail else ""


class CommandTimeout(CommandError):
    """A command did not end in time; it has been killed."""

    template = "command did not end within {timeout_s:g} s: {replay}{tail_text}"

    def __init__(self, argv: Sequence[str], timeout_s: float, stderr: str = "") -> None:
        super().__init__(argv, -9, stderr)
        self.timeout_s = timeout_s


class ArenaError(SeatrialError):
    """An arena could not be made or taken down."""


class EngineError(SeatrialError):
    """An engine did not become ready, or died. `log_tail` is the end of its log."""

    template = "{engine}: {message}{tail_text}"

    def __init__(self, engine: str, message: str, log_tail: str = "") -> None:
        super().__init__(message)
        self.engine = engine
        self.log_tail = log_tail
        self.tail_text = f"\nthe end of its log:\n{log_tail}" if log_tail else ""


class StoreError(SeatrialError):
    """Results could not be written or read; what was written before stays readable."""


class WaitTimeout(SeatrialError):
    """`wait_until` gave up."""

    template = "waited {timeout_s:g} s for {what}"

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(what)
        self.what, self.timeout_s = what, timeout_s


class Interrupted(SeatrialError):
    """SIGINT or SIGTERM arrived; the run was taken down and what was measured so far kept."""

    template = "interrupted by signal {signal}"

    def __init__(self, signal: int) -> None:
        super().__init__(str(signal))
        self.signal = signal


class Recalled(SeatrialError):
    """The user has asked for the end while this was under way."""


class NotExpressible(SeatrialError):
    """The client has no words for what it was to ask the runtime: not a fault of anybody."""

    template = "{client} {lack}"

    def __init__(self, client: str, lack: str) -> None:
        super().__init__(lack)
        self.client, self.lack = client, lack


class RuntimeRefusal(SeatrialError):
    """The runtime under trial answered a call with an error: a finding, not a fault of the harness.

    `code` is the client's own code for it (a gRPC status name, an HTTP status, a process' exit status).
    """

    template = "{message}{code_text}"

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.code_text = f" [{code}]" if code else ""


class NotFound(RuntimeRefusal):
    """The image, sandbox or container that was named is not there."""


class Conflict(RuntimeRefusal):
    """The object is there, in a state that forbids the call."""


class Unreachable(RuntimeRefusal):
    """A registry (or the engine itself) does not answer."""


class CallTimeout(RuntimeRefusal):
    """The runtime did not answer in time."""


class Refused(RuntimeRefusal):
    """Any other error of the runtime; many runtimes give the reason in words only."""
