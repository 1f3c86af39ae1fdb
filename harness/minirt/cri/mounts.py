"""What is mounted in a container: what every container has, what its image declares, and what the client asks for.

Order, defaults and refusals are those of containerd: what a client mounts replaces a default at the same place, and mounts
are made from the top of the tree down, so that none hides another. Host paths that are missing are made, as folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.linux.mounts import Mount, read_mounts
from harness.minirt.cri.podfacts import PodFacts, id_map
from harness.minirt.errors import InvalidArgument, WrongState

_PRIVATE, _SLAVE, _SHARED = 0, 1, 2
_WORDS = {_PRIVATE: "rprivate", _SLAVE: "rslave", _SHARED: "rshared"}

Layers = Callable[[str], Sequence[str]]
"""the folders of an image's layers, topmost first, by what a client calls the image"""


def translate_mounts(
    config: api.ContainerConfig, pod: PodFacts, volumes: Mapping[str, str], layers: Layers
) -> list[dict[str, Any]]:
    """``mounts`` of config.json. `volumes`: place in the container → folder of the host, for what the image declares.

    Raises `InvalidArgument`, `WrongState` (propagation from a mount that does not propagate), `NotFound` (an image).
    """
    asked = {_target(mount.container_path): mount for mount in config.mounts}
    mounts = [
        row
        for row in _defaults(config)
        if row["destination"] not in asked and not ("/dev" in asked and row["destination"].startswith("/dev/"))
    ]
    bound = [(_target(mount.container_path), _asked_mount(mount, pod, layers)) for mount in config.mounts]
    bound += [(target, row) for target, row in _of_pod(config, pod) if target not in asked]
    bound += [
        (_target(target), _bind(target, source, ["rbind", "rprivate", "rw", "tmpcopyup"]) | pod.id_maps)
        for target, source in volumes.items()
        if _target(target) not in asked
    ]
    # A mount below another one has to come after it.
    bound.sort(key=lambda pair: pair[0].count("/"))
    return mounts + [row for _, row in bound]


def rootfs_propagation(config: api.ContainerConfig) -> str:
    """``rootfsPropagation`` that lets the mounts of `config` propagate; empty where none does."""
    wanted = {mount.propagation for mount in config.mounts}
    return "rshared" if _SHARED in wanted else "rslave" if _SLAVE in wanted else ""


def _target(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))


def _bind(target: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": _target(target), "type": "bind", "source": source, "options": options}


def _defaults(config: api.ContainerConfig) -> list[dict[str, Any]]:
    access = "rw" if config.linux.security_context.privileged else "ro"
    quiet = ["nosuid", "noexec", "nodev"]
    rows: list[tuple[str, str, str, list[str]]] = [
        ("/proc", "proc", "proc", quiet),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/mqueue", "mqueue", "mqueue", quiet),
        ("/sys", "sysfs", "sysfs", [*quiet, access]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, "relatime", access]),
    ]
    return [
        {"destination": target, "type": kind, "source": source, "options": options}
        for target, kind, source, options in rows
    ]


def _of_pod(config: api.ContainerConfig, pod: PodFacts) -> list[tuple[str, dict[str, Any]]]:
    security = config.linux.security_context
    shm = "/dev/shm" if pod.is_on_host("ipc") else pod.shm
    access = "ro" if security.readonly_rootfs else "rw"
    rows = [("/dev/shm", shm, "rw")]
    rows += [(f"/etc/{name}", f"{pod.files}/{name}", access) for name in ("hostname", "hosts", "resolv.conf")]
    return [(target, _bind(target, source, ["rbind", "rprivate", word])) for target, source, word in rows]


def _asked_mount(mount: api.Mount, pod: PodFacts, layers: Layers) -> dict[str, Any]:
    if _target(mount.container_path) == "/":
        raise InvalidArgument("a mount has no container_path, or one that is the root")
    if bool(mount.uidMappings) != bool(mount.gidMappings):
        raise InvalidArgument(f"mount {mount.container_path}: uidMappings and gidMappings have to be given together")
    if mount.HasField("image"):
        return _image(mount, layers) | pod.id_maps
    what = f"mount {mount.container_path}"
    if mount.image_sub_path:
        raise InvalidArgument(f"{what}: image_sub_path needs an image")
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidArgument(f"{what}: host_path {mount.host_path!r} is not an absolute path")
    if mount.propagation not in _WORDS:
        raise InvalidArgument(f"{what}: propagation {mount.propagation} is not known")
    if mount.recursive_read_only and not mount.readonly:
        raise InvalidArgument(f"{what}: recursive_read_only needs readonly")
    if mount.recursive_read_only and mount.propagation != _PRIVATE:
        raise InvalidArgument(f"{what}: recursive_read_only needs private propagation")
    source = os.path.realpath(mount.host_path)
    if not os.path.exists(source):
        try:
            os.makedirs(source, 0o755, exist_ok=True)
        except OSError as error:
            raise InvalidArgument(f"{what}: host_path {source} cannot be made: {error.strerror}") from error
    if mount.propagation != _PRIVATE:
        _check_propagation(what, source, shared=mount.propagation == _SHARED)
    access = ["rro"] if mount.recursive_read_only else ["ro" if mount.readonly else "rw"]
    found = _bind(mount.container_path, source, ["rbind", _WORDS[mount.propagation], *access])
    for key in ("uidMappings", "gidMappings"):
        if rows := [id_map(row.container_id, row.host_id, row.length) for row in getattr(mount, key)]:
            found[key] = rows
    return found


def _check_propagation(what: str, source: str, *, shared: bool) -> None:
    found = mount_of(read_mounts(), source)
    marks = ("shared:",) if shared else ("shared:", "master:")
    if not any(word.startswith(marks) for word in found.propagation):
        kind = "a shared mount" if shared else "a shared or slave mount"
        raise WrongState(f"{what}: path {source!r} is mounted on {found.target!r} but it is not {kind}")


def mount_of(mounts: Sequence[Mount], path: str) -> Mount:
    """The mount that a real, absolute path is in: the last of those whose place is the longest."""
    within = [row for row in mounts if path == row.target or path.startswith(row.target.rstrip("/") + "/")]
    return max(reversed(within), key=lambda row: len(row.target))


def _image(mount: api.Mount, layers: Layers) -> dict[str, Any]:
    """An image's files as a read-only folder (Kubernetes' image volumes)."""
    what = f"mount {mount.container_path}"
    if mount.host_path:
        raise InvalidArgument(f"{what}: host_path has to be empty where an image is mounted")
    if not mount.readonly:
        raise InvalidArgument(f"{what}: an image can only be mounted readonly")
    if not mount.image.image:
        raise InvalidArgument(f"{what}: the image has no name")
    if "," in mount.image_sub_path or ".." in mount.image_sub_path.split("/"):
        raise InvalidArgument(f"{what}: image_sub_path {mount.image_sub_path!r} is not a path inside the image")
    folders = list(layers(mount.image.image))
    options = ["ro", *([f"X-mount.subdir={mount.image_sub_path}"] if mount.image_sub_path else [])]
    if len(folders) == 1:  # which overlayfs refuses
        return _bind(mount.container_path, folders[0], ["bind", "rprivate", *options])
    target = _target(mount.container_path)
    return {
        "destination": target,
        "type": "overlay",
        "source": "overlay",
        "options": [f"lowerdir={':'.join(folders)}", *options],
    }
