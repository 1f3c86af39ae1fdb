"""The CRI by ``crictl``, as a person at a node speaks it. Each verb is one command, with its start and its connections.

Configurations go through files in the workspace, answers come as JSON; no configuration file of the machine is read.
crictl says less than the interface, and asks before it acts; where that changes what a verb means it is said there.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.client.cri_config import container_config, sandbox_config
from harness.client.cri_door_crictl import CrictlDoor
from harness.client.crilog import parse_time_ns
from harness.client.refusals import CRI_WORDS, by_code, by_words
from harness.client.tool import NativeTool, Tool, find_tool
from harness.client.verbs import Site
from harness.command import Completed
from harness.errors import NotFound, Refused, RuntimeRefusal
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Stream, Tally
from harness.model.lifecycle import Contract, Operation, State

CALL_TIMEOUT_S = 60
_STATES = {
    "CONTAINER_CREATED": State.CREATED,
    "CONTAINER_RUNNING": State.RUNNING,
    "CONTAINER_EXITED": State.STOPPED,
}
_RPC_CODE = re.compile(r"rpc error: code = (\w+) desc = ")
_SAID = re.compile(r'^time="[^"]*" level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"', re.MULTILINE)
_ENDED = re.compile(r"command terminated with exit code (\d+)")


class Crictl:
    """`Client` by ``crictl``; `pause` and `resume` go through the engine's native tool."""

    contract = Contract.CRI

    def __init__(self, site: Site) -> None:
        """Raises `MachineError` where there is no crictl."""
        if site.socket is None:
            raise ValueError("crictl needs a socket")
        self.tally = Tally()
        self._site = site
        self._files = itertools.count(1)
        self._native = NativeTool(site.runner, site.native, self.tally)
        self._sandboxes: dict[str, tuple[Network, Path]] = {}
        address = f"unix://{site.socket}"
        prefix = (
            *(find_tool("crictl"), "--config", "/dev/null", "--timeout", f"{CALL_TIMEOUT_S}s"),
            *("--runtime-endpoint", address, "--image-endpoint", address),
        )
        self._tool = Tool(site.runner, prefix, self.tally, refusal)
        self.door = CrictlDoor(self._tool, site.workspace)

    def via(self, operation: Operation) -> str:
        return self._native.name if operation in (Operation.PAUSE, Operation.RESUME) else ""

    def version(self) -> str:
        told = dict(line.split(":", 1) for line in self._tool.run("version").text.splitlines() if ":" in line)
        return f"{told['RuntimeName'].strip()} {told['RuntimeVersion'].strip()}"

    def pull(self, image: str) -> str:
        """The reference that crictl prints: ``Image is up to date for sha256:...``."""
        return self._tool.run("pull", image, timeout_s=CALL_TIMEOUT_S * 2).text.strip().rpartition(" ")[2]

    def has_image(self, image: str) -> bool:
        try:
            self._tool.run("inspecti", "--quiet", image)
        except NotFound:
            return False
        return True

    def remove_image(self, image: str) -> None:
        self._idempotent("rmi", image)

    def run_sandbox(self, name: str, network: Network) -> str:
        logs = self._site.workspace / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        config = self._file("pod", sandbox_config(name, network, self._site.cgroup_parent, logs))
        handler = ("--runtime", self._site.handler) if self._site.handler else ()
        sandbox = self._tool.run("runp", *handler, str(config)).text.strip()
        self._sandboxes[sandbox] = network, config
        return sandbox

    def sandbox_ready(self, sandbox: str) -> bool:
        return self._sandbox_state(sandbox) == "SANDBOX_READY"

    def sandbox_exists(self, sandbox: str) -> bool:
        return bool(self._sandbox_state(sandbox))

    def stop_sandbox(self, sandbox: str) -> None:
        self._tool.run("stopp", sandbox)

    def remove_sandbox(self, sandbox: str) -> None:
        """``rmp --force``: without it crictl itself refuses for a pod that is ready, which RemovePodSandbox does not."""
        self._idempotent("rmp", "--force", sandbox)
        self._sandboxes.pop(sandbox, None)

    def create(self, spec: ContainerSpec) -> str:
        network, pod = self._sandboxes.get(spec.sandbox) or (spec.network, self._unknown_pod(spec))
        config = self._file("container", container_config(spec, network))
        return self._tool.run("create", spec.sandbox, str(config), str(pod)).text.strip()

    def start(self, container: str) -> None:
        self._tool.run("start", container)

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        """By a stream (``Exec``), as crictl does by default: its ``--sync`` puts both outputs into one.

        A command's own status comes in crictl's last words. There is no time limit in the interface: crictl is killed,
        and the command goes on.
        """
        done = self._tool.attempt("exec", container, *argv, timeout_s=timeout_s)
        if not done.status:
            return ExecResult(done.stdout, done.stderr, 0)
        said, own = split_fatal(done.stderr)
        if ended := _ENDED.search(own):
            return ExecResult(done.stdout, said, int(ended[1]))
        raise refusal(done)

    def pause(self, container: str) -> None:
        self._native.run("pause", container)

    def resume(self, container: str) -> None:
        self._native.run("resume", container)

    def logs(self, container: str) -> list[LogLine]:
        """Crictl reads the file and prints each stream on its own: merged by the times that it is asked to add."""
        done = self._tool.run("logs", "--timestamps", container)
        lines = [
            *parse_timed(Stream.STDOUT, done.stdout),
            *parse_timed(Stream.STDERR, done.stderr),
        ]
        return sorted(lines, key=lambda line: line.at_ns or 0)

    def state(self, container: str) -> State:
        try:
            status = self._status(container)["state"]
        except NotFound:
            return State.ABSENT
        if status not in _STATES:
            raise Refused(f"the runtime reports the state {status} of {container}")
        return _STATES[status]

    def list_containers(self) -> list[str]:
        return self._tool.run("ps", "--all", "--quiet", "--no-trunc").stdout.decode().split()

    def exit_code(self, container: str) -> int | None:
        status = self._status(container)
        return int(status.get("exitCode", 0)) if status["state"] == "CONTAINER_EXITED" else None

    def stop(self, container: str, grace_s: float) -> None:
        self._tool.run("stop", "--timeout", str(math.ceil(grace_s)), container, timeout_s=grace_s + CALL_TIMEOUT_S)

    def remove(self, container: str) -> None:
        """``rm --force``: without it crictl itself refuses for one that runs, which RemoveContainer does not."""
        self._idempotent("rm", "--force", container)

    def close(self) -> None:
        pass

    def _idempotent(self, *words: str) -> None:
        """A removal, which by the CRI may not complain of what is gone already.

        crictl asks for the status first and complains by itself, and then never makes the call that may not. Only what
        that call answers ("removing ...") is the runtime's own.
        """
        try:
            self._tool.run(*words)
        except NotFound as error:
            if "removing" in str(error):
                raise

    def _status(self, container: str) -> dict[str, Any]:
        status: dict[str, Any] = self._json("inspect", "--output", "json", container)["status"]
        return status

    def _sandbox_state(self, sandbox: str) -> str:
        try:
            return str(self._json("inspectp", "--output", "json", sandbox)["status"]["state"])
        except NotFound:
            return ""

    def _json(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._tool.run(*words).stdout)
        return answer

    def _unknown_pod(self, spec: ContainerSpec) -> Path:
        """A configuration to send along for a pod that was not made here; crictl itself insists on one with a name."""
        return self._file(
            "pod", sandbox_config("unknown", spec.network, self._site.cgroup_parent, self._site.workspace)
        )

    def _file(self, stem: str, config: dict[str, Any]) -> Path:
        path = self._site.workspace / f"{stem}-{next(self._files)}.json"
        path.write_text(json.dumps(config))
        return path


def refusal(done: Completed) -> RuntimeRefusal:
    """The error that a failed command is: by the gRPC status in its text, where there is one."""
    text = done.stderr.decode(errors="replace").strip()
    words = message_of(text)
    if found := _RPC_CODE.search(text):
        return by_code(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found[1]).upper(), words)
    return by_words(words, CRI_WORDS)(words, str(done.status))


def message_of(stderr: str) -> str:
    """What crictl says, out of its log lines (``time=... level=fatal msg="..."``); all of it where it logged nothing."""
    said = [re.sub(r"\\(.)", r"\1", found) for found in _SAID.findall(stderr)]
    return "; ".join(said) or stderr


def split_fatal(stderr: bytes) -> tuple[bytes, str]:
    """What a command wrote to stderr, and the line that crictl added as its last."""
    start = stderr.rfind(b'time="') if b"level=fatal" in stderr else len(stderr)
    return stderr[:start], stderr[start:].decode(errors="replace").rstrip("\n")


def parse_timed(stream: Stream, output: bytes) -> list[LogLine]:
    """Lines of which each begins with an RFC 3339 time and a space."""
    rows = output.decode(errors="replace").split("\n")
    lines = []
    for row in rows if rows[-1] else rows[:-1]:
        time, _, text = row.partition(" ")
        lines.append(LogLine(stream, text, parse_time_ns(time)))
    return lines
