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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.linux.cgroups import Layout, path_of
from harness.minirt.cri import log
from harness.minirt.cri.podfacts import PodFacts
from harness.minirt.cri.records import Folder, Pod, find_by_prefix
from harness.minirt.cri.translate import SHM_BYTES
from harness.minirt.errors import AlreadyExists, InvalidArgument, MinirtError, NotFound, Unsupported
from harness.minirt.network.cni import Attachment, Networks, PodNetwork
from harness.minirt.supervisor.client import Supervisor

HANDLERS = ("", "minirt")
"""runtime handlers that a pod may name: all mean the one way in which minirt runs containers"""
_LONGEST_HOSTNAME = 64
_FORBIDDEN = frozenset("\0\n")


class Pods:
    """Every pod. Safe for threads."""

    def __init__(
        self,
        root: Path,
        state: Path,
        supervisor: Supervisor,
        networks: Networks,
        layout: Layout,
        default_cgroup_parent: str,
    ) -> None:
        self._records = Folder(root / "pods", "pod.json")
        self._state = state / "pods"
        self._state.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._supervisor = supervisor
        self._networks = networks
        self._layout = layout
        self._default_cgroup_parent = default_cgroup_parent
        self._lock = threading.RLock()
        self._pods: dict[str, Pod] = {}
        self._names: dict[tuple[str, str, str, int], str] = {}

    def load(self) -> None:
        """Read what an earlier daemon left; finish what it had half removed, undo what it had half made."""
        for id, pod in self._records.read(Pod):
            if pod is None:
                log.warning("a pod without a readable record is removed", pod=id)
                self._undo(id)
                continue
            if pod.ready and not self._holds(pod):
                pod.ready = False
            self._pods[id] = pod
            self._names[_name(pod.config)] = id
        for id in os.listdir(self._state):
            if id not in self._pods:
                self._undo(id)

    def sweep(self) -> None:
        """Undo what was half made or half removed while there was no supervisor."""
        with self._lock:
            known = {*self._pods, *self._names.values()}
        for id in {*os.listdir(self._state), *self._records.ids()} - known:
            self._undo(id)

    def _holds(self, pod: Pod) -> bool:
        """Whether the pod's namespaces outlived whatever happened since (a reboot empties the state folder)."""
        return all(os.path.exists(f"{self._state}/{pod.id}/ns/{kind}") for kind in _namespaces(pod.config))

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
        return PodFacts(pod.config, pod.hostname, str(self._records.path(pod.id)), f"{state}/ns", f"{state}/shm")

    def netns(self, pod: Pod) -> str:
        """The path of the pod's network namespace; empty where it is the machine's."""
        return "" if pod.on_host_network else f"{self._state}/{pod.id}/ns/net"

    # -- changing ----------------------------------------------------------------------------------------------------

    def run(self, config: api.PodSandboxConfig, handler: str) -> Pod:
        """Make a pod that is ready. Raises `InvalidArgument`, `AlreadyExists` (its name is taken), `Unavailable` (no network).

        Whatever fails, nothing is left behind.
        """
        _check(config, handler)
        id = secrets.token_hex(32)
        name = _name(config)
        with self._lock:
            if name in self._names:
                raise AlreadyExists(f"pod {name[1]}/{name[0]} (attempt {name[3]}) exists already: {self._names[name]}")
            self._names[name] = id
        try:
            pod = self._make(id, config, handler)
        except BaseException:
            with self._lock:
                del self._names[name]
            self._undo(id)
            raise
        with self._lock:
            self._pods[id] = pod
        return pod

    def _make(self, id: str, config: api.PodSandboxConfig, handler: str) -> Pod:
        options = config.linux.security_context.namespace_options
        pod = Pod(id, config, handler, time.time_ns())
        pod.hostname = socket.gethostname() if pod.on_host_network else config.hostname or id[:12]
        pod.cgroup_parent = config.linux.cgroup_parent or f"{self._default_cgroup_parent}/{id}"
        pod.made_cgroup_parent = not any(folder.exists() for folder in self._cgroup_folders(pod.cgroup_parent))
        os.mkdir(self._records.path(id), 0o711)
        os.mkdir(f"{self._state}/{id}", 0o711)
        self._write_files(pod)
        kinds = _namespaces(config)
        sysctls = dict(config.linux.sysctls)
        if kinds or sysctls:
            self._supervisor.call(
                "create pod",
                id=id,
                namespaces=kinds,
                hostname=pod.hostname,
                sysctls=_checked_sysctls(sysctls, kinds),
                shm_bytes=0 if options.ipc == api.NamespaceMode.NODE else SHM_BYTES,
            )
        if not pod.on_host_network:
            pod.ips = self._attach(pod).ips
        self._records.write(id, pod.to_json())
        return pod

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
            _network_capabilities(pod.config),
        )
        attachment = self._networks.attach(request)
        (self._records.path(pod.id) / "network.json").write_text(json.dumps(attachment.to_json()))
        return attachment

    def _write_files(self, pod: Pod) -> None:
        folder = self._records.path(pod.id)
        dns = pod.config.dns_config
        if dns.servers or dns.searches or dns.options:
            lines = [f"nameserver {server}" for server in dns.servers]
            if dns.searches:
                lines.insert(0, f"search {' '.join(dns.searches)}")
            if dns.options:
                lines.append(f"options {' '.join(dns.options)}")
            resolv = "".join(f"{line}\n" for line in lines)
        else:
            resolv = _read_text("/etc/resolv.conf")
        for name, text in (
            ("resolv.conf", resolv),
            ("hosts", _read_text("/etc/hosts") or "127.0.0.1 localhost\n::1 localhost\n"),
            ("hostname", f"{pod.hostname}\n"),
        ):
            (folder / name).write_text(text)

    def stop(self, pod: Pod) -> None:
        """Take down network and namespaces, once its containers are stopped; nothing happens where that was done."""
        with self._lock:
            if not pod.ready:
                return
        self._detach(pod.id)
        self._supervisor.call("remove pod", id=pod.id)
        with self._lock:
            pod.ready = False
            self._records.note(pod.id, pod.to_json())

    def remove(self, pod: Pod) -> None:
        """Forget a pod that is stopped and has no containers any more."""
        self._discard(pod.id)
        with self._lock:
            self._pods.pop(pod.id, None)
            self._names.pop(_name(pod.config), None)
        if pod.made_cgroup_parent:
            for folder in self._cgroup_folders(pod.cgroup_parent):
                with contextlib.suppress(OSError):
                    folder.rmdir()

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

    def _cgroup_folders(self, cgroup: str) -> Iterable[Path]:
        return dict.fromkeys(path_of(self._layout, name, cgroup) for name in self._layout.controllers or ("",))

    def _detach(self, id: str) -> None:
        path = self._records.path(id) / "network.json"
        try:
            attachment = Attachment.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            log.warning("what is known of a pod's network cannot be read", pod=id, error=error)
            return
        self._networks.detach(attachment)
        path.unlink()

    def _undo(self, id: str) -> None:
        try:
            self._detach(id)
            self._supervisor.call("remove pod", id=id)
        except (MinirtError, OSError) as error:
            log.warning("a pod could not be undone", pod=id, error=error)
        self._discard(id)


def _name(config: api.PodSandboxConfig) -> tuple[str, str, str, int]:
    metadata = config.metadata
    return metadata.name, metadata.namespace, metadata.uid, metadata.attempt


def _namespaces(config: api.PodSandboxConfig) -> list[str]:
    options = config.linux.security_context.namespace_options
    kinds = [] if options.network == api.NamespaceMode.NODE else ["net", "uts"]
    return kinds if options.ipc == api.NamespaceMode.NODE else [*kinds, "ipc"]


def _check(config: api.PodSandboxConfig, handler: str) -> None:
    if handler not in HANDLERS:
        raise InvalidArgument(f"there is no runtime handler {handler!r}; known are {', '.join(map(repr, HANDLERS))}")
    metadata = config.metadata
    if not metadata.name:
        raise InvalidArgument("a pod needs a name in its metadata")
    for what, text in (
        ("name", metadata.name),
        ("namespace", metadata.namespace),
        ("uid", metadata.uid),
        ("hostname", config.hostname),
        ("log_directory", config.log_directory),
        ("cgroup_parent", config.linux.cgroup_parent),
    ):
        if _FORBIDDEN.intersection(text):
            raise InvalidArgument(f"the pod's {what} holds a character that it must not: {text!r}")
    if len(config.hostname) > _LONGEST_HOSTNAME:
        raise InvalidArgument(f"the pod's hostname is longer than {_LONGEST_HOSTNAME} characters")
    parent = config.linux.cgroup_parent
    if parent and (not parent.startswith("/") or ".." in parent.split("/")):
        raise InvalidArgument(f"cgroup_parent {parent!r} is not an absolute path (the cgroup driver is cgroupfs)")
    for text in (*config.dns_config.servers, *config.dns_config.searches, *config.dns_config.options):
        if _FORBIDDEN.intersection(text):
            raise InvalidArgument(f"the pod's dns_config holds a character that it must not: {text!r}")
    options = config.linux.security_context.namespace_options
    if len(options.userns_options.uids) and options.userns_options.mode == api.NamespaceMode.POD:
        raise Unsupported("user namespaces are not supported yet")


def _checked_sysctls(sysctls: Mapping[str, str], kinds: Iterable[str]) -> dict[str, str]:
    """Only what belongs to a namespace of the pod's own may be set: anything else would change the machine."""
    for name in sysctls:
        dotted = name.replace("/", ".")
        net, ipc = (
            dotted.startswith("net."),
            dotted.startswith(("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")),
        )
        if ".." in dotted or not ((net and "net" in kinds) or (ipc and "ipc" in kinds)):
            raise InvalidArgument(f"sysctl {name!r} does not belong to a namespace of the pod's own")
    return dict(sysctls)


def _network_capabilities(config: api.PodSandboxConfig) -> dict[str, Any]:
    """``runtimeConfig`` of CNI: host ports, bandwidth (from the annotations that kubelet passes on), DNS."""
    found: dict[str, Any] = {}
    ports = [
        {
            "hostPort": row.host_port,
            "containerPort": row.container_port,
            "protocol": api.Protocol.Name(row.protocol).lower(),
            "hostIP": row.host_ip,
        }
        for row in config.port_mappings
        if row.host_port > 0
    ]
    if ports:
        found["portMappings"] = ports
    dns = config.dns_config
    if dns.servers or dns.searches or dns.options:
        found["dns"] = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    return found


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
