"""From CRI's ContainerConfig and an image's configuration to a config.json of the OCI runtime specification.

Pure, but for a look at the host paths that are to be mounted and the devices that are to be made. What clients may see of
it (defaults of mounts, capabilities, paths) is what containerd gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.cdi import asked_devices, inject_devices
from harness.minirt.cri.devices import translate_devices
from harness.minirt.cri.host import HostFacts
from harness.minirt.cri.mounts import Layers, rootfs_propagation, translate_mounts
from harness.minirt.cri.podfacts import PodFacts
from harness.minirt.cri.resources import translate_resources
from harness.minirt.cri.security import check_selinux, translate_apparmor, translate_capabilities, translate_seccomp
from harness.minirt.cri.users import Accounts, Identity, resolve_user
from harness.minirt.errors import InvalidArgument

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_BYTES = 64 << 20
_CONTAINER, _TARGET = api.NamespaceMode.CONTAINER, api.NamespaceMode.TARGET


def translate(
    config: api.ContainerConfig,
    image: Mapping[str, Any],
    accounts: Accounts,
    pod: PodFacts,
    host: HostFacts,
    *,
    rootfs: str,
    cgroup: str,
    volumes: Mapping[str, str],
    layers: Layers,
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
    capabilities = translate_capabilities(security, host)
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)},
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": capabilities,
        "noNewPrivileges": security.no_new_privs,
    }
    check_selinux(security, host)
    if profile := translate_apparmor(security, host):
        process["apparmorProfile"] = profile
    resources = config.linux.resources
    if config.linux.HasField("resources"):
        score = resources.oom_score_adj
        process["oomScoreAdj"] = score if host.lowest_oom_score is None else max(score, host.lowest_oom_score)
    nodes, rules = translate_devices(config)
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup,
        "namespaces": _namespaces(security.namespace_options, pod, host, target_pid, privileged=security.privileged),
        "resources": {**translate_resources(resources, host), "devices": rules},
        "devices": nodes,
        **pod.id_maps,
    }
    if not security.privileged:
        # As they come: none is what a client sends who wants nothing masked (Kubernetes' procMount: Unmasked).
        linux["maskedPaths"] = list(security.masked_paths)
        linux["readonlyPaths"] = list(security.readonly_paths)
    if filter := translate_seccomp(security, capabilities["bounding"]):
        linux["seccomp"] = filter
    if propagation := rootfs_propagation(config):
        linux["rootfsPropagation"] = propagation
    spec = {
        "ociVersion": "1.1.0",
        "root": {"path": rootfs, "readonly": security.readonly_rootfs},
        "process": process,
        "mounts": translate_mounts(config, pod, volumes, layers),
        "annotations": dict(config.annotations),
        "linux": linux,
    }
    inject_devices(spec, asked_devices(config), host.cdi_folders)
    return spec, identity


def _args(config: api.ContainerConfig, image: Mapping[str, Any]) -> list[str]:
    command, args = list(config.command), list(config.args)
    if not command:
        command = list(image.get("Entrypoint") or ())
        command = [] if command == [""] else command
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
    policy = security.supplemental_groups_policy
    if policy not in api.SupplementalGroupsPolicy.values():
        raise InvalidArgument(f"supplemental_groups_policy {policy} is not known")
    strict = policy == api.SupplementalGroupsPolicy.Strict
    return resolve_user(accounts, user, group, list(security.supplemental_groups), merge=not strict)


def _namespaces(
    options: api.NamespaceOption, pod: PodFacts, host: HostFacts, target_pid: int, *, privileged: bool
) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{"type": "mount"}]
    if options.pid == _CONTAINER:
        found.append({"type": "pid"})
    elif options.pid == _TARGET:
        found.append({"type": "pid", "path": f"/proc/{target_pid}/ns/pid"})
    elif not pod.is_on_host("pid"):
        found.append({"type": "pid", "path": f"{pod.ns}/pid"})
    if not pod.is_on_host("ipc"):
        found.append({"type": "ipc", "path": f"{pod.ns}/ipc"})
    if not pod.is_on_host("network"):
        found.append({"type": "network", "path": f"{pod.ns}/net"})
        found.append({"type": "uts", "path": f"{pod.ns}/uts"})
    if host.cgroup_v2 and not privileged:
        found.append({"type": "cgroup"})
    if pod.user is not None:
        found.append({"type": "user", "path": f"{pod.ns}/user"})
    return found
