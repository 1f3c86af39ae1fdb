"""The Docker Engine API over its socket, by the ``docker`` package's low-level client. The only importer of docker."""

from __future__ import annotations

import math
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import requests
import urllib3
from docker.utils import parse_repository_tag

from harness.client.crilog import parse_time_ns
from harness.client.refusals import DOCKER_WORDS, by_status
from harness.client.verbs import Site
from harness.clock import SYSTEM_CLOCK
from harness.errors import CallTimeout, NotFound, Refused, Unreachable
from harness.model.container import ContainerSpec, ExecResult, LogLine, Network, Stream, Tally
from harness.model.lifecycle import Contract, Operation, State

T = TypeVar("T")

CALL_TIMEOUT_S = 60
_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}
_STATES = {
    "created": State.CREATED,
    "initialized": State.CREATED,
    "running": State.RUNNING,
    "restarting": State.RUNNING,
    "stopping": State.RUNNING,
    "paused": State.PAUSED,
    "stopped": State.STOPPED,
    "exited": State.STOPPED,
    "dead": State.STOPPED,
}
"""Docker's words, and those which only podman has: initialized, stopping, stopped."""


class DockerSdk:
    """`Client` of dockerd, and of podman's service where that speaks the same."""

    contract = Contract.DOCKER

    def __init__(self, site: Site) -> None:
        """Connect, and agree on a version of the API. Raises `Unreachable`."""
        if site.socket is None:
            raise ValueError("a Docker client needs a socket")
        self.tally = Tally()
        self._site = site
        _knock(site.socket)
        try:
            self._api = docker.APIClient(
                base_url=f"unix://{site.socket}", version="auto", timeout=CALL_TIMEOUT_S, use_ssh_client=False
            )
        except docker.errors.DockerException as error:
            raise Unreachable(f"nothing answers at {site.socket}: {error}") from error

    def via(self, operation: Operation) -> str:
        return ""

    def version(self) -> str:
        told = self._call("version", self._api.version)
        components = told.get("Components") or [{"Name": "docker"}]
        name = {"Engine": "docker", "Podman Engine": "podman"}.get(components[0]["Name"], components[0]["Name"])
        return f"{name} {told['Version']}"

    def pull(self, image: str) -> str:
        """The digest that the registry told, from the progress that the engine reports; errors come in there, too.

        podman reports none: then it is the image's id.
        """
        repository, tag = parse_repository_tag(image)
        digest = ""
        for event in self._call("pull", lambda: list(self._api.pull(repository, tag=tag, stream=True, decode=True))):
            if "error" in event:
                raise by_status("200", str(event["error"]), DOCKER_WORDS)
            if found := re.match(r"Digest: (sha256:[0-9a-f]{64})", str(event.get("status", ""))):
                digest = found[1]
        return digest or str(self._image(image)["Id"])

    def has_image(self, image: str) -> bool:
        try:
            self._image(image)
        except NotFound:
            return False
        return True

    def remove_image(self, image: str) -> None:
        self._call("remove_image", lambda: self._api.remove_image(image))

    def run_sandbox(self, name: str, network: Network) -> str:
        raise Refused("the Engine API has no pods")

    def sandbox_ready(self, sandbox: str) -> bool:
        return False

    def sandbox_exists(self, sandbox: str) -> bool:
        return False

    def stop_sandbox(self, sandbox: str) -> None:
        raise Refused("the Engine API has no pods")

    def remove_sandbox(self, sandbox: str) -> None:
        raise Refused("the Engine API has no pods")

    def create(self, spec: ContainerSpec) -> str:
        host: dict[str, Any] = {"network_mode": "host" if spec.network is Network.HOST else "bridge"}
        if self._site.cgroup_parent:
            host["cgroup_parent"] = self._site.cgroup_parent
        if self._site.handler:
            host["runtime"] = self._site.handler
        answer = self._call(
            "create_container",
            lambda: self._api.create_container(
                spec.image,
                entrypoint=[spec.argv[0]],
                command=list(spec.argv[1:]),
                name=spec.name,
                environment=[f"{key}={value}" for key, value in (*spec.env, ("SEATRIAL_ID", spec.name))],
                host_config=self._api.create_host_config(**host),
            ),
        )
        return str(answer["Id"])

    def start(self, container: str) -> None:
        self._call("start", lambda: self._api.start(container))

    def exec(self, container: str, argv: Sequence[str], timeout_s: float = 10) -> ExecResult:
        """Three calls: create, start, inspect.

        The second bypasses the package's own ``exec_start``, which takes over the connection (and loses what was read with
        the headers), and knows no time limit.
        """
        created = self._call("exec_create", lambda: self._api.exec_create(container, list(argv)))
        path = f"/exec/{created['Id']}/start"
        output = self._call("exec_start", lambda: self._stream("POST", path, timeout_s, json={"Detach": False}))
        told = self._call("exec_inspect", lambda: self._api.exec_inspect(created["Id"]))
        parts = list(parse_frames(output))
        out, err = (b"".join(data for of, data in parts if of is stream) for stream in Stream)
        return ExecResult(out, err, int(told["ExitCode"]))

    def pause(self, container: str) -> None:
        self._call("pause", lambda: self._api.pause(container))

    def resume(self, container: str) -> None:
        self._call("unpause", lambda: self._api.unpause(container))

    def logs(self, container: str) -> list[LogLine]:
        """In the order in which the engine wrote them down. The package would not tell the two streams apart."""
        asked = {"stdout": 1, "stderr": 1, "timestamps": 1}
        path = f"/containers/{container}/logs"
        output = self._call("logs", lambda: self._stream("GET", path, CALL_TIMEOUT_S, params=asked))
        return list(parse_docker_log(output))

    def state(self, container: str) -> State:
        try:
            status = self._inspect(container)["Status"]
        except NotFound:
            return State.ABSENT
        if status not in _STATES:
            raise Refused(f"the engine reports the status {status!r} of {container}")
        return _STATES[status]

    def exit_code(self, container: str) -> int | None:
        told = self._inspect(container)
        return int(told["ExitCode"]) if _STATES.get(told["Status"]) is State.STOPPED else None

    def stop(self, container: str, grace_s: float) -> None:
        self._call("stop", lambda: self._api.stop(container, timeout=math.ceil(grace_s)))

    def remove(self, container: str) -> None:
        self._call("remove_container", lambda: self._api.remove_container(container, v=True))

    def close(self) -> None:
        self._api.close()

    def _stream(self, method: str, path: str, timeout_s: float, **request: Any) -> bytes:
        """The whole body of an answer, which has to end within `timeout_s`."""
        url = f"{self._api.base_url}/v{self._api.api_version}{path}"
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(timeout_s * 1e9)
        with self._api.request(method, url, stream=True, timeout=timeout_s, **request) as answer:
            if answer.status_code >= 400:
                raise by_status(str(answer.status_code), _message(answer), DOCKER_WORDS)
            output = bytearray()
            while chunk := answer.raw.read1(1 << 20):
                output += chunk
                if SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
                    raise CallTimeout(f"{path}: no end within {timeout_s:g} s", "timeout")
        return bytes(output)

    def _image(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call(
            "inspect_image",
            lambda: self._api.inspect_image(image),  # type: ignore[no-untyped-call]
        )
        return found

    def _inspect(self, container: str) -> dict[str, Any]:
        state: dict[str, Any] = self._call("inspect_container", lambda: self._api.inspect_container(container))["State"]
        return state

    def _call(self, name: str, call: Callable[[], T]) -> T:
        self.tally.rpcs += 1
        self.tally.by_call[name] = self.tally.by_call.get(name, 0) + 1
        try:
            return call()
        except docker.errors.APIError as error:
            raise by_status(str(error.status_code or ""), str(error.explanation or error), DOCKER_WORDS) from error
        except (requests.exceptions.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
            raise CallTimeout(f"{name}: {error}", "timeout") from error
        except (requests.exceptions.ConnectionError, urllib3.exceptions.ProtocolError) as error:
            raise Unreachable(f"{name}: {error}", "connection") from error


def parse_frames(output: bytes) -> Iterator[tuple[Stream, bytes]]:
    """The parts of a multiplexed stream (Engine API, "Attach to a container", "Stream format").

    Raises `ValueError` where it ends in the middle of a frame, or a frame is of no known stream.
    """
    at = 0
    while at < len(output):
        if at + 8 > len(output):
            raise ValueError("the stream ends in the middle of a frame's header")
        number, length = struct.unpack_from(">BxxxI", output, at)
        if number not in _STREAMS or at + 8 + length > len(output):
            raise ValueError(
                f"no frame of a multiplexed stream: {output[at : at + 8]!r} with {len(output) - at} bytes left"
            )
        yield _STREAMS[number], output[at + 8 : at + 8 + length]
        at += 8 + length


def parse_docker_log(output: bytes) -> Iterator[LogLine]:
    """The lines of a log with times. Each frame is one record: a time, a space, and a line or a part of a long one.

    A line in parts has the time of its first one. Raises `ValueError`.
    """
    begun: dict[Stream, tuple[int, bytes]] = {}
    for stream, record in parse_frames(output):
        time, _, text = record.partition(b" ")
        at_ns, before = begun.pop(stream) if stream in begun else (parse_time_ns(time.decode()), b"")
        if text.endswith(b"\n"):
            yield LogLine(stream, (before + text[:-1]).decode(errors="replace"), at_ns)
        else:
            begun[stream] = at_ns, before + text
    for stream, (at_ns, text) in begun.items():
        yield LogLine(stream, text.decode(errors="replace"), at_ns)


def _knock(path: Path) -> None:
    """See whether somebody listens: the package leaves its socket open where nobody does. Raises `Unreachable`."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(path))
        except OSError as error:
            raise Unreachable(f"nothing answers at {path}: {error.strerror}", "connection") from error


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text
