"""The ``config.json`` of a container for an OCI runtime that is driven by itself (runtime-spec 1.0.2).

It asks for what containerd and Docker ask for by default: the same mounts, capabilities, masked and read-only paths. A root
that containers share is read-only, with a writable ``/tmp``, so that none changes what the others see. Nothing in it needs a privilege that a plain root may lack: no limits are raised, no score of the out-of-memory killer lowered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.model.container import ContainerSpec

CAPABILITIES = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/tmp", "tmpfs", "tmpfs", ("nosuid", "nodev", "mode=1777")),
)  # fmt: skip
# A sysfs can be mounted only by an owner of the network namespace that it shows; the engine's own is bound instead.
_SYS = {
    "destination": "/sys",
    "type": "none",
    "source": "/sys",
    "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
}


def oci_config(spec: ContainerSpec, rootfs: Path, cgroup_parent: str, *, readonly: bool = True) -> dict[str, Any]:
    """The configuration of `spec` on the unpacked image `rootfs`; its network namespace is the runtime's own."""
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs), "readonly": readonly},
        "hostname": spec.name,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(spec.argv),
            "env": [_PATH, *(f"{key}={value}" for key, value in spec.env), f"SEATRIAL_ID={spec.name}"],
            "cwd": "/",
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "mounts": [
            *(
                {"destination": target, "type": kind, "source": source, "options": list(options)}
                for target, kind, source, options in _MOUNTS
            ),
            _SYS,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    if cgroup_parent:
        config["linux"]["cgroupsPath"] = f"{cgroup_parent}/{spec.name}"
    return config
