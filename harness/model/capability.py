"""What a subject can do. Suites ask for capabilities, never for a subject's name."""

from __future__ import annotations

from enum import StrEnum


class Capability(StrEnum):
    """One thing a subject declares and a probe confirms. Declared but absent is a failure; undeclared is `n/a`."""

    IMAGES = "images"
    """pulls from a registry, and removes what it pulled"""
    SANDBOX = "sandbox"
    """has pods (CRI pod sandboxes)"""
    CRI = "cri"
    """speaks the Container Runtime Interface"""
    OCI = "oci"
    """is an OCI runtime, driven by its own command line"""
    EXEC = "exec"
    PAUSE = "pause"
    """pauses and resumes, by its API or by its engine's native tool (the record's `via` tells)"""
    LOGS = "logs"
    """keeps, or hands on, what a container printed, stdout and stderr apart"""
    LOG_TIMESTAMPS = "log_timestamps"
    """gives each line a time"""
    BRIDGE = "bridge"
    """joins a container to a network of its own (CNI or the engine's)"""
    EXIT_CODE = "exit_code"
    """tells with which status a container ended"""
    OWN_KERNEL = "own_kernel"
    """runs containers on a kernel of its own: the machine's sees nothing of them"""


WHY_NOT: dict[Capability, str] = {
    Capability.IMAGES: "has no images: the harness unpacks a bundle for it",
    Capability.SANDBOX: "has no pods",
    Capability.CRI: "does not speak CRI",
    Capability.OCI: "is no OCI runtime that is driven by its own command line",
    Capability.EXEC: "has no exec",
    Capability.PAUSE: "has no pause, and its engine has no native tool that does it",
    Capability.LOGS: "keeps no logs",
    Capability.LOG_TIMESTAMPS: "hands output on without a time",
    Capability.BRIDGE: "sets up no network of its own",
    Capability.EXIT_CODE: "does not tell how a container ended",
    Capability.OWN_KERNEL: "runs containers on the machine's kernel",
}
"""The reason that an `n/a` cell gives."""
