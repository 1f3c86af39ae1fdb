"""podman's own command line, which is the engine, too: there is no daemon that it would talk to.

So its processes go on the engine's account (`harness.engine.podman` says why). For an engine that runs already
(``podman system service``) it is a client as any other: ``podman --remote``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from harness.client.crilog import lines_of, parse_time_ns
from harness.client.refusals import DOCKER_WORDS, by_words
from harness.client.tool import Tool, find_tool
from harness.client.verbs import Site
from harness.command import Completed, Group
from harness.errors import NotFound, Refused, RuntimeRefusal
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Stream, Tally
from harness.model.lifecycle import Contract, Operation, State

SIGNED = re.compile(rb"^Error: ", re.MULTILINE)
OF_PODMAN = frozenset({125, 126, 127, 255})
"""With what ``podman exec`` ends by an error of its own; a command may end so as well, but does not sign like podman."""
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\S* ")
STOP_MARGIN_S = 60.0
_STATES = {
    "created": State.CREATED,
    "initialized": State.CREATED,
    "running": State.RUNNING,
    "stopping": State.RUNNING,
    "paused": State.PAUSED,
    "stopped": State.STOPPED,
    "exited": State.STOPPED,
}


class PodmanCli:
    """`Client` by ``podman``. It keeps to what Docker's does, which its command line is made after."""

    contract = Contract.DOCKER

    def __init__(self, site: Site) -> None:
        """Raises `MachineError` where there is no ``podman``."""
        self.tally = Tally()
        self._site = site
        if site.command:
            prefix, group = site.command, Group.ENGINE
        elif site.socket is not None:
            prefix, group = (find_tool("podman"), "--remote", "--url", f"unix://{site.socket}"), Group.CLIENT
        else:
            raise ValueError("podman needs its private command line, or a socket")
        self._tool = Tool(site.runner, prefix, self.tally, refusal, group, site.environment or None)

    def via(self, operation: Operation) -> str:
        return ""

    def version(self) -> str:
        return f"podman {self._tool.run('version', '--format', '{{.Client.Version}}').text.strip()}"

    def pull(self, image: str) -> str:
        """The image's id: what podman prints."""
        return f"sha256:{self._tool.run('pull', '--quiet', image).text.split()[-1]}"

    def has_image(self, image: str) -> bool:
        done = self._tool.attempt("image", "exists", image, call="image exists")
        if done.status not in (0, 1):
            raise refusal(done)
        return done.status == 0

    def remove_image(self, image: str) -> None:
        self._tool.run("rmi", image)

    def run_sandbox(self, name: str, network: Network) -> str:
        raise Refused("podman's pods are not those of CRI")

    def sandbox_ready(self, sandbox: str) -> bool:
        return False

    def sandbox_exists(self, sandbox: str) -> bool:
        return False

    def stop_sandbox(self, sandbox: str) -> None:
        raise Refused("podman's pods are not those of CRI")

    def remove_sandbox(self, sandbox: str) -> None:
        raise Refused("podman's pods are not those of CRI")

    def create(self, spec: ContainerSpec) -> str:
        words = [
            *("--name", spec.name, "--pull", "never"),
            *("--network", "host" if spec.network is Network.HOST else "bridge"),
            *("--entrypoint", json.dumps(spec.argv[:1])),
        ]
        if self._site.cgroup_parent:
            words += ["--cgroup-parent", self._site.cgroup_parent]
        for key, value in (*spec.env, ("SEATRIAL_ID", spec.name)):
            words += ["--env", f"{key}={value}"]
        return self._tool.run("create", *words, spec.image, *spec.argv[1:]).text.split()[-1]

    def start(self, container: str) -> None:
        self._tool.run("start", container)

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        """It ends as the command does; an error of its own is one of `OF_PODMAN`, and a line that it signs."""
        done = self._tool.attempt("exec", container, *argv, timeout_s=timeout_s)
        if done.status in OF_PODMAN and SIGNED.search(done.stderr):
            raise refusal(done)
        return ExecResult(done.stdout, done.stderr, done.status)

    def pause(self, container: str) -> None:
        self._tool.run("pause", container)

    def resume(self, container: str) -> None:
        self._tool.run("unpause", container)

    def logs(self, container: str) -> list[LogLine]:
        """In the order of their times: the two streams come apart, on podman's own stdout and stderr.

        A long line was written down in parts, and is printed with a time before each of them, in the midst of the line.
        Times that the container printed itself look the same: so the texts are then asked for again, without times.
        """
        done = self._tool.run("logs", "--timestamps", container)
        rows = {stream: parse_podman_log(stream, getattr(done, stream)) for stream in Stream}
        if any(STAMP.search(line.text) for lines in rows.values() for line in lines):
            plain = self._tool.run("logs", container)
            for stream, lines in rows.items():
                texts = lines_of(getattr(plain, stream))
                rows[stream] = [replace(line, text=text) for line, text in zip(lines, texts, strict=False)]
        return sorted((line for lines in rows.values() for line in lines), key=lambda line: line.at_ns or 0)

    def state(self, container: str) -> State:
        try:
            status = self._inspect(container, "{{.State.Status}}")
        except NotFound:
            return State.ABSENT
        if status not in _STATES:
            raise Refused(f"podman reports the status {status!r} of {container}")
        return _STATES[status]

    def exit_code(self, container: str) -> int | None:
        status, code = self._inspect(container, "{{.State.Status}} {{.State.ExitCode}}").split()
        return int(code) if _STATES.get(status) is State.STOPPED else None

    def stop(self, container: str, grace_s: float) -> None:
        self._tool.run("stop", "--time", str(math.ceil(grace_s)), container, timeout_s=grace_s + STOP_MARGIN_S)

    def remove(self, container: str) -> None:
        self._tool.run("rm", "--volumes", container)

    def close(self) -> None:
        pass

    def _inspect(self, container: str, form: str) -> str:
        words = ("container", "inspect", "--format", form, container)
        return self._tool.run(*words, call="container inspect").text.strip()


def refusal(done: Completed) -> RuntimeRefusal:
    """The refusal that a failed command is: what podman signs, without the warnings around it."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    signed = next((index for index, line in enumerate(lines) if line.startswith("Error: ")), 0)
    text = "\n".join(lines[signed:])
    return by_words(text, DOCKER_WORDS)(text, str(done.status))


def parse_podman_log(stream: Stream, output: bytes) -> list[LogLine]:
    """The lines of ``podman logs --timestamps``: a time, a space, and what was printed. Raises `ValueError`."""
    lines = []
    for row in lines_of(output):
        time, _, text = row.partition(" ")
        lines.append(LogLine(stream, text, parse_time_ns(time)))
    return lines
