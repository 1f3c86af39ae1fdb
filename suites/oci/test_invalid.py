"""Configurations that have to be refused before anything is created ("Valid values" in config.md, and each field's own)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_breach import accepts
from harness.session.oci_config import GONE, bind
from harness.session.oci_config import Path as FieldPath

pytestmark = pytest.mark.operation(OciArea.CONFIG)

Changes = Mapping[FieldPath, Any]
SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NATIVE"]}
NAMESPACES = ("pid", "ipc", "uts", "mount")


def namespaces(*more: Mapping[str, Any], without: str = "") -> Changes:
    return {"linux.namespaces": [*({"type": kind} for kind in NAMESPACES if kind != without), *more]}


def seccomp(**more: Any) -> Changes:
    return {"linux.seccomp": {**SECCOMP, **more}}


def rule(**more: Any) -> Changes:
    return seccomp(syscalls=[{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", **more}])


def hook(**more: Any) -> Changes:
    # It takes a while: of a timeout that is over at once, a runtime would else see now and then that it was kept.
    return {"hooks.createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1"], **more}]}


def rlimit(kind: str, count: int = 1) -> Changes:
    return {"process.rlimits": [{"type": kind, "soft": 64, "hard": 64}] * count}


INVALID: dict[str, tuple[Changes, str]] = {
    "root-missing": ({"root": GONE}, 'Root: "On all other platforms, this field is REQUIRED"'),
    "root-nowhere": ({"root.path": "nowhere"}, 'Root: "A directory MUST exist at the path declared by the field"'),
    "root-file": ({"root.path": "config.json"}, 'Root: "A directory MUST exist at the path declared by the field"'),
    "args-empty": ({"process.args": []}, 'Process: args "specifies the binary and arguments": "one or more"'),
    "args-word": ({"process.args": "/bin/true"}, 'Process: "args (array of strings, OPTIONAL)"'),
    "cwd-relative": ({"process.cwd": "tmp"}, 'Process: cwd "MUST be an absolute path"'),
    "cwd-missing": ({"process.cwd": GONE}, 'Process: "cwd (string, REQUIRED)"'),
    "uid-negative": ({"process.user.uid": -1}, 'User: "uid (int, REQUIRED) specifies the user ID": an unsigned one'),
    "uid-word": ({"process.user.uid": "root"}, 'User: "uid (int, REQUIRED)"'),
    "terminal-word": ({"process.terminal": "yes"}, 'Process: "terminal (bool, OPTIONAL)"'),
    "terminal-without-socket": (
        {"process.terminal": True},
        "Command line, create: a terminal is passed through --console-socket; without one there is no way to it",
    ),
    "rlimit-unknown": (
        rlimit("RLIMIT_NONESUCH"),
        'rlimits: "The runtime MUST generate an error for any values which cannot be mapped to a relevant kernel interface"',
    ),
    "rlimit-twice": (
        rlimit("RLIMIT_NOFILE", 2),
        'rlimits: "If rlimits contains duplicated entries with same type, the runtime MUST generate an error"',
    ),
    "oom-score-range": ({"process.oomScoreAdj": 2000}, "oomScoreAdj: proc_pid_oom_score_adj(5) goes from -1000 to 1000"),
    "namespace-unknown": (namespaces({"type": "harbour"}), 'Namespaces: "type (string, REQUIRED)": one that there is'),
    "namespace-twice": (
        namespaces({"type": "uts"}),
        'Namespaces: "If a namespaces field contains duplicated namespaces with same type, the runtime MUST generate an error"',
    ),
    "namespace-nowhere": (
        namespaces({"type": "network", "path": "/proc/self/nowhere"}),
        'Namespaces: "The runtime MUST place the container process in the namespace associated with that path"',
    ),
    "namespace-wrong-type": (
        namespaces({"type": "network", "path": "/proc/1/ns/uts"}),
        'Namespaces: "MUST generate an error if path is not associated with a namespace of type type"',
    ),
    "namespace-no-namespace": (
        namespaces({"type": "network", "path": "/dev/null"}),
        'Namespaces: "MUST generate an error if path is not associated with a namespace of type type"',
    ),
    "namespace-relative": (
        namespaces({"type": "network", "path": "proc/1/ns/net"}),
        'Namespaces: "This value MUST be an absolute path in the runtime mount namespace"',
    ),
    "mount-without-destination": (
        {"mounts.+": {"type": "tmpfs", "source": "tmpfs"}},
        'Mounts: "destination (string, REQUIRED)"',
    ),
    "mount-no-source": ({"mounts.+": bind("/nowhere/at/all", "/x")}, 'Mounts: what is bound has to be there'),
    "mount-unknown-type": (
        {"mounts.+": {"destination": "/x", "type": "nonesuchfs", "source": "x"}},
        'Mounts: "type (string, OPTIONAL) The type of the filesystem to be mounted"',
    ),
    "mount-unknown-option": (
        {"mounts.+": {"destination": "/x", "type": "tmpfs", "source": "x", "options": ["nonesuch=1"]}},
        'Mounts: "Runtimes SHOULD treat unknown options as filesystem-specific ones": which tmpfs refuses',
    ),
    "device-unknown-type": (
        {"linux.devices": [{"path": "/dev/x", "type": "q", "major": 1, "minor": 3}]},
        'Devices: "type (string, REQUIRED) - type of device: c, b, u or p"',
    ),
    "device-without-path": (
        {"linux.devices": [{"type": "c", "major": 1, "minor": 3}]},
        'Devices: "path (string, REQUIRED) - full path to device inside container"',
    ),
    "sysctl-unknown": ({"linux.sysctl": {"net.nonesuch": "1"}}, 'Sysctl: "kernel parameters to be modified at runtime"'),
    "sysctl-without-namespace": (
        {**namespaces(without="ipc"), "linux.sysctl": {"kernel.shmmax": "65536"}},
        "Sysctl: one of a namespace that the container does not have would change the machine",
    ),
    "sysctl-of-the-machine": (
        {"linux.sysctl": {"vm.swappiness": "60"}},
        "Sysctl: one that is of no namespace would change the machine",
    ),
    "propagation-unknown": (
        {"linux.rootfsPropagation": "sideways"},
        'Rootfs mount propagation: "Its value is either shared, slave, private or unbindable"',
    ),
    "personality-unknown": (
        {"linux.personality": {"domain": "SOLARIS"}},
        'Personality: "domain (string, REQUIRED) - execution domain": LINUX or LINUX32',
    ),
    "seccomp-action": (seccomp(defaultAction="SCMP_ACT_NONESUCH"), "Seccomp: the values of defaultAction are listed"),
    "seccomp-architecture": (seccomp(architectures=["SCMP_ARCH_NONESUCH"]), "Seccomp: architectures are listed"),
    "seccomp-flag": (seccomp(flags=["SECCOMP_FILTER_FLAG_NONESUCH"]), "Seccomp: flags are listed"),
    "seccomp-rule-action": (rule(action="SCMP_ACT_NONESUCH"), "Seccomp: actions are listed"),
    "seccomp-operator": (
        rule(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_NONESUCH"}]),
        "Seccomp: operators are listed",
    ),
    "seccomp-no-names": (rule(names=[]), 'Seccomp: "names MUST contain at least one entry"'),
    "seccomp-errno-of-kill": (
        rule(action="SCMP_ACT_KILL", errnoRet=1),
        'Seccomp: "When the action doesn\'t support an errno, the runtime MUST print and error and fail"',
    ),
    "seccomp-default-errno-of-allow": (
        seccomp(defaultErrnoRet=1),
        'Seccomp: "When the action doesn\'t support an errno, the runtime MUST print and error and fail"',
    ),
    "seccomp-metadata-alone": (
        seccomp(listenerMetadata="x"),
        'Seccomp: listenerMetadata "MUST NOT be set if listenerPath is not set"',
    ),
    "hook-relative": (hook(path="bin/true"), 'Hooks: "path MUST be absolute"'),
    "hook-missing": (hook(path="/nowhere/at/all"), 'Lifecycle, 4: "If any createRuntime hook fails, [...] generate an error"'),
    "hook-timeout": (hook(timeout=-1), 'Hooks: "If set, timeout MUST be greater than zero"'),
    "hook-timeout-zero": (hook(timeout=0), 'Hooks: "If set, timeout MUST be greater than zero"'),
    "annotation-number": ({"annotations": {"org.example.x": 1}}, 'Annotations: "Values MUST be strings"'),
    "masked-relative": (
        {"linux.maskedPaths": ["proc/kcore"]},
        'Masked paths: "The values MUST be absolute paths in the container namespace"',
    ),
    "readonly-relative": (
        {"linux.readonlyPaths": ["proc/sys"]},
        'Readonly paths: "The values MUST be absolute paths in the container namespace"',
    ),
    "memory-word": ({"linux.resources.memory.limit": "64M"}, 'Memory: "limit (int64, OPTIONAL)"'),
    "pids-word": ({"linux.resources.pids.limit": "many"}, 'PIDs: "limit (int64, OPTIONAL)"'),
    "cpus-unknown": ({"linux.resources.cpu.cpus": "4096-4099"}, 'CPU: "cpus (string, OPTIONAL) - list of CPUs": that are there'),
    "device-rule-access": (
        {"linux.resources.devices": [{"allow": True, "type": "c", "access": "xyz"}]},
        'Allowed Device list: access is "cgroup permissions for device": r, w and m',
    ),
}  # fmt: skip
"""What is wrong, and the sentence that says so."""


@pytest.mark.breach(accepts("create"))
@pytest.mark.parametrize("what", INVALID)
def test_what_is_invalid_is_refused(oci: OciTrial, what: str) -> None:
    """Valid values: "Runtimes MUST generate an error when invalid or unsupported values are encountered"; Create: "and a new
    container MUST NOT be created".
    """
    changes, _ = INVALID[what]
    assert oci.cannot_create(oci.box(changes, None if "process.args" in changes else SLEEP))


@pytest.mark.breach(accepts("create"))
def test_intel_rdt_without_resctrl_is_refused(oci: OciTrial) -> None:
    """IntelRdt: "If no mounted resctrl pseudo-filesystem is available in the runtime mount namespace, the runtime MUST generate
    an error".
    """
    oci.needs("resctrl" not in oci.shell("cat /proc/mounts"), "resctrl is mounted")
    assert oci.cannot_create(oci.box({"linux.intelRdt": {"closID": "guaranteed", "l3CacheSchema": "L3:0=1"}}, SLEEP))


@pytest.mark.breach(accepts("create"))
def test_a_cgroups_path_that_is_none_is_refused(oci: OciTrial) -> None:
    """Cgroups Path: "Runtimes MAY consider certain cgroupsPath values to be invalid, and MUST generate an error if this is the
    case": what is no string is none.
    """
    box = oci.box(args=SLEEP)
    box.set("linux.cgroupsPath", ["not", "a", "path"])
    assert oci.cannot_create(box)
