"""dockerd, with a containerd child of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from harness.arena import Arena
from harness.command import HostRunner
from harness.engine.daemon import daemon
from harness.engine.engine import Need, Row, RunningEngine
from harness.engine.handlers import Handler, require_handler
from harness.engine.programs import find_program, version_of
from harness.errors import MachineError
from harness.linux import capabilities
from harness.model.subject import Subject

BUILT_IN_RUNTIMES = ("runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux")


class Docker:
    """`harness.engine.Engine` for Docker 20.10 and later."""

    row = Row(
        "docker",
        needs=(
            Need("dockerd", "seatrial setup docker"),
            Need("containerd", "seatrial setup containerd"),
            Need("runc", "seatrial setup runc"),
            Need("iptables", "seatrial setup iptables"),
        ),
        options=frozenset({"args", "storage_driver", "log_level"}),
        versioned=MappingProxyType({"docker": "dockerd", "containerd": "containerd"}),
    )

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena = subject, arena
        self._socket = arena.state / "docker.sock"

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        return ""

    @contextlib.contextmanager
    def start(self) -> Iterator[RunningEngine]:
        handler = require_handler(self._subject)
        program = find_program("dockerd")
        if program is None:
            raise MachineError("dockerd is not on PATH", "seatrial setup docker")
        with daemon(self._arena, "dockerd", self.argv(program, handler), lambda: ping(self._socket)) as (process, log):
            yield RunningEngine(
                name="docker",
                version=version_of(program),
                socket=self._socket,
                pids=(process.pid,),
                log=log,
                native=MappingProxyType({}),
                handler=handler.name,
                cgroup_parent=self._arena.cgroups.pods,
                cgroup=self._arena.cgroups.engine,
            )

    def argv(self, program: Path, handler: Handler) -> list[str]:
        """The command line, which settles all that ``/etc/docker/daemon.json`` could."""
        arena, options = self._arena, self._subject.options
        config = arena.state / "daemon.json"
        config.write_text(json.dumps({}))
        known = _known_options(program)
        words = [
            str(program),
            f"--config-file={config}",
            f"--data-root={arena.root / 'docker'}",
            f"--exec-root={arena.state / 'docker'}",
            f"--pidfile={arena.state / 'docker.pid'}",
            f"--host=unix://{self._socket}",
            "--group=root",
            f"--cgroup-parent={arena.cgroups.pods}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--storage-driver={options.get('storage_driver', 'overlay2')}",
            "--bip=172.30.0.1/16",
            f"--log-level={options.get('log_level', 'info')}",
        ]
        if handler.name not in BUILT_IN_RUNTIMES:
            words.append(f"--add-runtime={handler.name}={handler.program}")
        if "--oom-score-adjust" in known and not capabilities.has("CAP_SYS_RESOURCE"):
            words.append("--oom-score-adjust=0")
        return [*words, *shlex.split(options.get("args", ""))]


def ping(path: Path) -> bool:
    """Whether an Engine API answers at a socket (``GET /_ping``)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(5)
        try:
            link.connect(os.fspath(path))
            link.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in link.recv(64)
        except (FileNotFoundError, ConnectionError, TimeoutError):
            return False


def _known_options(program: Path) -> str:
    return HostRunner().run([str(program), "--help"], timeout_s=10).text
