"""podman: no daemon, but a command that does all the work itself, and leaves a ``conmon`` behind for each container.

Whose cost is what: ``podman`` is engine and client in one, as an OCI runtime's command line is. So the command, the
runtime, network and clean-up processes that it starts, and the conmons that stay are all on the engine's account, and
nothing is on the client's. Only its Docker-compatible API (``podman system service``) has a client apart from it.
By itself podman would put a conmon beside its container, on the account of the pods; ``cgroups = "no-conmon"`` (containers.conf(5))
keeps it in the cgroup of the command that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tomli_w

from harness.arena import Arena
from harness.clock import wait_until
from harness.command import Group
from harness.engine.daemon import START_S, STOP_S, daemon, environment, tail
from harness.engine.docker import ping
from harness.engine.engine import Need, Row, RunningEngine
from harness.engine.handlers import Handler, require_handler
from harness.engine.programs import CNI_FOLDERS, find_cni, find_program, version_of
from harness.errors import CommandTimeout, EngineError, MachineError, WaitTimeout
from harness.linux import capabilities
from harness.model.subject import Subject

FEWER = ("nofile=1024:1024", "nproc=1024:1024")
"""Limits of containers where podman's own, which are higher than the harness', cannot be had."""

RUN_ROOT = "/run/podman"
"""Of the arena, whose /run is its own. podman takes no path of more than 50 characters."""

PLUGINS = ("bridge", "portmap", "firewall", "tuning")
"""of the network that podman 4 sets up by CNI where it has no netavark"""
HELPERS = ("/usr/libexec/podman", "/usr/lib/podman", "/usr/local/libexec/podman", "/usr/local/lib/podman")


class Podman:
    """`harness.engine.Engine` for podman 4.3 and later, by its command line or (client ``sdk``) by its service."""

    row = Row(
        "podman",
        needs=(
            Need("podman", "seatrial setup podman"),
            Need("conmon", "seatrial setup podman"),
            Need("iptables", "seatrial setup iptables"),
        ),
        options=frozenset({"args", "storage_driver", "log_level"}),
        versioned=MappingProxyType({"podman": "podman", "conmon": "conmon"}),
    )

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena, self._registry = subject, arena, registry
        self._socket = arena.state / "podman.sock"
        self._driver = subject.options.get("storage_driver", "overlay")

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        if _finds_netavark() or find_cni(PLUGINS):
            return ""
        return "podman has neither netavark nor CNI plugins for its networks: seatrial setup cni"

    @contextlib.contextmanager
    def start(self) -> Iterator[RunningEngine]:
        handler = require_handler(self._subject)
        argv, env = self.argv(handler), self.environment(handler)
        log = self._arena.logs / "podman.log"
        serves = self._subject.client == "sdk"
        try:
            with contextlib.ExitStack() as stack:
                pids: tuple[int, ...] = ()
                self._prepare(argv, env, log)
                if serves:
                    service = [*argv, "system", "service", "--time=0", f"unix://{self._socket}"]
                    process, log = stack.enter_context(
                        daemon(self._arena, "podman", service, lambda: ping(self._socket), env)
                    )
                    pids = (process.pid,)
                yield RunningEngine(
                    name="podman",
                    version=version_of(Path(argv[0])),
                    socket=self._socket if serves else None,
                    pids=pids,
                    log=log,
                    native=MappingProxyType({}),
                    handler="",
                    cgroup_parent=self._arena.cgroups.pods,
                    cgroup=self._arena.cgroups.engine,
                    command=argv,
                    environment=env,
                    notes=() if serves else ("its command is the engine, too: nothing is on the client's account",),
                )
        finally:
            self._end()

    def argv(self, handler: Handler) -> tuple[str, ...]:
        """The command line up to its verb."""
        arena, options = self._arena, self._subject.options
        return (
            str(_require("podman")),
            f"--root={arena.root / 'podman'}",
            f"--runroot={RUN_ROOT}",
            f"--tmpdir={RUN_ROOT}/libpod",
            f"--network-config-dir={arena.state / 'networks'}",
            f"--storage-driver={self._driver}",
            f"--runtime={handler.program}",
            f"--conmon={_require('conmon')}",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
            f"--log-level={options.get('log_level', 'warn')}",
            *shlex.split(options.get("args", "")),
        )

    def environment(self, handler: Handler) -> Mapping[str, str]:
        """The environment that names configuration files of our own, which are written, in place of the machine's."""
        places = {"graphroot": str(self._arena.root / "podman"), "runroot": RUN_ROOT}
        registry = {"location": self._registry, "insecure": True}
        files = {
            "CONTAINERS_CONF": ("containers.conf", self.config(handler)),
            "CONTAINERS_STORAGE_CONF": ("storage.conf", {"storage": {"driver": self._driver, **places}}),
            "CONTAINERS_REGISTRIES_CONF": ("registries.conf", {"registry": [registry]}),
        }
        env = environment(self._arena)
        for variable, (name, content) in files.items():
            path = self._arena.state / name
            path.write_text(tomli_w.dumps(content))
            env[variable] = str(path)
        if find_program("nft") is None:
            # Its network tool wants that by itself, from version 1.13 on; iptables are a need of podman's row.
            env["NETAVARK_FW"] = "iptables"
        # Nothing but the home folder leads to a policy of one's own (containers-policy.json(5)).
        policy = Path(env["HOME"], ".config", "containers", "policy.json")
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        return MappingProxyType(env)

    def config(self, handler: Handler) -> dict[str, Any]:
        """What goes into containers.conf(5): what the command line cannot say."""
        arena = self._arena
        hooks = arena.state / "hooks.d"
        hooks.mkdir(exist_ok=True)
        containers: dict[str, Any] = {"cgroups": "no-conmon", "log_driver": "k8s-file"}
        if not capabilities.has("CAP_SYS_RESOURCE"):
            containers["default_ulimits"] = list(FEWER)
        return {
            "containers": containers,
            "network": {"cni_plugin_dirs": list(CNI_FOLDERS)},
            "engine": {
                # The default, one segment in /dev/shm for all podmans of a machine, is no private place.
                "lock_type": "file",
                "hooks_dir": [str(hooks)],
                # Whose log podman asks for in JSON, for its errors. It goes by the name of the program.
                "runtime_supports_json": sorted({"crun", "runc", handler.program.name}),
            },
        }

    def _prepare(self, argv: tuple[str, ...], env: Mapping[str, str], log: Path) -> None:
        """The first command makes the database and the storage: no measured one shall. Raises `EngineError`."""
        with log.open("ab") as sink:
            try:
                done = self._arena.run(
                    [*argv, "info"],
                    timeout_s=START_S,
                    group=Group.ENGINE,
                    env=env,
                    stdout_fd=sink.fileno(),
                    stderr_fd=sink.fileno(),
                )
            except CommandTimeout as error:
                raise EngineError("podman", f"did not answer within {START_S:g} s", tail(log)) from error
        if done.status:
            raise EngineError("podman", f"died while it started (exit status {done.status})", tail(log))

    def _end(self) -> None:
        """Kill the containers. Each conmon ends then, once it has had podman clean up after its container."""
        arena = self._arena
        arena.end_pods()
        with contextlib.suppress(WaitTimeout):
            wait_until(lambda: not arena.pids("engine"), STOP_S, "every conmon to end")
            return
        for pid in arena.pids("engine"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _finds_netavark() -> bool:
    return any(os.access(f"{folder}/netavark", os.X_OK) for folder in HELPERS)


def _require(name: str) -> Path:
    program = find_program(name)
    if program is None:
        raise MachineError(f"{name} is not on PATH", "seatrial setup podman")
    return program
