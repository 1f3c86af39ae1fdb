"""Runtimes that are broken on purpose: a client that lies in one way, between the suite and a good runtime.

A pytest plugin. ``SEATRIAL_SABOTAGE`` names the lie; `SABOTAGES` says which tests of the lifecycle suite must catch it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from harness.client.verbs import Client
from harness.errors import NotFound, Refused, RuntimeRefusal
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Stream
from harness.model.lifecycle import State
from harness.session import trial as trial_module

SABOTAGE = "SEATRIAL_SABOTAGE"


class Saboteur:
    """Passes every verb on to the good client; a subclass replaces one."""

    def __init__(self, client: Client) -> None:
        self.good: Any = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.good, name)


class PullPretends(Saboteur):
    def pull(self, image: str) -> str:
        return "sha256:" + "0" * 64


class PullFindsEverything(Saboteur):
    def pull(self, image: str) -> str:
        with contextlib.suppress(RuntimeRefusal):
            return str(self.good.pull(image))
        return "sha256:" + "0" * 64


class PullGivesAnotherEachTime(Saboteur):
    count = 0

    def pull(self, image: str) -> str:
        self.good.pull(image)
        self.count += 1
        return f"sha256:{self.count:064}"


class PullCallsTheUnreachableMissing(Saboteur):
    def pull(self, image: str) -> str:
        try:
            return str(self.good.pull(image))
        except RuntimeRefusal as refusal:
            raise NotFound("no such image") from refusal


class RemoveImagePretends(Saboteur):
    def remove_image(self, image: str) -> None:
        pass


class RemoveImageOnlyOnce(Saboteur):
    def remove_image(self, image: str) -> None:
        if not self.good.has_image(image):
            raise NotFound(image)
        self.good.remove_image(image)


class CreateStarts(Saboteur):
    def create(self, spec: ContainerSpec) -> str:
        container = str(self.good.create(spec))
        self.good.start(container)
        return container


class CreateForgetsTheEnvironment(Saboteur):
    def create(self, spec: ContainerSpec) -> str:
        return str(self.good.create(replace(spec, env=())))


class CreateTakesAnyImage(Saboteur):
    def create(self, spec: ContainerSpec) -> str:
        try:
            return str(self.good.create(spec))
        except RuntimeRefusal:
            return "made-up"


class CreateTakesAnySandbox(CreateTakesAnyImage):
    pass


class StartPretends(Saboteur):
    def start(self, container: str) -> None:
        pass


class StartHidesItsFailure(Saboteur):
    def start(self, container: str) -> None:
        with contextlib.suppress(RuntimeRefusal):
            self.good.start(container)

    def create(self, spec: ContainerSpec) -> str:
        try:
            return str(self.good.create(spec))
        except RuntimeRefusal:
            return "made-up"


class EveryExitStatusIsZero(Saboteur):
    def exit_code(self, container: str) -> int | None:
        return 0


class EveryExitStatusIsOne(Saboteur):
    def exit_code(self, container: str) -> int | None:
        return 1


class NetworksAreSwapped(Saboteur):
    def run_sandbox(self, name: str, network: Network) -> str:
        other = Network.BRIDGE if network is Network.HOST else Network.HOST
        return str(self.good.run_sandbox(name, other))


class ExecMixesItsStreams(Saboteur):
    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        result = self.good.exec(container, argv, timeout_s)
        return ExecResult(result.stdout + result.stderr, b"", result.exit_code)


class ExecAlwaysSucceeds(Saboteur):
    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        try:
            return replace(self.good.exec(container, argv, timeout_s), exit_code=0)
        except RuntimeRefusal:
            return ExecResult(b"", b"", 0)


class ExecCutsItsOutput(Saboteur):
    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        result = self.good.exec(container, argv, timeout_s)
        return replace(result, stdout=result.stdout[:65536])


class ExecForgetsTheEnvironment(Saboteur):
    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        return self.good.exec(container, ("/bin/env", "-i", *argv), timeout_s)  # type: ignore[no-any-return]


class PausePretends(Saboteur):
    def pause(self, container: str) -> None:
        pass


class ResumePretends(Saboteur):
    def resume(self, container: str) -> None:
        pass


class LogsMixTheirStreams(Saboteur):
    def logs(self, container: str) -> list[LogLine]:
        return [replace(line, stream=Stream.STDOUT) for line in self.good.logs(container)]


class LogsLoseALine(Saboteur):
    def logs(self, container: str) -> list[LogLine]:
        lines = self.good.logs(container)
        return lines[:250] + lines[251:]


class LogsAreShuffled(Saboteur):
    def logs(self, container: str) -> list[LogLine]:
        lines = self.good.logs(container)
        return sorted(lines, key=lambda line: line.text)


class LogsAreCut(Saboteur):
    def logs(self, container: str) -> list[LogLine]:
        return [replace(line, text=line.text[:16384]) for line in self.good.logs(container)]


class LogsStandStillInTime(Saboteur):
    def logs(self, container: str) -> list[LogLine]:
        lines = self.good.logs(container)
        return [replace(line, at_ns=lines[0].at_ns) for line in lines]


class StopKillsAtOnce(Saboteur):
    def stop(self, container: str, grace_s: float) -> None:
        self.good.stop(container, 0)


class StopPretends(Saboteur):
    def stop(self, container: str, grace_s: float) -> None:
        if grace_s:
            return
        self.good.stop(container, 0)


class RemovePretends(Saboteur):
    def remove(self, container: str) -> None:
        pass


class StateIsAlwaysRunning(Saboteur):
    def state(self, container: str) -> State:
        return State.RUNNING


class SandboxIsNeverReady(Saboteur):
    def sandbox_ready(self, sandbox: str) -> bool:
        return False


class SandboxGoesDownWithItsContainer(Saboteur):
    def exit_code(self, container: str) -> int | None:
        code = self.good.exit_code(container)
        for sandbox in self.down:
            self.good.stop_sandbox(sandbox)
        return code  # type: ignore[no-any-return]

    @property
    def down(self) -> list[str]:
        return list(self.__dict__.setdefault("pods", []))

    def run_sandbox(self, name: str, network: Network) -> str:
        sandbox = str(self.good.run_sandbox(name, network))
        self.__dict__.setdefault("pods", []).append(sandbox)
        return sandbox


class StopSandboxPretends(Saboteur):
    def stop_sandbox(self, sandbox: str) -> None:
        pass


class StopSandboxOnlyOnce(Saboteur):
    def stop_sandbox(self, sandbox: str) -> None:
        if not self.good.sandbox_ready(sandbox):
            raise Refused("already stopped")
        self.good.stop_sandbox(sandbox)


class RemoveSandboxPretends(Saboteur):
    def remove_sandbox(self, sandbox: str) -> None:
        pass


class RemoveSandboxOnlyOnce(Saboteur):
    def remove_sandbox(self, sandbox: str) -> None:
        if not self.good.sandbox_exists(sandbox):
            raise NotFound(sandbox)
        self.good.remove_sandbox(sandbox)


class NothingIsRefused(Saboteur):
    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.good, name)
        if name not in ("start", "exec", "pause", "resume", "stop", "remove"):
            return verb

        def shrug(*words: Any) -> Any:
            try:
                return verb(*words)
            except RuntimeRefusal:
                return None

        return shrug


class RemovalIsNotIdempotent(Saboteur):
    def remove(self, container: str) -> None:
        if self.good.state(container) is State.ABSENT:
            raise NotFound(container)
        self.good.remove(container)


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A lie, and the tests that must catch it."""

    client: Callable[[Client], Saboteur]
    caught_by: tuple[str, ...]


SABOTAGES: dict[str, Sabotage] = {
    sabotage.client.__name__: sabotage  # type: ignore[attr-defined]
    for sabotage in (
        Sabotage(PullPretends, ("test_pull_brings_the_image",)),
        Sabotage(PullFindsEverything, ("test_pull_of_an_unknown_image_is_not_found",)),
        Sabotage(PullGivesAnotherEachTime, ("test_pull_again_changes_nothing",)),
        Sabotage(PullCallsTheUnreachableMissing, ("test_pull_from_an_unreachable_registry_says_so",)),
        Sabotage(RemoveImagePretends, ("test_remove_image",)),
        Sabotage(RemoveImageOnlyOnce, ("test_remove_image_twice",)),
        Sabotage(CreateStarts, ("test_create_starts_nothing",)),
        Sabotage(CreateForgetsTheEnvironment, ("test_environment_reaches_the_program",)),
        Sabotage(CreateTakesAnyImage, ("test_create_from_an_unknown_image_is_refused",)),
        Sabotage(CreateTakesAnySandbox, ("test_create_in_an_unknown_sandbox_is_refused",)),
        Sabotage(StartPretends, ("test_start_runs_the_program",)),
        Sabotage(StartHidesItsFailure, ("test_start_of_a_missing_program_is_an_error",)),
        Sabotage(EveryExitStatusIsZero, ("test_exit_status_is_kept", "test_stop_kills_after_the_grace")),
        Sabotage(EveryExitStatusIsOne, ("test_stop_asks_with_sigterm",)),
        Sabotage(NetworksAreSwapped, ("test_host_network_is_the_engines", "test_bridge_network_is_the_containers_own")),
        Sabotage(ExecMixesItsStreams, ("test_exec_tells_stdout_from_stderr",)),
        Sabotage(ExecAlwaysSucceeds, ("test_exec_gives_the_commands_status", "test_exec_of_a_missing_command")),
        Sabotage(ExecCutsItsOutput, ("test_exec_passes_every_byte",)),
        Sabotage(ExecForgetsTheEnvironment, ("test_exec_runs_in_the_container",)),
        Sabotage(PausePretends, ("test_pause_freezes_every_process", "test_nothing_happens_while_paused")),
        Sabotage(ResumePretends, ("test_resume_thaws_every_process",)),
        Sabotage(LogsMixTheirStreams, ("test_logs_tell_stdout_from_stderr",)),
        Sabotage(LogsLoseALine, ("test_logs_lose_no_line_and_keep_their_order",)),
        Sabotage(LogsAreShuffled, ("test_logs_lose_no_line_and_keep_their_order",)),
        Sabotage(LogsAreCut, ("test_logs_keep_long_and_unfinished_lines",)),
        Sabotage(LogsStandStillInTime, ("test_logs_have_the_time_of_each_line",)),
        Sabotage(StopKillsAtOnce, ("test_stop_asks_with_sigterm", "test_stop_kills_after_the_grace")),
        Sabotage(StopPretends, ("test_stop_asks_with_sigterm", "test_stop_kills_after_the_grace")),
        Sabotage(RemovePretends, ("test_remove_leaves_nothing",)),
        Sabotage(StateIsAlwaysRunning, ("test_create_starts_nothing", "test_remove_leaves_nothing")),
        Sabotage(SandboxIsNeverReady, ("test_sandbox_is_ready",)),
        Sabotage(SandboxGoesDownWithItsContainer, ("test_failed_container_is_started_again",)),
        Sabotage(StopSandboxPretends, ("test_stop_sandbox_ends_its_containers",)),
        Sabotage(StopSandboxOnlyOnce, ("test_stop_sandbox_twice",)),
        Sabotage(RemoveSandboxPretends, ("test_remove_sandbox_leaves_nothing",)),
        Sabotage(RemoveSandboxOnlyOnce, ("test_remove_sandbox_twice",)),
        Sabotage(NothingIsRefused, ("test_move",)),
        Sabotage(RemovalIsNotIdempotent, ("test_remove_twice",)),
    )
}


def pytest_configure(config: pytest.Config) -> None:
    """Put the saboteur between the suite and its client."""
    lie = SABOTAGES[os.environ[SABOTAGE]].client
    honest = trial_module.open_client

    @contextlib.contextmanager
    def open_client(*words: Any) -> Iterator[Any]:
        with honest(*words) as client:
            yield lie(client)

    trial_module.open_client = open_client  # type: ignore[assignment]
    trial_module.PATIENCE_S = 10.0  # a lie does not come true with time
