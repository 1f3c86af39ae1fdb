"""``seatrial setup``: a plan of steps, as data; then the steps, one after the other, each on its own account."""

from __future__ import annotations

import difflib
import platform
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from harness.command import Runner
from harness.engine.programs import version_of
from harness.errors import MachineError, SeatrialError, UsageError
from harness.machine import crictl
from harness.machine.apt import Apt
from harness.machine.release import CRICTL_BASE, CRICTL_VERSION, Progress, Release, crictl_release, install_release
from harness.machine.tools import TOOLS, Tool, find_tool

Find = Callable[[str], Path | None]


class Status(StrEnum):
    """How a step ended. `THERE`: nothing had to be done; `NOTED`: something for a person to know, nothing failed."""

    DONE = "done"
    THERE = "there"
    NOTED = "noted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    tool: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True)
class Workshop:
    """What steps work with."""

    runner: Runner
    apt: Apt
    root: bool = True
    """whether it may change the machine"""
    find: Find = find_tool
    bin: Path = Path("/usr/local/bin")
    """where programs of release files go"""
    crictl_config: Path = crictl.CONFIG
    progress: Progress = field(default=lambda done, total: None)


class Step(Protocol):
    """One thing to do for one tool. `changes`: whether it alters the machine, which only root can."""

    changes: ClassVar[bool]

    @property
    def tool(self) -> str: ...

    def lines(self, workshop: Workshop) -> tuple[str, ...]:
        """The shell commands that come to the same; none where nothing is to be done."""
        ...

    def perform(self, workshop: Workshop) -> Result:
        """Do it. Raises `SeatrialError`."""
        ...


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """It is there already, wherever it came from: another package of the same program would push it out."""

    changes: ClassVar[bool] = False
    tool: str
    where: str

    def lines(self, workshop: Workshop) -> tuple[str, ...]:
        return ()

    def perform(self, workshop: Workshop) -> Result:
        return Result(self.tool, Status.THERE, self.where)


@dataclass(frozen=True, slots=True)
class InstallPackages:
    """Debian's packages of a tool."""

    changes: ClassVar[bool] = True
    tool: str
    packages: tuple[str, ...]

    def lines(self, workshop: Workshop) -> tuple[str, ...]:
        return tuple(shlex.join(argv) for argv in workshop.apt.lines(self.packages))

    def perform(self, workshop: Workshop) -> Result:
        workshop.apt.install(self.packages)
        return Result(self.tool, Status.DONE, f"installed Debian's {', '.join(self.packages)}")


@dataclass(frozen=True, slots=True)
class InstallRelease:
    """A program of a project's release tarball."""

    changes: ClassVar[bool] = True
    tool: str
    release: Release

    def lines(self, workshop: Workshop) -> tuple[str, ...]:
        name = shlex.quote(self.release.file_name)
        return (
            f"curl -fsSLO {shlex.quote(self.release.url)}",
            f"echo '{self.release.sha256}  {self.release.file_name}' | sha256sum --check",
            f"tar -xzf {name} -C {shlex.quote(str(workshop.bin))} --no-same-owner {self.release.program}",
        )

    def perform(self, workshop: Workshop) -> Result:
        path = install_release(self.release, workshop.bin, workshop.progress)
        return Result(self.tool, Status.DONE, f"installed {self.release.version} as {path}, sha256 verified")


@dataclass(frozen=True, slots=True)
class ConfigureCrictl:
    """``/etc/crictl.yaml``. One that names another endpoint is replaced only where the user named one too."""

    changes: ClassVar[bool] = True
    endpoint: crictl.Endpoint
    asked_for: bool
    tool: str = "crictl"

    def _current(self, workshop: Workshop) -> str:
        return crictl.read_endpoint(workshop.crictl_config)

    def lines(self, workshop: Workshop) -> tuple[str, ...]:
        current, path = self._current(workshop), workshop.crictl_config
        if current == str(self.endpoint) or (current and not self.asked_for):
            return ()
        kept = (f"cp --no-clobber {path} {path}{crictl.KEEP_SUFFIX}",) if crictl.is_of_others(path) else ()
        text = crictl.render_config(self.endpoint)
        return (*kept, f"cat > {path} <<'END'\n{text}END")

    def perform(self, workshop: Workshop) -> Result:
        current, path = self._current(workshop), workshop.crictl_config
        if current == str(self.endpoint):
            return Result(self.tool, Status.THERE, f"{path} names {current}")
        if current and not self.asked_for:
            return Result(self.tool, Status.NOTED, f"{path} names {current}: left as it is (change it with --endpoint)")
        kept = crictl.write_config(self.endpoint, path)
        before = f"; the file that was there is kept as {kept}" if kept else ""
        return Result(self.tool, Status.DONE, f"{path} names {self.endpoint} now{before}")


@dataclass(frozen=True, slots=True)
class CheckCrictl:
    """Ask the engine through crictl. That nobody answers is worth a word, not a failure: trials start engines themselves."""

    changes: ClassVar[bool] = False
    endpoint: crictl.Endpoint
    tool: str = "crictl"

    def lines(self, workshop: Workshop) -> tuple[str, ...]:
        return (f"crictl --runtime-endpoint {shlex.quote(str(self.endpoint))} info",)

    def perform(self, workshop: Workshop) -> Result:
        program = workshop.find("crictl")
        if program is None:
            return Result(self.tool, Status.NOTED, "crictl info not asked: there is no crictl")
        try:
            return Result(
                self.tool, Status.DONE, f"crictl info: {crictl.ask_engine(workshop.runner, program, self.endpoint)}"
            )
        except SeatrialError as error:
            return Result(self.tool, Status.NOTED, str(error))


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for."""

    names: tuple[str, ...] = ()
    crictl_version: str = ""
    """empty: whichever is there, or else `CRICTL_VERSION`"""
    sha256: str = ""
    endpoint: str = ""
    base: str = CRICTL_BASE


def plan(wishes: Wishes, find: Find = find_tool, machine: str = platform.machine()) -> tuple[Step, ...]:
    """The steps for `wishes`. Nothing is done. Raises `UsageError` for an unknown name, address or sum."""
    steps: list[Step] = []
    for tool in chosen(wishes.names):
        there = [find(program) for program in tool.programs]
        first = there[0]
        if first is not None and all(there) and not (tool.name == "crictl" and _other_version(first, wishes)):
            steps.append(LeaveAlone(tool.name, f"{first} is there"))
        elif tool.packages:
            steps.append(InstallPackages(tool.name, tool.packages))
        else:
            version = wishes.crictl_version or CRICTL_VERSION
            steps.append(InstallRelease(tool.name, crictl_release(version, machine, wishes.sha256, wishes.base)))
        if tool.name == "crictl":
            endpoint = crictl.parse_endpoint(wishes.endpoint) if wishes.endpoint else crictl.likely_endpoint()
            steps += [ConfigureCrictl(endpoint, asked_for=bool(wishes.endpoint)), CheckCrictl(endpoint)]
    return tuple(steps)


def _other_version(program: Path, wishes: Wishes) -> bool:
    """Whether a version was asked for that is not the one of `program`."""
    asked = wishes.crictl_version.removeprefix("v")
    return bool(asked) and asked not in version_of(program)


def chosen(names: Sequence[str]) -> tuple[Tool, ...]:
    """The tools of these names, each once; the default ones where there is no name. Raises `UsageError`."""
    for name in names:
        if name not in TOOLS:
            close = difflib.get_close_matches(name, TOOLS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UsageError(f"setup knows no {name!r}{hint}. Known: {', '.join(TOOLS)}")
    return tuple(tool for tool in TOOLS.values() if (tool.name in names if names else tool.default))


def perform(steps: Iterable[Step], workshop: Workshop, tell: Callable[[Result], None]) -> tuple[Result, ...]:
    """Take every step, tell of each as it ends; one that fails does not stop the others, only those of its own tool."""
    results: list[Result] = []
    failed: set[str] = set()
    for step in steps:
        if step.tool in failed:
            continue
        try:
            if step.changes and not workshop.root and step.lines(workshop):
                raise MachineError("that takes root", f"sudo seatrial setup {step.tool}")
            result = step.perform(workshop)
        except SeatrialError as error:
            result = Result(step.tool, Status.FAILED, str(error))
            failed.add(step.tool)
        results.append(result)
        tell(result)
    return tuple(results)


def all_failed(results: Iterable[Result], names: Sequence[str]) -> bool:
    """Whether tools were asked for by name and not one of them is there now."""
    wanted = set(names)
    return bool(wanted) and wanted <= {result.tool for result in results if result.status is Status.FAILED}
