"""Containers: from a container's configuration to a bundle, a running process and its end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.seccomp import compile_profile
from harness.minirt.container.spec import parse_spec
from harness.minirt.cri import log, pod_cgroup
from harness.minirt.cri.host import HostFacts
from harness.minirt.cri.pod_config import user_namespace_of
from harness.minirt.cri.podfacts import PodFacts
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import (
    CREATED,
    EXITED,
    RUNNING,
    UNKNOWN_EXIT_CODE,
    Container,
    Folder,
    Pod,
    find_by_prefix,
)
from harness.minirt.cri.resources import translate_resources
from harness.minirt.cri.stopping import stop_signal
from harness.minirt.cri.translate import translate
from harness.minirt.cri.users import Accounts, read_accounts
from harness.minirt.errors import (
    AlreadyExists,
    InvalidArgument,
    MinirtError,
    NotFound,
    StateCorrupt,
    Unavailable,
    WrongState,
)
from harness.minirt.images.snapshot import Snapshots
from harness.minirt.images.store import Image, ImageStore, write_atomically
from harness.minirt.supervisor.client import Supervisor

START_ERROR_EXIT_CODE = 128
_LARGEST_CONFIG_BYTES = 8 << 20
"""of one container; with its spec it has to fit into a message between daemon and supervisor"""
_MOST_CACHED_ACCOUNTS = 64
_END = ("pid", "started_ns", "finished_ns", "exit_code")


class Containers:
    """Every container. Safe for threads."""

    def __init__(
        self,
        root: Path,
        state: Path,
        supervisor: Supervisor,
        pods: Pods,
        images: ImageStore,
        snapshots: Snapshots,
        host: HostFacts,
    ) -> None:
        self._records = Folder(root / "containers", "container.json")
        self._state = state / "containers"
        self._state.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._supervisor = supervisor
        self._pods = pods
        self._images = images
        self._snapshots = snapshots
        self._host = host
        self._lock = threading.RLock()
        self._containers: dict[str, Container] = {}
        self._names: dict[tuple[str, str, int], str] = {}
        self._busy: dict[str, threading.Lock] = {}
        self._accounts: dict[str, Accounts] = {}
        self.changed: Callable[[str, Container], None] = lambda what, container: None
        """is told that a container was "created", "started", "stopped" or "deleted"; once each, in this order"""

    def load(self, supervised: Mapping[str, Mapping[str, Any]]) -> None:
        """Read what an earlier daemon left, and set it right by what the supervisor knows and by what it wrote down."""
        unreadable = []
        for id, container in self._records.read(Container):
            if container is None:
                unreadable.append(id)
                continue
            self._adopt(container, supervised.get(id))
            self._put(container)
        for id in supervised.keys() - self._containers.keys():
            # Nobody could stop it any more.
            self._supervisor.call("stop", id=id, signal=int(signal.SIGKILL), timeout_s=0)
            self._supervisor.call("forget", id=id)
        for id in unreadable:
            log.warning("a container without a readable record is removed", container=id)
            self._discard(id)
        for id in os.listdir(self._state):
            if id not in self._containers:
                self._discard(id)

    def running_ids(self) -> frozenset[str]:
        """The ids of all that run."""
        with self._lock:
            return frozenset(row.id for row in self._containers.values() if row.state == RUNNING)

    def reconcile(self, supervised: Mapping[str, Mapping[str, Any]], ran: Collection[str]) -> None:
        """Set right what is known by what a new supervisor says; `ran` were running when the old one had gone."""
        for facts in supervised.values():
            self.apply(facts)
        for container in self.list():
            if container.id in ran and container.id not in supervised:
                self.apply(self._last_facts(container) or _lost(container))

    def _last_facts(self, container: Container) -> Mapping[str, Any] | None:
        """What a supervisor has written down of the end of a container, if anything that can be read."""
        try:
            facts: dict[str, Any] = json.loads((self._state / container.id / "exit.json").read_bytes())
            return facts if all(type(facts[name]) is int for name in _END) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _adopt(self, container: Container, facts: Mapping[str, Any] | None) -> None:
        was = container.state
        container.state = CREATED if was == RUNNING else was
        if was == EXITED:
            return
        facts = facts or self._last_facts(container)
        if facts is not None:
            container.apply(facts)
        elif was == RUNNING or not (self._state / container.id / "config.json").exists():
            end_cgroup(container.cgroup)
            container.fail(time.time_ns(), UNKNOWN_EXIT_CODE, "Unknown", "it ended while nobody looked after it")
        if container.state != was:
            self._records.note(container.id, container.to_json())
        if container.state == RUNNING and self._pods.find(container.pod_id) is None:
            log.warning("a container without its pod is ended", container=container.id, pod=container.pod_id)
            self.stop(container, 0)

    # -- looking -----------------------------------------------------------------------------------------------------

    def get(self, text: str) -> Container:
        """The container whose id is, or starts with, `text`. Raises `NotFound`."""
        with self._lock:
            return self._containers[find_by_prefix(self._containers, text, "container")]

    def running(self, text: str) -> Container:
        """The same, once it is certain that it runs. Raises `NotFound`, `WrongState`."""
        container = self.get(text)
        if container.state != RUNNING:
            raise WrongState(f"container {container.id} is not running")
        return container

    def find(self, text: str) -> Container | None:
        try:
            return self.get(text)
        except NotFound:
            return None

    def list(self, pod_id: str = "") -> list[Container]:
        with self._lock:
            return [row for row in self._containers.values() if pod_id in ("", row.pod_id)]

    def used_layers(self) -> set[str]:
        """Chain ids of all that containers are stacked on."""
        with self._lock:
            return {chain_id for container in self._containers.values() for chain_id in container.chain}

    def upper(self, container: Container) -> Path:
        """The folder of what a container wrote into its root."""
        return self._records.path(container.id) / "upper"

    def spec(self, container: Container) -> dict[str, Any]:
        """Its config.json; empty where that is gone (the state folder does not outlive the machine). Raises `StateCorrupt`."""
        path = self._state / container.id / "config.json"
        try:
            spec: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StateCorrupt(f"{path}: {error}") from None
        return spec

    def process(self, container: Container) -> dict[str, Any]:
        """``process`` of its config.json."""
        process = self.spec(container).get("process")
        if not isinstance(process, dict):
            raise StateCorrupt(f"what container {container.id} runs is no longer known")
        return process

    # -- changing ----------------------------------------------------------------------------------------------------

    def _put(self, container: Container) -> None:
        with self._lock:
            self._containers[container.id] = container
            self._names[_name(container)] = container.id
            self._busy[container.id] = threading.Lock()

    def create(self, pod: Pod, config: api.ContainerConfig) -> Container:
        """Prepare a container in a pod. Raises `NotFound` (image), `InvalidArgument`, `WrongState` (pod), `AlreadyExists`."""
        _check(config)
        if not pod.ready:
            raise WrongState(f"pod sandbox {pod.id} is not ready")
        image = self._images.get(config.image.image)
        id = secrets.token_hex(32)
        name = (pod.id, config.metadata.name, config.metadata.attempt)
        with self._lock:
            if name in self._names:
                taken = f"{name[1]}_{pod.config.metadata.name}_{pod.config.metadata.namespace}_{name[2]}"
                raise AlreadyExists(f"container name {taken!r} is reserved for {self._names[name]!r}")
            self._names[name] = id
        try:
            with self._images.hold(image.chain):
                container = self._make(id, pod, config, image)
                self._put(container)
            if not self._pods.is_open(
                pod
            ):  # it was closed meanwhile; whoever stops it need not have seen this container
                with self._lock:
                    self._forget(container)
                raise WrongState(f"pod sandbox {pod.id} is being stopped")
        except BaseException:
            with self._lock:
                self._names.pop(name, None)
            self._discard(id)
            raise
        self.changed("created", container)
        return container

    def _make(self, id: str, pod: Pod, config: api.ContainerConfig, image: Image) -> Container:
        facts = self._pods.facts(pod)
        target_pid = self._join_namespaces(pod, config.linux.security_context.namespace_options, facts)
        shift = (facts.user[0][1], facts.user[1][1]) if facts.user else (0, 0)
        self._snapshots.prepare(id, image.chain, shift).options  # noqa: B018  # too many layers are better refused now
        folder = self._state / id
        (folder / "rootfs").mkdir(parents=True, mode=0o711)
        image_config = self._images.config(image)
        volumes = {}
        for number, target in enumerate((image_config.get("config") or {}).get("Volumes") or ()):
            volumes[target] = f"{self._records.path(id)}/volumes/{number}"
            os.makedirs(volumes[target], 0o755)
        mounted: list[Image] = []

        def layers(name: str) -> Sequence[str]:
            mounted.append(self._images.get(name))
            return self._snapshots.layers(mounted[-1].chain)

        cgroup = f"{pod.cgroup_parent.rstrip('/')}/{id}"
        spec, identity = translate(
            config,
            image_config,
            self._accounts_of(image),
            facts,
            self._host,
            rootfs=str(folder / "rootfs"),
            cgroup=cgroup,
            volumes=volumes,
            layers=layers,
            target_pid=target_pid,
        )
        # What the supervisor would refuse is refused now, and what it would have to compile is there when it looks.
        parse_spec(spec, str(folder))
        if "seccomp" in spec["linux"]:
            compile_profile(spec["linux"]["seccomp"], str(self._state.parent / "seccomp"))
        (folder / "config.json").write_text(json.dumps(spec))
        container = Container(
            id=id,
            pod_id=pod.id,
            config=config,
            image_id=image.id,
            chain=tuple(dict.fromkeys(chain_id for used in (image, *mounted) for chain_id in used.chain)),
            depth=len(image.chain),
            cgroup=cgroup,
            log_path=os.path.join(pod.config.log_directory, config.log_path) if config.log_path else "",
            stop_signal=stop_signal(config, image_config.get("config") or {}),
            user=(identity.uid, identity.gid, identity.groups),
            resources=_limits(spec),
            created_ns=time.time_ns(),
        )
        self._records.write(id, container.to_json())
        return container

    def _join_namespaces(self, pod: Pod, options: api.NamespaceOption, facts: PodFacts) -> int:
        """See to it that what a container wants to share is there; the process whose pid namespace it joins, or 0."""
        if options.HasField("userns_options") and user_namespace_of(options) != facts.user:
            raise InvalidArgument("userns_options: a container has the user namespace of its pod, not another one")
        if options.pid == api.NamespaceMode.TARGET:
            other = self.get(options.target_id)
            if other.pod_id != pod.id:
                raise InvalidArgument(f"container {other.id}, whose pid namespace is to be shared, is in another pod")
            if not other.pid:
                raise WrongState(f"container {other.id}, whose pid namespace is to be shared, is not running")
            return other.pid
        if options.pid != api.NamespaceMode.CONTAINER and not facts.is_on_host("pid"):
            self._pods.share_pids(pod)
        return 0

    def _accounts_of(self, image: Image) -> Accounts:
        accounts = self._accounts.get(image.id)
        if accounts is None:
            layers = self._snapshots.layers(image.chain)
            accounts = read_accounts(layers)
            if len(self._accounts) >= _MOST_CACHED_ACCOUNTS:
                self._accounts.clear()
            self._accounts[image.id] = accounts
        return accounts

    @contextlib.contextmanager
    def alone(self, container: Container) -> Any:
        """Only one call at a time changes a container."""
        busy = self._busy.get(container.id)
        if busy is None:
            raise NotFound(f"container {container.id!r} does not exist")
        with busy:
            if container.id not in self._containers:
                raise NotFound(f"container {container.id!r} does not exist")
            yield

    def start(self, container: Container) -> None:
        """Start it. Raises `WrongState` unless it has just been created; a failure ends it for good, with a reason."""
        with self.alone(container):
            if container.state != CREATED:
                raise WrongState(f"container {container.id} is not in the created state")
            pod = self._pods.get(container.pod_id)
            if not pod.ready:
                raise WrongState(f"pod sandbox {pod.id} is not ready")
            if container.log_path:
                os.makedirs(os.path.dirname(container.log_path), 0o755, exist_ok=True)
            try:
                facts = self._supervisor.call(
                    "start",
                    id=container.id,
                    overlay=self._snapshots.overlay(container.id, container.root_chain).options,
                    log=container.log_path,
                    stdin=container.config.stdin,
                )
            except Unavailable:
                raise
            except MinirtError as error:
                container.fail(time.time_ns(), START_ERROR_EXIT_CODE, "StartError", str(error))
                self._records.note(container.id, container.to_json())
                self.changed("stopped", container)
                raise
            self.apply(facts, container)

    def apply(self, facts: Mapping[str, Any], container: Container | None = None) -> None:
        """Take over what the supervisor says of a container; what it says of one that is gone is of no interest."""
        with self._lock:
            container = container or self._containers.get(facts["id"])
            was = container.state if container is not None else EXITED
            if container is not None and container.apply(facts) and container.id in self._containers:
                self._records.note(container.id, container.to_json())
                # The end of a short-lived one can be known before the answer to its start.
                if was == CREATED:
                    self.changed("started", container)
                if container.state == EXITED:
                    self.changed("stopped", container)

    def update(self, container: Container, asked: api.LinuxContainerResources) -> None:
        """Change its limits, at once where it runs, else for its start. Raises what the kernel says; then nothing has changed."""
        with self.alone(container):
            path = self._state / container.id / "config.json"
            spec = self.spec(container)
            if not spec:  # it ended before the machine was started anew: there is nothing to limit
                return
            before = spec["linux"]["resources"]
            spec["linux"]["resources"] = translate_resources(asked, self._host, before)
            if container.state == RUNNING:
                with contextlib.suppress(NotFound):
                    self._supervisor.call(
                        "update", id=container.id, cgroup=container.cgroup, resources=spec["linux"]["resources"]
                    )
            write_atomically(path, json.dumps(spec).encode())
            container.resources = _limits(spec)
            self._records.write(container.id, container.to_json())

    def stop(self, container: Container, timeout_s: int) -> None:
        """Its stop signal, then after `timeout_s` SIGKILL; returns once it has ended. Nothing happens where it does not run."""
        if container.state != RUNNING:
            return
        try:
            facts = self._supervisor.call(
                "stop", id=container.id, signal=container.stop_signal, timeout_s=max(timeout_s, 0)
            )
        except NotFound:
            return
        self.apply(facts, container)

    def halt(self, container: Container) -> None:
        """End it at once, also where it is just being started. The pod is closed, so nobody starts it again."""
        with contextlib.suppress(NotFound), self.alone(container):
            pass
        self.stop(container, 0)

    def remove(self, container: Container) -> None:
        """Remove it, by force where it runs; nothing happens where it is gone."""
        self.stop(container, 0)
        try:
            with self.alone(container):
                self._supervisor.call("forget", id=container.id)
                self._discard(container.id)
                with self._lock:
                    self._forget(container)
        except NotFound:
            return
        if self._pods.find(container.pod_id) is None:
            # Its pod's record was lost, and with it who has to clear this away.
            pod_cgroup.remove(os.path.dirname(container.cgroup))
        self.changed("deleted", container)
        if self._images.find(container.image_id) is None:
            self._images.collect(self.used_layers)

    def _forget(self, container: Container) -> None:
        self._containers.pop(container.id, None)
        self._names.pop(_name(container), None)
        self._busy.pop(container.id, None)

    def _discard(self, id: str) -> None:
        self._records.remove(id)
        shutil.rmtree(self._state / id, ignore_errors=True)

    def reopen_log(self, container: Container) -> None:
        """Go on in a new log file. Raises `WrongState` where it does not run."""
        if container.state != RUNNING:
            raise WrongState(f"container {container.id} is not running")
        self._supervisor.call("reopen log", id=container.id)


def _lost(container: Container) -> Mapping[str, Any]:
    """The end of a container of which nobody knows how it was."""
    facts = {"id": container.id, "pid": 0, "started_ns": container.started_ns, "finished_ns": time.time_ns()}
    return {**facts, "exit_code": UNKNOWN_EXIT_CODE, "exit_known": False}


def end_cgroup(path: str) -> None:
    """Kill what a supervisor that was killed has left of a container; nothing happens where its cgroup is gone."""
    place = cgroups.find(cgroups.read_layout(), path)
    place.kill_all()
    place.remove()


def _name(container: Container) -> tuple[str, str, int]:
    return container.pod_id, container.config.metadata.name, container.config.metadata.attempt


def _limits(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a status tells of a config.json's limits."""
    resources = {key: value for key, value in spec["linux"]["resources"].items() if key != "devices"}
    return {"resources": resources, "oom_score": spec["process"].get("oomScoreAdj", 0)}


def _check(config: api.ContainerConfig) -> None:
    if not config.metadata.name:
        raise InvalidArgument("a container needs a name in its metadata")
    if not config.image.image:
        raise InvalidArgument("a container needs an image")
    if "\n" in config.metadata.name or "\0" in config.metadata.name:
        raise InvalidArgument(f"the container's name holds a character that it must not: {config.metadata.name!r}")
    log_path = config.log_path
    if "\n" in log_path or "\0" in log_path or log_path.startswith("/") or ".." in log_path.split("/"):
        raise InvalidArgument(f"log_path {log_path!r} is not a path below the pod's log directory")
    if any("=" in pair.key or not pair.key for pair in config.envs):
        raise InvalidArgument("the name of an environment variable is empty, or holds '='")
    if config.ByteSize() > _LARGEST_CONFIG_BYTES:
        raise InvalidArgument(f"the container's configuration is larger than {_LARGEST_CONFIG_BYTES} bytes")
