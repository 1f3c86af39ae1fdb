"""containerd, with its CRI plugin, and ``ctr`` as its native tool."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tomli_w

from harness.arena import Arena
from harness.command import Group, HostRunner
from harness.engine.daemon import daemon, environment, listens, tail
from harness.engine.engine import Need, Row, RunningEngine
from harness.engine.handlers import OWN, Handler, require_handler
from harness.engine.network import write_network
from harness.engine.programs import find_program, version_of
from harness.errors import CommandTimeout, EngineError, MachineError
from harness.linux import capabilities
from harness.model.subject import Subject

PAUSE = "seatrial/pause:1"
CRI = "io.containerd.grpc.v1.cri"
RUNC_SHIM = "io.containerd.runc.v2"
ALWAYS = ("runc", "crun")
"""Handlers configured besides the subject's own, where they are installed."""
SERVING = "Start streaming server"
"""The last thing that the CRI plugin logs before it answers. Until then its calls fail, though the socket is open."""
PATIENCE_ROUNDS = 40


class Containerd:
    """`harness.engine.Engine` for containerd 1.6 and later."""

    row = Row(
        "containerd",
        needs=(Need("containerd", "seatrial setup containerd"), Need("ctr", "seatrial setup containerd")),
        options=frozenset({"args", "snapshotter", "log_level"}),
        versioned=MappingProxyType({"containerd": "containerd"}),
    )

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena, self._registry = subject, arena, registry
        self._socket = arena.state / "containerd.sock"
        self._rounds = 0

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        return ""

    @contextlib.contextmanager
    def start(self) -> Iterator[RunningEngine]:
        handler = require_handler(self._subject)
        program = _require("containerd")
        config = self._arena.state / "containerd.toml"
        config.write_text(tomli_w.dumps(self.config(handler)))
        argv = [str(program), "--config", str(config), *shlex.split(self._subject.options.get("args", ""))]
        given = handler.name if self._subject.client != "ctr" else str(handler.program)
        env = environment(self._arena)
        if self._subject.client == "ctr" and handler.name not in ("runc", OWN) and not chooses_runtime():
            # The shim of a client that can name no runtime runs what is called runc on its PATH.
            stand_in = self._arena.state / "bin"
            stand_in.mkdir()
            (stand_in / "runc").symlink_to(handler.program)
            env["PATH"] = f"{stand_in}{os.pathsep}{env['PATH']}"
            given = ""
        with daemon(self._arena, "containerd", argv, self._answers, env) as (process, log):
            yield RunningEngine(
                name="containerd",
                version=version_of(program),
                socket=self._socket,
                pids=(process.pid,),
                log=log,
                native=native(self._socket),
                handler=given,
                cgroup_parent=self._arena.cgroups.pods,
                cgroup=self._arena.cgroups.engine,
            )

    def config(self, handler: Handler) -> dict[str, Any]:
        """What goes into containerd's file, in version 2 of its format (which 2.x reads too)."""
        arena, options = self._arena, self._subject.options
        plugins = write_network(arena, arena.state / "cni")
        runtimes = {name: found for name in ALWAYS if (found := find_program(name))} | {handler.name: handler.program}
        return {
            "version": 2,
            "root": str(arena.root / "containerd"),
            "state": str(arena.state / "containerd"),
            "grpc": {"address": str(self._socket)},
            "debug": {"address": str(arena.state / "debug.sock"), "level": options.get("log_level", "info")},
            "plugins": {
                "io.containerd.internal.v1.opt": {"path": str(arena.root / "opt")},
                CRI: {
                    "sandbox_image": f"{self._registry}/{PAUSE}",
                    # Lowering a score needs the capability; without it every pod would fail.
                    "restrict_oom_score_adj": not capabilities.has("CAP_SYS_RESOURCE"),
                    "netns_mounts_under_state_dir": True,
                    "stream_server_address": "127.0.0.1",
                    "stream_server_port": "0",
                    "cni": {"bin_dir": str(plugins), "conf_dir": str(arena.state / "cni")},
                    "containerd": {
                        "snapshotter": options.get("snapshotter", "overlayfs"),
                        "default_runtime_name": handler.name,
                        "runtimes": {name: _runtime(program) for name, program in runtimes.items()},
                    },
                },
            },
        }

    def _answers(self) -> bool:
        if not listens(self._socket):
            return False
        ctr = [str(_require("ctr")), "--address", str(self._socket), "--connect-timeout", "2s"]
        try:
            listed = self._arena.run(
                [*ctr, "plugins", "list"], timeout_s=10, group=Group.HARNESS, env=environment(self._arena)
            )
        except CommandTimeout:
            return False
        if listed.status:
            return False
        log = self._arena.logs / "containerd.log"
        for line in listed.text.splitlines():
            words = line.split()
            if words[1:2] == ["cri"] and words[-1] == "error":
                raise EngineError("containerd", "its CRI plugin did not load", tail(log))
        # A version that words its log otherwise has had time enough to get there after some rounds.
        self._rounds += 1
        return SERVING in log.read_text(errors="replace") or self._rounds > PATIENCE_ROUNDS


def native(address: Path) -> Mapping[str, tuple[str, ...]]:
    """What pauses and resumes CRI containers of the containerd at `address`; empty without ``ctr``."""
    tool = find_program("ctr")
    if tool is None:
        return MappingProxyType({})
    words = (str(tool), "--address", str(address), "--namespace", "k8s.io", "tasks")
    return MappingProxyType({"pause": (*words, "pause"), "resume": (*words, "resume")})


def chooses_runtime() -> bool:
    """Whether ``ctr containers create`` takes the path of an OCI runtime; only later ones do."""
    usage = HostRunner().run([str(_require("ctr")), "containers", "create", "--help"], timeout_s=10)
    return "--runc-binary" in usage.text


def _runtime(program: Path) -> dict[str, Any]:
    if program.name == "runsc":
        return {"runtime_type": "io.containerd.runsc.v1"}
    return {"runtime_type": RUNC_SHIM, "options": {"BinaryName": str(program), "SystemdCgroup": False}}


def _require(name: str) -> Path:
    program = find_program(name)
    if program is None:
        raise MachineError(f"{name} is not on PATH", "seatrial setup containerd")
    return program
