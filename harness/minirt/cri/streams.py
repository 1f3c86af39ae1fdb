"""Exec, Attach and PortForward: who asks is promised a stream, and gets its URL."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from harness.minirt.cri.containers import Containers
from harness.minirt.cri.pods import Pods
from harness.minirt.errors import InvalidArgument, WrongState
from harness.minirt.streaming.server import StreamingServer
from harness.minirt.supervisor.client import Supervisor


def exec_process(process: Mapping[str, Any], words: Sequence[str], tty: bool) -> dict[str, Any]:
    """A command beside a container's own process, whose ``process`` is given. Raises `InvalidArgument`."""
    if not words or not words[0]:
        raise InvalidArgument("a command is needed")
    if any("\0" in word for word in words):
        raise InvalidArgument("the command holds a NUL character")
    env = [*process.get("env", ()), *(["TERM=xterm"] if tty else [])]
    return {**process, "args": list(words), "env": env, "terminal": tty}


class Streams:
    """What the calls that answer a URL do. Modules of streams are loaded with the first of them."""

    def __init__(self, pods: Pods, containers: Containers, supervisor: Supervisor, server: StreamingServer) -> None:
        self._pods = pods
        self._containers = containers
        self._supervisor = supervisor
        self._server = server

    def exec(self, request: Any) -> str:
        """The URL of a command in a running container. Raises `NotFound`, `WrongState`, `InvalidArgument`."""
        from harness.minirt.streaming.process import executing
        from harness.minirt.streaming.session import Command

        container = self._containers.running(request.container_id)
        streams = _check(request)
        process = exec_process(self._containers.process(container), request.cmd, request.tty)
        begin = functools.partial(executing, self._supervisor, container.id, process, streams)
        return self._server.promise(Command("exec", streams, begin, "error executing command in container", True))

    def attach(self, request: Any) -> str:
        """The URL of a running container's own streams. Raises as `exec` does."""
        from harness.minirt.streaming.process import attached
        from harness.minirt.streaming.session import Command

        container = self._containers.running(request.container_id)
        streams = _check(request)
        config = container.config
        begin = functools.partial(
            attached, self._supervisor, container.id, streams, takes_input=config.stdin, once=config.stdin_once
        )
        return self._server.promise(Command("attach", streams, begin, "error attaching to container", False))

    def port_forward(self, request: Any) -> str:
        """The URL of connections to ports on a pod's localhost. Raises `NotFound`, `WrongState`."""
        from harness.minirt.streaming.session import Forward

        pod = self._pods.get(request.pod_sandbox_id)
        if not pod.ready:
            raise WrongState(f"pod sandbox {pod.id} is not ready")
        return self._server.promise(Forward(self._pods.netns(pod)))


def _check(request: Any) -> Any:
    """The streams that are asked for. Raises `InvalidArgument` as the CRI says for Exec and Attach."""
    from harness.minirt.streaming.process import Streams as Wanted

    if request.tty and request.stderr:
        raise InvalidArgument("a terminal has no stderr of its own: tty and stderr exclude each other")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("one of stdin, stdout and stderr is needed")
    return Wanted(request.stdin, request.stdout, request.stderr, request.tty)
