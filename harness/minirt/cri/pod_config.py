"""What a sandbox's configuration asks for, checked: pure, and before anything is made.

Whatever is wrong is `InvalidArgument`, with the field and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.errors import InvalidArgument
from harness.minirt.network.bandwidth import bandwidth_of

HANDLERS = ("", "minirt")
"""runtime handlers that a pod may name: all mean the one way in which minirt runs containers"""
IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni")
)
_LONGEST_HOSTNAME = 64
_FORBIDDEN = frozenset("\0\n")
_SYSCTL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@:-]*([./][A-Za-z0-9_@:-]+)+")
_HIGHEST_ID = 2**32 - 1

IdMap = tuple[int, int, int]
"""first id inside, first id outside, how many"""


def check_config(config: api.PodSandboxConfig, handler: str) -> None:
    """Raise `InvalidArgument` for what no pod can be."""
    if handler not in HANDLERS:
        raise InvalidArgument(
            f"no runtime for {handler!r} is configured; known runtime handlers are {', '.join(map(repr, HANDLERS))}"
        )
    metadata = config.metadata
    if not metadata.name:
        raise InvalidArgument("a pod needs a name in its metadata")
    dns = config.dns_config
    for what, texts in (
        ("name", [metadata.name]),
        ("namespace", [metadata.namespace]),
        ("uid", [metadata.uid]),
        ("hostname", [config.hostname]),
        ("log_directory", [config.log_directory]),
        ("cgroup_parent", [config.linux.cgroup_parent]),
        ("dns_config", [*dns.servers, *dns.searches, *dns.options]),
    ):
        for text in texts:
            if _FORBIDDEN.intersection(text):
                raise InvalidArgument(f"the pod's {what} holds a character that it must not: {text!r}")
    if len(config.hostname) > _LONGEST_HOSTNAME:
        raise InvalidArgument(f"the pod's hostname is longer than {_LONGEST_HOSTNAME} characters")
    if config.log_directory and (not config.log_directory.startswith("/") or ".." in config.log_directory.split("/")):
        raise InvalidArgument(f"log_directory {config.log_directory!r} is not an absolute path")
    _check_cgroup_parent(config.linux.cgroup_parent)
    namespaces = namespaces_of(config)
    check_sysctls(config.linux.sysctls, namespaces)
    user_namespace_of(config.linux.security_context.namespace_options)
    if "net" in namespaces:
        capabilities_of(config)
        for what, text in (("name", metadata.name), ("namespace", metadata.namespace), ("uid", metadata.uid)):
            # Plugins get them as CNI_ARGS, where that character begins the next one.
            if ";" in text:
                raise InvalidArgument(f"the pod's {what} holds a ';', which its network cannot be told: {text!r}")


def _check_cgroup_parent(parent: str) -> None:
    if parent.endswith(".slice") or ".slice:" in parent:
        raise InvalidArgument(
            f"cgroup_parent {parent!r} is meant for systemd's cgroup driver, but the cgroup driver is cgroupfs:"
            " give a path such as /kubepods/pod1 (RuntimeConfig tells clients the driver)"
        )
    if parent and (not parent.startswith("/") or ".." in parent.split("/")):
        raise InvalidArgument(f"cgroup_parent {parent!r} is not an absolute path (the cgroup driver is cgroupfs)")


def namespaces_of(config: api.PodSandboxConfig) -> list[str]:
    """The kinds of namespaces that all containers of a pod share, as the kernel names them."""
    options = config.linux.security_context.namespace_options
    for name in ("network", "ipc", "pid"):
        mode = getattr(options, name)
        if mode == api.NamespaceMode.TARGET:
            raise InvalidArgument(f"namespace_options.{name}: TARGET is for a container's pid namespace only")
    kinds = [] if options.network == api.NamespaceMode.NODE else ["net", "uts"]
    return kinds if options.ipc == api.NamespaceMode.NODE else [*kinds, "ipc"]


def check_sysctls(names: Iterable[str], kinds: Sequence[str]) -> None:
    """Only what belongs to a namespace of the pod's own may be set: anything else would change the machine."""
    for name in names:
        if not _SYSCTL.fullmatch(name) or ".." in name:
            raise InvalidArgument(f"{name!r} is not a sysctl's name")
        dotted = name.replace("/", ".")
        if dotted.startswith("net."):
            kind, mode = "net", "network"
        elif dotted.startswith("fs.mqueue.") or dotted in IPC_SYSCTLS:
            kind, mode = "ipc", "ipc"
        elif dotted == "kernel.domainname":
            kind, mode = "uts", "network"
        else:
            raise InvalidArgument(f"sysctl {name!r} is not of a namespace: it would change the whole machine")
        if kind not in kinds:
            raise InvalidArgument(
                f"sysctl {name!r} would change the whole machine: the pod's {mode} namespace is the host's"
            )


def user_namespace_of(options: api.NamespaceOption) -> tuple[IdMap, IdMap] | None:
    """The ``(uids, gids)`` mapping of a pod with a user namespace of its own; None for the machine's."""
    if not options.HasField("userns_options"):
        return None
    asked = options.userns_options
    if asked.mode == api.NamespaceMode.NODE:
        if asked.uids or asked.gids:
            raise InvalidArgument("userns_options: mode NODE takes no mappings")
        return None
    if asked.mode != api.NamespaceMode.POD:
        raise InvalidArgument(
            f"userns_options: mode {api.NamespaceMode.Name(asked.mode)} is not supported; POD and NODE are"
        )
    mapping = _mapping("uids", asked.uids), _mapping("gids", asked.gids)
    for name in ("network", "ipc", "pid"):
        if getattr(options, name) == api.NamespaceMode.NODE:
            raise InvalidArgument(f"a pod in a user namespace of its own cannot be in the host's {name} namespace")
    return mapping


def _mapping(name: str, rows: Sequence[api.IDMapping]) -> IdMap:
    if len(rows) != 1:
        raise InvalidArgument(f"userns_options.{name}: one mapping is needed, and no more; there are {len(rows)}")
    row = rows[0]
    if row.container_id != 0:
        raise InvalidArgument(f"userns_options.{name}: id 0 of the containers is not mapped")
    if not row.length or row.host_id + row.length - 1 > _HIGHEST_ID - 1:
        raise InvalidArgument(f"userns_options.{name}: {row.length} ids from {row.host_id} on are no range of ids")
    return row.container_id, row.host_id, row.length


def capabilities_of(config: api.PodSandboxConfig) -> dict[str, Any]:
    """What CNI plugins are told in ``runtimeConfig``: host ports, bandwidth, DNS, the pod's cgroup and annotations."""
    found: dict[str, Any] = {}
    ports = []
    for row in config.port_mappings:
        if not 0 <= row.host_port <= 65535 or not 0 <= row.container_port <= 65535:
            raise InvalidArgument(f"port mapping {row.host_port} to {row.container_port}: a port is at most 65535")
        if row.protocol not in api.Protocol.values():
            raise InvalidArgument(f"port mapping {row.host_port}: protocol {row.protocol} is not known")
        if row.host_port:
            ports.append(
                {
                    "hostPort": row.host_port,
                    "containerPort": row.container_port,
                    "protocol": api.Protocol.Name(row.protocol).lower(),
                    "hostIP": row.host_ip,
                }
            )
    if ports:
        found["portMappings"] = ports
    if bandwidth := bandwidth_of(config.annotations):
        found["bandwidth"] = bandwidth
    dns = config.dns_config
    if dns.servers or dns.searches or dns.options:
        found["dns"] = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    if config.linux.cgroup_parent:
        found["cgroupPath"] = config.linux.cgroup_parent
    if config.annotations:
        found["io.kubernetes.cri.pod-annotations"] = dict(config.annotations)
    return found


def render_resolv_conf(dns: api.DNSConfig, of_the_host: str) -> str:
    """The text of resolv.conf: the host's where the pod asks for nothing."""
    if not (dns.servers or dns.searches or dns.options):
        return of_the_host
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(f"{line}\n" for line in lines)


def default_sysctls(config: api.PodSandboxConfig) -> Mapping[str, str]:
    """What makes low ports and ping need no privileges, as containerd has it since 2.0; the pod's own values win."""
    if "net" not in namespaces_of(config):
        return {}
    found = {"net.ipv4.ip_unprivileged_port_start": "0"}
    if (
        user_namespace_of(config.linux.security_context.namespace_options) is None
    ):  # the range would name groups that are not mapped
        found["net.ipv4.ping_group_range"] = "0 2147483647"
    asked = {name.replace("/", ".") for name in config.linux.sysctls}
    return {name: value for name, value in found.items() if name not in asked}
