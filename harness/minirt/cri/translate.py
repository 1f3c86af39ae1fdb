"""From CRI's ContainerConfig and an image's configuration to a config.json of the OCI runtime specification.

Pure, but for a look at the host paths that are to be mounted and the devices that are to be made. What clients may see of
it (defaults of mounts, capabilities, paths) is what containerd gives them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.linux.capabilities import BITS
from harness.minirt.cri.seccomp import default_profile, read_profile
from harness.minirt.cri.users import Accounts, Identity, resolve_user
from harness.minirt.errors import InvalidArgument, Unsupported

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
SHM_BYTES = 64 << 20
_POD, _CONTAINER, _NODE, _TARGET = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What a container needs to know of its pod. `ns` and `shm` are folders below the pod's state folder."""

    config: api.PodSandboxConfig
    hostname: str
    files: str
    """folder with resolv.conf, hosts and hostname"""
    ns: str
    shm: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the machine can do. `lowest_oom_score` is None where CAP_SYS_RESOURCE lets any value be set."""

    capabilities: int
    cgroup_v2: bool
    lowest_oom_score: int | None


def translate(
    config: api.ContainerConfig,
    image: Mapping[str, Any],
    accounts: Accounts,
    pod: PodFacts,
    host: HostFacts,
    *,
    rootfs: str,
    cgroup: str,
    target_pid: int = 0,
) -> tuple[dict[str, Any], Identity]:
    """The config.json, and the user that it was resolved to. Raises `InvalidArgument` or `Unsupported` with the field's name."""
    security = config.linux.security_context
    image_config: Mapping[str, Any] = image.get("config") or {}
    if security.privileged and not pod.config.linux.security_context.privileged:
        raise InvalidArgument("a privileged container needs a privileged pod")
    identity = _identity(security, image_config, accounts)
    args = _args(config, image_config)
    env = _env(config, image_config, pod.hostname, identity)
    cwd = config.working_dir or image_config.get("WorkingDir") or "/"
    if not cwd.startswith("/"):
        raise InvalidArgument(f"working_dir {cwd!r} is not an absolute path")
    capabilities, ambient = _capabilities(security, host)
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)},
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": {
            **dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "inheritable": ambient,
            "ambient": ambient,
        },
        "noNewPrivileges": security.no_new_privs,
    }
    resources = config.linux.resources
    if resources.oom_score_adj or config.linux.HasField("resources"):
        score = resources.oom_score_adj
        process["oomScoreAdj"] = score if host.lowest_oom_score is None else max(score, host.lowest_oom_score)
    devices, rules = _devices(config, privileged=security.privileged)
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup,
        "namespaces": _namespaces(security.namespace_options, pod, host, target_pid, privileged=security.privileged),
        "resources": {**_resources(resources), "devices": rules},
    }
    if devices:
        linux["devices"] = devices
    if not security.privileged:
        linux["maskedPaths"] = list(security.masked_paths) or list(MASKED_PATHS)
        linux["readonlyPaths"] = list(security.readonly_paths) or list(READONLY_PATHS)
    if profile := _seccomp(security, capabilities):
        linux["seccomp"] = profile
    if propagation := _rootfs_propagation(config):
        linux["rootfsPropagation"] = propagation
    spec = {
        "ociVersion": "1.1.0",
        "root": {"path": rootfs, "readonly": security.readonly_rootfs},
        "process": process,
        "mounts": _mounts(config, security, pod),
        "annotations": dict(config.annotations),
        "linux": linux,
    }
    return spec, identity


def _args(config: api.ContainerConfig, image: Mapping[str, Any]) -> list[str]:
    command, args = list(config.command), list(config.args)
    if not command:
        command = list(image.get("Entrypoint") or ())
        args = args or list(image.get("Cmd") or ())
    if not command and not args:
        raise InvalidArgument("no command: neither the container nor its image has one")
    return command + args


def _env(config: api.ContainerConfig, image: Mapping[str, Any], hostname: str, identity: Identity) -> list[str]:
    env = dict(entry.partition("=")[::2] for entry in (DEFAULT_PATH, f"HOSTNAME={hostname}"))
    if config.tty:
        env["TERM"] = "xterm"
    env.update(entry.partition("=")[::2] for entry in image.get("Env") or ())
    for pair in config.envs:
        value: Any = pair.value  # text in some versions of the API, bytes in others
        env[pair.key] = value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
    env.setdefault("HOME", identity.home or "/")
    return [f"{key}={value}" for key, value in env.items()]


def _identity(security: api.LinuxContainerSecurityContext, image: Mapping[str, Any], accounts: Accounts) -> Identity:
    user, group = image.get("User") or "", ""
    if security.run_as_username:
        user = security.run_as_username
    elif security.HasField("run_as_user"):
        user = str(security.run_as_user.value)
    if security.HasField("run_as_group"):
        if not security.run_as_username and not security.HasField("run_as_user"):
            raise InvalidArgument("run_as_group needs run_as_user or run_as_username")
        group = str(security.run_as_group.value)
    strict = getattr(security, "supplemental_groups_policy", 0) == 1
    return resolve_user(accounts, user, group, list(security.supplemental_groups), merge=not strict)


def _capabilities(security: api.LinuxContainerSecurityContext, host: HostFacts) -> tuple[list[str], list[str]]:
    """What the process may do, and what it keeps over an exec without being root."""
    available = [name for name, bit in BITS.items() if host.capabilities >> bit & 1]
    if security.privileged:
        return available, []
    wanted = set(DEFAULT_CAPABILITIES)
    asked = security.capabilities
    add = [_capability(name) for name in asked.add_capabilities]
    drop = [_capability(name) for name in asked.drop_capabilities]
    if "CAP_ALL" in add:
        wanted = set(available)
    if "CAP_ALL" in drop:
        wanted = set()
    wanted |= {name for name in add if name != "CAP_ALL"}
    wanted -= set(drop)
    ambient = [_capability(name) for name in asked.add_ambient_capabilities]
    wanted.update(ambient)
    unknown = wanted.difference(BITS)
    if unknown:
        raise InvalidArgument(f"unknown capabilities: {', '.join(sorted(unknown))}")
    return [name for name in BITS if name in wanted and name in available], ambient


def _capability(name: str) -> str:
    name = name.upper()
    return name if name.startswith("CAP_") else f"CAP_{name}"


def _namespaces(
    options: api.NamespaceOption, pod: PodFacts, host: HostFacts, target_pid: int, *, privileged: bool
) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{"type": "mount"}]
    if options.pid in (_CONTAINER, _POD):
        # POD is also what a client that says nothing sends. Without a process to keep a namespace for the whole pod, each
        # container gets its own: more private than was asked for, never less.
        found.append({"type": "pid"})
    elif options.pid == _TARGET:
        found.append({"type": "pid", "path": f"/proc/{target_pid}/ns/pid"})
    if options.ipc != _NODE:
        found.append({"type": "ipc", "path": f"{pod.ns}/ipc"})
    if pod.config.linux.security_context.namespace_options.network != _NODE:
        found.append({"type": "network", "path": f"{pod.ns}/net"})
        found.append({"type": "uts", "path": f"{pod.ns}/uts"})
    if host.cgroup_v2 and not privileged:
        found.append({"type": "cgroup"})
    if options.userns_options.mode == _POD and len(options.userns_options.uids):
        raise Unsupported("user namespaces are not supported yet")
    return found


def _mounts(
    config: api.ContainerConfig, security: api.LinuxContainerSecurityContext, pod: PodFacts
) -> list[dict[str, Any]]:
    own = {os.path.normpath(mount.container_path) for mount in config.mounts}
    access = "rw" if security.privileged else "ro"
    quiet = ["nosuid", "noexec", "nodev"]
    shm = "/dev/shm" if security.namespace_options.ipc == _NODE else pod.shm
    defaults: list[tuple[str, str, str, list[str]]] = [
        ("/proc", "proc", "proc", quiet),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/mqueue", "mqueue", "mqueue", quiet),
        ("/sys", "sysfs", "sysfs", [*quiet, access]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, "relatime", access]),
        ("/dev/shm", "bind", shm, ["rbind", "rprivate", "rw"]),
    ]
    file_access = "ro" if security.readonly_rootfs else "rw"
    defaults += [
        (f"/etc/{name}", "bind", f"{pod.files}/{name}", ["rbind", "rprivate", file_access])
        for name in ("hostname", "hosts", "resolv.conf")
    ]
    mounts: list[dict[str, Any]] = [
        {"destination": target, "type": kind, "source": source, "options": options}
        for target, kind, source, options in defaults
        if target not in own
    ]
    asked = [_mount(mount) for mount in config.mounts]
    # A mount below another one has to come after it.
    return mounts + sorted(asked, key=lambda mount: os.path.normpath(mount["destination"]).count("/"))


_PROPAGATION = {0: "rprivate", 1: "rslave", 2: "rshared"}


def _mount(mount: api.Mount) -> dict[str, Any]:
    if not mount.container_path:
        raise InvalidArgument("a mount has no container_path")
    target = mount.container_path if mount.container_path.startswith("/") else f"/{mount.container_path}"
    if mount.HasField("image") if "image" in mount.DESCRIPTOR.fields_by_name else False:
        raise Unsupported(f"mount {target}: images as mounts are not supported yet")
    if mount.uidMappings or mount.gidMappings:
        raise Unsupported(f"mount {target}: id-mapped mounts are not supported yet")
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidArgument(f"mount {target}: host_path {mount.host_path!r} is not an absolute path")
    source = os.path.realpath(mount.host_path)
    if not os.path.exists(source):
        os.makedirs(source, 0o755, exist_ok=True)  # as all CRI runtimes do
    if mount.propagation not in _PROPAGATION:
        raise InvalidArgument(f"mount {target}: propagation {mount.propagation} is not known")
    options = ["rbind", _PROPAGATION[mount.propagation]]
    if mount.recursive_read_only:
        if not mount.readonly or mount.propagation != 0:
            raise InvalidArgument(f"mount {target}: recursive_read_only needs readonly, and private propagation")
        options += ["ro", "rro"]
    else:
        options.append("ro" if mount.readonly else "rw")
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _rootfs_propagation(config: api.ContainerConfig) -> str:
    wanted = {mount.propagation for mount in config.mounts}
    return "rshared" if 2 in wanted else "rslave" if 1 in wanted else ""


def _resources(asked: api.LinuxContainerResources) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cpu: dict[str, Any] = {
        "shares": asked.cpu_shares, "quota": asked.cpu_quota, "period": asked.cpu_period,
        "cpus": asked.cpuset_cpus, "mems": asked.cpuset_mems,
    }  # fmt: skip
    if cpu := {key: value for key, value in cpu.items() if value}:
        found["cpu"] = cpu
    memory: dict[str, int] = {"limit": asked.memory_limit_in_bytes, "swap": asked.memory_swap_limit_in_bytes}
    if memory := {key: value for key, value in memory.items() if value}:
        found["memory"] = memory
    if asked.hugepage_limits:
        found["hugepageLimits"] = [{"pageSize": row.page_size, "limit": row.limit} for row in asked.hugepage_limits]
    if asked.unified:
        found["unified"] = dict(asked.unified)
    return found


def _devices(config: api.ContainerConfig, *, privileged: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The device nodes to make, and the rules of the devices cgroup."""
    if privileged:
        nodes = [node for node, _ in _nodes_below("/dev", "/dev")]
        return nodes, [{"allow": True, "access": "rwm"}]
    nodes, rules = [], [{"allow": False, "access": "rwm"}]
    for device in config.devices:
        source = os.path.realpath(device.host_path)
        try:
            found = _nodes_below(source, device.container_path or device.host_path)
        except OSError as error:
            raise InvalidArgument(f"device {device.host_path}: {error.strerror}") from error
        if not found:
            raise InvalidArgument(f"device {device.host_path}: it is not a device, nor a folder with some")
        for node, kind in found:
            nodes.append(node)
            numbers = {"major": node["major"], "minor": node["minor"]}
            rules.append({"allow": True, "type": kind, **numbers, "access": device.permissions or "rwm"})
    return nodes, rules


_NOT_DEVICES = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))


def _nodes_below(source: str, target: str) -> list[tuple[dict[str, Any], str]]:
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        nodes = []
        for entry in sorted(os.listdir(source)):
            if entry not in _NOT_DEVICES and (source, entry) != ("/dev", "console"):
                nodes += _nodes_below(f"{source}/{entry}", f"{target}/{entry}")
        return nodes
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        return []
    node = {
        "path": target, "type": kind, "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid,
    }  # fmt: skip
    return [(node, kind)]


def _seccomp(security: api.LinuxContainerSecurityContext, capabilities: Sequence[str]) -> dict[str, Any] | None:
    if security.privileged:
        return None
    if security.HasField("seccomp"):
        kind = api.SecurityProfile.ProfileType.Name(security.seccomp.profile_type)
        text = f"localhost/{security.seccomp.localhost_ref}" if kind == "Localhost" else kind
    else:
        text = security.seccomp_profile_path
    if text in ("", "unconfined", "Unconfined"):
        return None
    if text in ("runtime/default", "docker/default", "RuntimeDefault"):
        return default_profile(capabilities)
    if text.startswith("localhost/"):
        return read_profile(text.removeprefix("localhost/"))
    raise InvalidArgument(f"seccomp profile {text!r} is not understood")
