"""A command line tool that a client drives, and its native sibling that pauses what an interface cannot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.client.refusals import COMMAND_WORDS, by_words
from harness.command import Completed, Group, Runner
from harness.errors import CallTimeout, CommandTimeout, MachineError, Refused, RuntimeRefusal
from harness.model.container import Tally

Refusal = Callable[[Completed], RuntimeRefusal]
CALL_TIMEOUT_S = 60.0
SEARCHED = "/usr/local/bin:/usr/sbin:/sbin"
"""Where programs are looked for besides PATH."""


class Tool:
    """Runs one program with the same first words again and again, and counts that."""

    def __init__(
        self,
        runner: Runner,
        prefix: tuple[str, ...],
        tally: Tally,
        refusal: Refusal,
        group: Group = Group.CLIENT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`refusal` turns a command that failed into the error to raise; `env` replaces the environment."""
        self.prefix = prefix
        self.refusal = refusal
        self._runner, self._tally, self._group, self._env = runner, tally, group, env

    def run(self, *words: str, timeout_s: float = CALL_TIMEOUT_S, call: str = "") -> Completed:
        """Run the tool with `words` added. Raises what `refusal` makes of a failure, and `CallTimeout`."""
        done = self.attempt(*words, timeout_s=timeout_s, call=call)
        if done.status:
            raise self.refusal(done)
        return done

    def attempt(
        self,
        *words: str,
        timeout_s: float = CALL_TIMEOUT_S,
        call: str = "",
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> Completed:
        """The same, but a failure is the caller's to judge. Raises `CallTimeout`.

        `call` is the name by which the tally counts, by default the first of `words`.
        """
        call = call or words[0]
        self._tally.execs += 1
        self._tally.by_call[call] = self._tally.by_call.get(call, 0) + 1
        try:
            return self._runner.run(
                (*self.prefix, *words),
                timeout_s=timeout_s,
                group=self._group,
                env=self._env,
                stdout_fd=stdout_fd,
                stderr_fd=stderr_fd,
            )
        except CommandTimeout as error:
            raise CallTimeout(str(error), "timeout") from error


class NativeTool:
    """Pauses and resumes where a client's interface has no such call (CRI): by the engine's own command line."""

    def __init__(self, runner: Runner, native: Mapping[str, tuple[str, ...]], tally: Tally) -> None:
        self._tools = {verb: Tool(runner, prefix, tally, by_stderr) for verb, prefix in native.items()}

    @property
    def name(self) -> str:
        """What a record calls it; "" where there is none."""
        return next((program_of(tool.prefix) for tool in self._tools.values()), "")

    def run(self, verb: str, container: str) -> None:
        """Raises `Refused` where the engine has no such tool."""
        tool = self._tools.get(verb)
        if tool is None:
            raise Refused(f"the interface has no {verb}, and no tool of the engine is known that does it")
        tool.run(container, call=verb)


def find_tool(name: str) -> str:
    """The path of a client's program. Raises `MachineError`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SEARCHED}")
    if found is None:
        raise MachineError(f"{name} is not on PATH", f"seatrial setup {name}")
    return found


def by_stderr(done: Completed) -> RuntimeRefusal:
    """The refusal that the last words of a failed command are, with its exit status as the code."""
    text = done.stderr.decode(errors="replace").strip()
    return by_words(text, COMMAND_WORDS)(text, str(done.status))


def program_of(prefix: tuple[str, ...]) -> str:
    """The name of the program that an argv starts; for ``python -m package.module`` the module's last part."""
    if len(prefix) > 2 and "-m" in prefix[1:-1]:
        return prefix[prefix.index("-m") + 1].rpartition(".")[2]
    return Path(prefix[0]).name
