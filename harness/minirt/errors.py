"""Every error that minirt raises on purpose.

::

    MinirtError
    ├── InvalidArgument       what was asked for, or an input, is malformed; nothing was done
    │   ├── UsageError        the words of a command cannot be understood
    │   └── SpecError         a config.json (or an exec's process) is invalid
    ├── NotFound              what was named is not there
    │   └── ContainerMissing
    ├── AlreadyExists
    │   └── ContainerExists
    ├── WrongState            it is there, in a state that forbids this
    ├── Unsupported           valid, but neither this kernel nor minirt has it
    ├── Denied                a registry does not let us
    ├── Unavailable           a registry (or another service) does not answer
    ├── Exhausted             something of which there is only so much is used up
    ├── TimedOut              it was not done in the time that it was given, or nobody waits for it any more
    ├── StateCorrupt          what was remembered cannot be read
    ├── CgroupError           a cgroup could not be made, limited or removed
    ├── HookError             a hook failed or took too long
    ├── ExecError             `exec` could not start its process
    └── StepError             a step of starting a process failed
        └── CommandError      ... the last one: the program cannot be executed

Texts keep the words that callers of OCI runtimes match ("does not exist", "container not running", "executable file not
found in $PATH", ...), because engines know runtimes by their words.
"""

from __future__ import annotations

from harness.linux import lean as os

_ENOENT = 2


class MinirtError(Exception):
    """Base of all; `str()` is one sentence for a person."""


class InvalidArgument(MinirtError):
    """What was asked for, or an input, is malformed."""


class NotFound(MinirtError):
    """What was named is not there."""


class AlreadyExists(MinirtError):
    """What was to be made is there."""


class Denied(MinirtError):
    """A registry does not let us have it."""


class Unavailable(MinirtError):
    """A registry, or another service that is needed, does not answer."""


class Exhausted(MinirtError):
    """Something of which there is only so much is used up."""


class TimedOut(MinirtError):
    """It was not done in the time that it was given, or nobody waits for it any more."""


class UsageError(InvalidArgument):
    """The words of a command cannot be understood."""


class SpecError(InvalidArgument):
    """A specification is invalid at `path` (a JSON path such as ``linux.namespaces[2].type``) because of `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"invalid config: {path}: {reason}")
        self.path, self.reason = path, reason


class Unsupported(MinirtError):
    """What is asked for cannot be had here; the text says why."""


class ContainerMissing(NotFound):
    """No container has that id."""

    def __init__(self, id: str) -> None:
        super().__init__(f'container "{id}" does not exist')
        self.id = id


class ContainerExists(AlreadyExists):
    """A container has that id already."""

    def __init__(self, id: str) -> None:
        super().__init__(f"container with id {id} already exists: container with given ID already exists")
        self.id = id


class WrongState(MinirtError):
    """The container's state forbids the operation."""


class StateCorrupt(MinirtError):
    """The state file cannot be read."""


class CgroupError(MinirtError):
    """A cgroup could not be made, limited or removed; names the file and the reason."""


class HookError(MinirtError):
    """A hook failed. `output` is the end of what it wrote to its standard error."""


class ExecError(MinirtError):
    """`exec` could not start its process: a status that a program hardly has tells it from the program's own."""

    exit_code = 255

    def __init__(self, reason: object) -> None:
        super().__init__(f"exec failed: {reason}")


class StepError(MinirtError):
    """A step on the way to a running process failed. `step` names it, `errno` is the kernel's number (0: none)."""

    def __init__(self, step: str, errno: int, reason: str) -> None:
        super().__init__(f"unable to start container process: {step}: {reason}" if step else reason)
        self.step, self.errno, self.reason = step, errno, reason


class CommandError(StepError):
    """The program of a process cannot be executed. `exit_code` is what a shell would say: 127 not found, else 126."""

    def __init__(self, command: str, errno: int, reason: str) -> None:
        super().__init__(f'exec: "{command}"', errno, reason)
        self.command = command
        self.exit_code = 127 if errno == _ENOENT else 126


def step_error(step: str, error: OSError) -> StepError:
    """A `StepError` of an `OSError`, with the path it was about."""
    number = error.errno or 0
    about = f" ({os.fsdecode(error.filename)})" if error.filename else ""
    return StepError(step, number, f"{os.strerror(number).lower() if number else error}{about}")
