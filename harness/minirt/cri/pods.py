"""Pods: from a sandbox's configuration to namespaces, a network and the files that its containers share."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri import log, pod_cgroup
from harness.minirt.cri.pod_config import (
    IdMap,
    capabilities_of,
    check_config,
    default_sysctls,
    namespaces_of,
    render_resolv_conf,
    user_namespace_of,
)
from harness.minirt.cri.podfacts import PodFacts
from harness.minirt.cri.records import Folder, Pod, find_by_prefix
from harness.minirt.cri.translate import SHM_BYTES
from harness.minirt.errors import AlreadyExists, MinirtError, NotFound, Unavailable, Unsupported
from harness.minirt.network.cni import Attachment, Networks, PodNetwork
from harness.minirt.supervisor import pause
from harness.minirt.supervisor.client import Supervisor


class Pods:
    """Every pod. Safe for threads.

    On disk a pod is ``<root>/pods/<id>/``: ``pod.json`` comes last when it is made and goes first when it is removed, so a
    folder without one is half of a pod. ``network.json`` is there from before the first plugin runs until after the last;
    ``cgroup.json`` names a cgroup from before it is made.
    """

    def __init__(
        self,
        root: Path,
        state: Path,
        supervisor: Supervisor,
        networks: Networks,
        default_cgroup_parent: str,
    ) -> None:
        self._records = Folder(root / "pods", "pod.json")
        self._attachments = Folder(root / "pods", "network.json")
        self._cgroups = Folder(root / "pods", "cgroup.json")
        self._state = state / "pods"
        self._state.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._supervisor = supervisor
        self._networks = networks
        self._default_cgroup_parent = default_cgroup_parent
        self._lock = threading.RLock()
        self._pods: dict[str, Pod] = {}
        self._names: dict[tuple[str, str, str, int], str] = {}
        self._busy: dict[str, threading.Lock] = {}
        self._half_stopped: set[str] = set()
        self._half_made: dict[str, Pod] = {}
        """pods that could not be made: they go as soon as they can"""
        self._may_map_ids: bool | None = None

    def load(self) -> None:
        """Read what an earlier daemon left; finish what it had half removed, undo what it had half made."""
        for id, pod in self._records.read(Pod):
            if pod is None:
                log.warning("a pod without a readable record is removed", pod=id)
                self._undo(id)
                continue
            if pod.ready and not self._holds(pod):
                pod.ready = False
            if pod.ready and not pod.on_host_network and not self._attachments.has(id):
                pod.ready = False  # it had been taken off its network when the daemon was killed
                self._half_stopped.add(id)
            self._put(pod)
        for id in os.listdir(self._state):
            if id not in self._pods:
                self._undo(id)
        self._finish_stops()

    def sweep(self) -> None:
        """Undo what was half made or half removed while there was no supervisor."""
        with self._lock:
            known = {*self._pods, *self._names.values()}
        for id in {*os.listdir(self._state), *self._records.ids()} - known:
            self._undo(id)
        for pod in self.list():
            if pod.ready and not self._holds(pod):
                self.ended(pod.id)
        for pod in list(self._half_made.values()):
            self._give_up(pod)
        self._finish_stops()

    def _give_up(self, pod: Pod) -> bool:
        """Undo a pod that could not be made, and forget it; False where that has to be tried again."""
        if not self._undo(pod.id):
            return False
        self._forget(pod)
        return True

    def _forget(self, pod: Pod) -> None:
        with self._lock:
            self._half_made.pop(pod.id, None)
            self._half_stopped.discard(pod.id)
            self._pods.pop(pod.id, None)
            self._busy.pop(pod.id, None)
            self._names.pop(_name(pod.config), None)

    def _finish_stops(self) -> None:
        """Let go of what pods still hold whose stop was cut short after their containers had ended."""
        for id in list(self._half_stopped):
            pod = self._pods.get(id)
            try:
                if pod is not None:
                    self.stop(pod)
            except (MinirtError, OSError) as error:
                log.warning("a pod's stop could not be finished", pod=id, error=error)

    def _holds(self, pod: Pod) -> bool:
        """Whether the pod's namespaces outlived whatever happened since (a reboot empties the state folder)."""
        kinds = namespaces_of(pod.config) + (["user"] if _user(pod.config) else [])
        folder = f"{self._state}/{pod.id}"
        return all(os.path.exists(f"{folder}/ns/{kind}") for kind in kinds) and not pause.has_died(folder)

    def _put(self, pod: Pod) -> None:
        with self._lock:
            self._pods[pod.id] = pod
            self._names[_name(pod.config)] = pod.id
            self._busy[pod.id] = threading.Lock()

    # -- looking -----------------------------------------------------------------------------------------------------

    def get(self, text: str) -> Pod:
        """The pod whose id is, or starts with, `text`. Raises `NotFound`."""
        with self._lock:
            return self._pods[find_by_prefix(self._pods, text, "pod sandbox")]

    def find(self, text: str) -> Pod | None:
        try:
            return self.get(text)
        except NotFound:
            return None

    def list(self) -> list[Pod]:
        with self._lock:
            return list(self._pods.values())

    def facts(self, pod: Pod) -> PodFacts:
        """What translating a container's configuration needs to know."""
        state = f"{self._state}/{pod.id}"
        user = _user(pod.config)
        return PodFacts(pod.config, pod.hostname, str(self._records.path(pod.id)), f"{state}/ns", f"{state}/shm", user)

    def netns(self, pod: Pod) -> str:
        """The path of the pod's network namespace; empty where it is the machine's."""
        return "" if pod.on_host_network else f"{self._state}/{pod.id}/ns/net"

    def namespaces(self, pod: Pod) -> Sequence[Mapping[str, str]]:
        """The pod's own namespaces, as a config.json has them."""
        folder = f"{self._state}/{pod.id}/ns"
        kinds = sorted(os.listdir(folder)) if pod.ready else []
        return [{"type": "network" if kind == "net" else kind, "path": f"{folder}/{kind}"} for kind in kinds]

    # -- changing ----------------------------------------------------------------------------------------------------

    def run(self, config: api.PodSandboxConfig, handler: str) -> Pod:
        """Make a pod that is ready. Raises `InvalidArgument`, `AlreadyExists` (its name is taken), `Unavailable` (no network).

        Whatever fails, nothing is left behind; but a pod that its network does not let go of stays, not ready, so that
        removing it can be tried again.
        """
        check_config(config, handler)
        pod = self._draft(secrets.token_hex(32), config, handler)
        id, name = pod.id, _name(config)
        with self._lock:
            if name in self._names:
                raise AlreadyExists(
                    f"pod sandbox name {name[1]}/{name[0]} (uid {name[2]!r}, attempt {name[3]}) is reserved for"
                    f" {self._names[name]!r}"
                )
            self._names[name] = id
        try:
            self._make(pod)
        except BaseException:
            # Noted first: a supervisor that comes back in between then sees to it.
            self._half_made[id] = pod
            if not self._give_up(pod):
                pod.ready = False
                with contextlib.suppress(OSError):
                    self._records.write(id, pod.to_json())
                with self._lock:
                    if id in self._half_made:
                        self._put(pod)
            raise
        self._put(pod)
        return pod

    def _draft(self, id: str, config: api.PodSandboxConfig, handler: str) -> Pod:
        pod = Pod(id, config, handler, time.time_ns())
        if _user(config) and not self.may_map_ids():
            raise Unsupported(
                f"user namespaces: the file system of {self._records.path('')}, or the kernel, has no id-mapped mounts"
            )
        pod.hostname = socket.gethostname() if pod.on_host_network else config.hostname or id[:12]
        pod.cgroup_parent = config.linux.cgroup_parent or f"{self._default_cgroup_parent}/{id}"
        pod.made_cgroup_parent = not any(os.path.exists(folder) for folder in pod_cgroup.folders_of(pod.cgroup_parent))
        return pod

    def _make(self, pod: Pod) -> None:
        config, user = pod.config, _user(pod.config)
        os.mkdir(self._records.path(pod.id), 0o711)
        os.mkdir(f"{self._state}/{pod.id}", 0o711)
        self._write_files(pod, (user[0][1], user[1][1]) if user else (0, 0))
        kinds = namespaces_of(config)
        if kinds:
            self._supervisor.call(
                "create pod",
                id=pod.id,
                namespaces=kinds,
                hostname=pod.hostname,
                default_sysctls=dict(default_sysctls(config)),
                sysctls=dict(config.linux.sysctls),
                shm_bytes=SHM_BYTES if "ipc" in kinds else 0,
                user=user,
            )
        if pod.made_cgroup_parent and (limits := pod_cgroup.limits_of(config.linux)):
            self._cgroups.write(pod.id, {"path": pod.cgroup_parent})
            pod_cgroup.limit(pod.cgroup_parent, limits, make=True)
        if not pod.on_host_network:
            pod.ips = self._attach(pod).ips
            if not pod.ips:
                raise MinirtError("the network gave the pod no address")
        self._records.write(pod.id, pod.to_json())

    def _attach(self, pod: Pod) -> Attachment:
        metadata = pod.config.metadata
        request = PodNetwork(
            pod.id,
            self.netns(pod),
            {
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": metadata.namespace,
                "K8S_POD_NAME": metadata.name,
                "K8S_POD_INFRA_CONTAINER_ID": pod.id,
                "K8S_POD_UID": metadata.uid,
            },
            capabilities_of(pod.config),
        )
        planned = self._networks.plan(request)
        # Written before: whatever ends this process on the way, the next one knows what to undo.
        self._attachments.write(pod.id, planned.to_json())
        attachment = self._networks.attach(planned)
        self._attachments.write(pod.id, attachment.to_json())
        return attachment

    def _write_files(self, pod: Pod, owner: tuple[int, int]) -> None:
        folder = self._records.path(pod.id)
        for name, text in (
            ("resolv.conf", render_resolv_conf(pod.config.dns_config, _read_text("/etc/resolv.conf"))),
            ("hosts", _read_text("/etc/hosts") or "127.0.0.1 localhost\n::1 localhost\n"),
            ("hostname", f"{pod.hostname}\n"),
        ):
            (folder / name).write_text(text)
            if owner != (0, 0):
                os.chown(folder / name, *owner)

    def may_map_ids(self) -> bool:
        """Whether pods can have user namespaces here: the kernel and the file system below our root have to allow it."""
        if self._may_map_ids is None:
            try:
                self._may_map_ids = bool(self._supervisor.call("can map ids", path=str(self._records.path("")))["can"])
            except Unavailable:  # it is asked again when there is a supervisor
                return False
        return self._may_map_ids

    def share_pids(self, pod: Pod) -> None:
        """See to it that the pod has a pid namespace that its containers share, and a process that keeps it."""
        self._supervisor.call("hold pids", id=pod.id)

    def update(self, pod: Pod, overhead: Any, resources: Any) -> None:
        """Change what the pod as a whole may use; None for what is not to be changed. Raises `CgroupError`."""
        with self._alone(pod):
            linux = api.LinuxPodSandboxConfig()
            linux.CopyFrom(pod.config.linux)
            for name, value in (("overhead", overhead), ("resources", resources)):
                if value is not None:
                    getattr(linux, name).CopyFrom(value)
            if pod.made_cgroup_parent and (limits := pod_cgroup.limits_of(linux)):
                # Before its first container the cgroup may not be there yet.
                exists = any(os.path.exists(folder) for folder in pod_cgroup.folders_of(pod.cgroup_parent))
                pod_cgroup.limit(pod.cgroup_parent, limits, make=not exists)
            pod.config.linux.CopyFrom(linux)
            self._records.write(pod.id, pod.to_json())

    @contextlib.contextmanager
    def _alone(self, pod: Pod) -> Iterator[None]:
        """Only one call at a time changes a pod."""
        with self._lock:
            busy = self._busy.setdefault(pod.id, threading.Lock())
        with busy:
            yield

    def close(self, pod: Pod) -> bool:
        """From now on no container is started in the pod: it is about to be stopped. Whether it was ready."""
        with self._lock:
            was_ready, pod.ready = pod.ready, False
        return was_ready

    def is_open(self, pod: Pod) -> bool:
        """Whether containers may be made and started in the pod."""
        with self._lock:
            return pod.ready

    def reopen(self, pod: Pod) -> None:
        """Its containers could not be stopped, and so it was not either: it is ready as before."""
        with self._lock:
            pod.ready = pod.id not in self._half_stopped and self._holds(pod)

    def ended(self, id: str) -> None:
        """What kept the pod's processes together has gone without having been asked to."""
        with self._lock:
            pod = self._pods.get(id)
            if pod is None or not pod.ready:
                return
            pod.ready = False
            self._records.note(pod.id, pod.to_json())
        log.warning("a pod has lost its first process", pod=id)

    def stop(self, pod: Pod) -> None:
        """Take down network and namespaces, once its containers are stopped; nothing happens where that was done."""
        with self._alone(pod):
            self.close(pod)
            if pod.id not in self._pods:
                return
            self._half_stopped.add(pod.id)
            self._detach(pod.id)
            if os.path.exists(f"{self._state}/{pod.id}/ns"):
                self._supervisor.call("remove pod", id=pod.id)
                self._records.note(pod.id, pod.to_json())
            self._half_stopped.discard(pod.id)

    def remove(self, pod: Pod) -> None:
        """Forget a pod that is stopped and has no containers any more."""
        with self._alone(pod):
            if pod.made_cgroup_parent:
                pod_cgroup.remove(pod.cgroup_parent)
            self._discard(pod.id)
            self._forget(pod)

    def _discard(self, id: str) -> None:
        self._records.remove(id)
        shutil.rmtree(f"{self._state}/{id}", ignore_errors=True)

    def detach_all(self) -> None:
        """Take every pod off its network, whatever its state."""
        for id in self._records.ids():
            try:
                self._detach(id)
            except MinirtError as error:
                log.warning("a pod could not be taken off its network", pod=id, error=error)

    def discard_all(self) -> None:
        """Forget every pod; their namespaces are gone."""
        for id, pod in self._records.read(Pod):
            if pod is not None:
                self.remove(pod)
            self._discard(id)
        for id in os.listdir(self._state):
            self._discard(id)

    def _detach(self, id: str) -> None:
        path = self._attachments.path(id) / "network.json"
        try:
            attachment = Attachment.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            log.warning("what is known of a pod's network cannot be read", pod=id, error=error)
            return
        self._networks.detach(attachment)
        path.unlink()

    def _undo(self, id: str) -> bool:
        """Take away whatever there is of a pod; False where its network does not let it go: then what is needed to try again stays."""
        try:
            self._detach(id)
            self._supervisor.call("remove pod", id=id)
        except (MinirtError, OSError) as error:
            log.warning("a pod could not be undone", pod=id, error=error)
            return False
        pod_cgroup.remove(self._cgroup_of(id))
        self._discard(id)
        return True

    def _cgroup_of(self, id: str) -> str:
        """The cgroup of a pod that has no readable record, as far as it was made."""
        try:
            return str(json.loads((self._cgroups.path(id) / "cgroup.json").read_bytes())["path"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{self._default_cgroup_parent}/{id}"


def _name(config: api.PodSandboxConfig) -> tuple[str, str, str, int]:
    metadata = config.metadata
    return metadata.name, metadata.namespace, metadata.uid, metadata.attempt


def _user(config: api.PodSandboxConfig) -> tuple[IdMap, IdMap] | None:
    return user_namespace_of(config.linux.security_context.namespace_options)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
