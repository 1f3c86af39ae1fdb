"""What minirt says about itself: version and features; and a config.json to start from."""

from __future__ import annotations

import os
import sys

import harness
from harness.linux.capabilities import NAMES
from harness.minirt.container import document
from harness.minirt.container.hooks import NAMES as HOOKS
from harness.minirt.container.options import ATTRIBUTES, EXTENSIONS, FLAGS, PROPAGATION
from harness.minirt.container.scheduling import MEMORY_FLAGS, MEMORY_MODES
from harness.minirt.container.seccomp import _ACTIONS, _FLAGS, _OPERATORS, ARCHITECTURES
from harness.minirt.container.spec import NAMESPACES, SPEC_VERSION
from harness.minirt.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.minirt.oci.arguments import Words

_DEFAULT_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]


def version_text() -> str:
    """In the form that engines read of runc: name, "version", number, then labelled lines."""
    return f"minirt version {harness.__version__}\ncommit: v{harness.__version__}\nspec: {SPEC_VERSION}\n"


def features() -> dict[str, Any]:
    """The features document of the specification (features.md)."""
    words = {*FLAGS, *PROPAGATION, *(f"r{word}" for word in ATTRIBUTES), *EXTENSIONS}
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "annotations": {
            "io.seatrial.minirt.version": harness.__version__,
            # Callers ask for it by runc's name, which is meant for others too.
            "org.opencontainers.runc.checkpoint.enabled": "true",
            **_seccomp_version(),
        },
        "hooks": list(HOOKS),
        "mountOptions": sorted(words),
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property.", "org.criu.config"],
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": list(NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": _has_seccomp(),
                "actions": sorted(_ACTIONS),
                "operators": sorted(_OPERATORS),
                "archs": sorted(ARCHITECTURES),
                "knownFlags": sorted(_FLAGS),
                "supportedFlags": sorted(_FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "memoryPolicy": {"modes": list(MEMORY_MODES), "flags": list(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }


def _has_seccomp() -> bool:
    return bool(_seccomp_version())


def _seccomp_version() -> dict[str, str]:
    """libseccomp's, by the annotation that runtimes agree on; nothing where it is not installed."""
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return {}
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return {"io.github.seccomp.libseccomp.version": ".".join(map(str, library.seccomp_version().contents))}


def print_features() -> int:
    """Print the features document."""
    sys.stdout.write(document.render(features(), "  ") + "\n")
    return 0


def write_spec(words: Words) -> int:
    """Write config.json into the bundle, with ``--rootless`` one for a user who is not root; refuses to overwrite one."""
    path = f"{words.value('bundle', '.')}/config.json"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise UsageError(f"File {path} exists. Remove it first") from None
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    config = default_config()
    if words.has("rootless"):
        make_rootless(config)
    os.write(fd, (document.render(config, "  ") + "\n").encode())
    os.close(fd)
    return 0


def default_config() -> dict[str, Any]:
    """A shell in namespaces of its own, with few privileges."""
    sets = ("bounding", "effective", "permitted")
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(sets, _DEFAULT_CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "minirt",
        "mounts": [
            _mount("/proc", "proc", "proc", ""),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
            _mount("/dev/pts", "devpts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
            _mount("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=65536k"),
            _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
            _mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def make_rootless(config: dict[str, Any]) -> None:
    """Change a config so that the calling user can run it: a user namespace in which it is root, and nothing that only root has.

    That is the machine's network (a new one could not be connected to anything), its ``/sys``, and no limits.
    """
    linux = config["linux"]
    kept = [entry for entry in linux["namespaces"] if entry["type"] not in ("network", "user")]
    linux["namespaces"] = [*kept, {"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    for mount in config["mounts"]:
        if mount["destination"] == "/sys":
            mount |= {"type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}
        # Ids that are not mapped cannot own anything.
        mount["options"] = [word for word in mount["options"] if not word.startswith(("gid=", "uid="))]
    del linux["resources"]


def _mount(destination: str, kind: str, source: str, options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options.split()}
