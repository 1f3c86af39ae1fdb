"""What a runtime sets in the kernel for a container: capabilities, sysctls, hidden paths, execution domain (config.md, "Linux
Process"; config-linux.md, "Sysctl", "Masked Paths", "Readonly Paths", "Personality", "Default Filesystems").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.model.area import OciArea
from harness.session.oci import OciTrial
from harness.session.oci_breach import drops, puts, refuses, takes
from harness.session.oci_config import mount
from harness.session.oci_facts import CAPABILITY_SETS

pytestmark = [pytest.mark.operation(OciArea.KERNEL), pytest.mark.kernel]

SETS = {
    "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_RAW"],
    "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
    "effective": ["CAP_CHOWN", "CAP_KILL"],
    "inheritable": ["CAP_CHOWN", "CAP_SETUID"],
    "ambient": ["CAP_CHOWN"],
}
USER = {"process.user": {"uid": 1000, "gid": 1000}}


def kept(oci: OciTrial, capabilities: Any, **more: Any) -> dict[str, set[str]]:
    """The sets of a container's process."""
    return oci.probe("proc:status", changes={"process.capabilities": capabilities, **more}).capabilities


# Capabilities


@pytest.mark.breach(puts("process.capabilities.bounding", ["CAP_CHOWN", "CAP_SYS_CHROOT"]))
def test_bounding_set(oci: OciTrial) -> None:
    """Linux process: "bounding (array of strings, OPTIONAL) the bounding field is an array of bounding capabilities that are kept
    for the process".
    """
    assert kept(oci, SETS)["bounding"] == set(SETS["bounding"])


@pytest.mark.breach(drops("process.capabilities.inheritable", "process.capabilities.ambient"))
@pytest.mark.parametrize("kind", ["inheritable", "ambient"])
def test_set_that_is_handed_on(oci: OciTrial, kind: str) -> None:
    """Linux process: inheritable and ambient: "that are kept for the process"."""
    assert kept(oci, SETS, **USER)[kind] == set(SETS[kind])  # type: ignore[arg-type]


@pytest.mark.breach(drops("process.capabilities.ambient"))
def test_ambient_capabilities_are_effective_for_a_user(oci: OciTrial) -> None:
    """Linux process: what an unprivileged user has after execve(2) is what is ambient (capabilities(7))."""
    found = kept(oci, SETS, **USER)  # type: ignore[arg-type]
    assert found["effective"] == found["permitted"] == {"CAP_CHOWN"}


@pytest.mark.breach(puts("process.capabilities", {"bounding": ["CAP_CHOWN"], "permitted": [], "effective": []}))
def test_root_has_what_is_bounded(oci: OciTrial) -> None:
    """Linux process: after execve(2) by root the permitted set is what bounding and inheritable leave (capabilities(7))."""
    names = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    found = kept(oci, {"bounding": names, "permitted": names, "effective": names})
    assert found["permitted"] == found["effective"] == set(names)
    assert found["inheritable"] == found["ambient"] == set()


@pytest.mark.breach(puts("process.capabilities", {kind: ["CAP_CHOWN"] for kind in CAPABILITY_SETS}))
def test_no_capabilities(oci: OciTrial) -> None:
    """Linux process: "capabilities (object, OPTIONAL) is an object containing arrays that specifies the sets of capabilities for the
    process": empty arrays leave none.
    """
    found = kept(oci, {kind: [] for kind in CAPABILITY_SETS})
    assert found == {kind: set() for kind in CAPABILITY_SETS}


@pytest.mark.breach(refuses("create"))
def test_unknown_capabilities_are_no_error(oci: OciTrial) -> None:
    """Linux process: "Any value which cannot be mapped to a relevant kernel interface, or cannot be granted otherwise, MUST be logged
    as a warning by the runtime. Runtimes SHOULD NOT fail".
    """
    names = ["CAP_CHOWN", "CAP_NO_SUCH_THING"]
    found = kept(oci, {"bounding": names, "permitted": names, "effective": names})
    assert found["bounding"] == {"CAP_CHOWN"}


@pytest.mark.breach(drops("process.noNewPrivileges"))
def test_no_new_privileges(oci: OciTrial) -> None:
    """Linux process: "noNewPrivileges (bool, OPTIONAL) setting noNewPrivileges to true prevents the process from gaining additional
    privileges".
    """
    assert oci.probe("proc:status", changes={"process.noNewPrivileges": True}).status("NoNewPrivs") == "1"


@pytest.mark.breach(puts("process.noNewPrivileges", True))
def test_new_privileges_by_default(oci: OciTrial) -> None:
    """Linux process: noNewPrivileges is OPTIONAL."""
    assert oci.probe("proc:status").status("NoNewPrivs") == "0"


# Sysctls


@pytest.mark.breach(drops("linux.sysctl"))
def test_sysctl(oci: OciTrial) -> None:
    """Sysctl: "sysctl (object, OPTIONAL) allows kernel parameters to be modified at runtime for the container"."""
    changes = {
        "linux.sysctl": {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "33"},
        "linux.namespaces.+": {"type": "network"},
    }
    paths = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/fs/mqueue/msg_max")
    before = [oci.shell(f"cat {path}") for path in paths]
    facts = oci.probe(*(f"file:{path}" for path in paths), changes=changes)
    assert [facts.text(f"file:{path}") for path in paths] == ["1\n", "1\n", "33\n"]
    assert [oci.shell(f"cat {path}") for path in paths] == before


@pytest.mark.breach(drops("linux.sysctl"))
def test_sysctl_by_path(oci: OciTrial) -> None:
    """Sysctl: as sysctl(8) has it, a slash may stand for a dot, so that a part of the name can have a dot in it."""
    changes = {"linux.sysctl": {"net/ipv4/ip_forward": "1"}, "linux.namespaces.+": {"type": "network"}}
    assert (
        oci.probe("file:/proc/sys/net/ipv4/ip_forward", changes=changes).text("file:/proc/sys/net/ipv4/ip_forward")
        == "1\n"
    )


# Hidden and read-only paths


@pytest.mark.breach(drops("linux.maskedPaths"))
def test_masked_file(oci: OciTrial) -> None:
    """Masked paths: "will mask over the provided paths inside the container so that they cannot be read"."""
    masked = ["/proc/keys", "/proc/timer_list", "/etc/passwd"]
    facts = oci.probe(*(f"file:{path}" for path in masked), changes={"linux.maskedPaths": masked})
    assert [facts[f"file:{path}"] or "" for path in masked] == ["", "", ""]


@pytest.mark.breach(drops("linux.maskedPaths"))
def test_masked_folder(oci: OciTrial) -> None:
    """Masked paths: a folder shows nothing, and takes nothing."""
    facts = oci.probe("list:/home", "write:/home", changes={"linux.maskedPaths": ["/home"]})
    assert (facts["list:/home"], facts["write:/home"]) == ("", False)


@pytest.mark.breach(refuses("create"))
def test_masked_path_that_is_not_there(oci: OciTrial) -> None:
    """Masked paths: what is not there need not be hidden: engines list paths of other kernels."""
    changes = {"linux.maskedPaths": ["/proc/no/such/thing"], "linux.readonlyPaths": ["/proc/no/such/other"]}
    assert oci.probe("pid", changes=changes)["pid"] == 1


@pytest.mark.breach(drops("linux.readonlyPaths"))
def test_read_only_path(oci: OciTrial) -> None:
    """Readonly paths: "will set the provided paths as readonly inside the container"."""
    changes = {"linux.readonlyPaths": ["/proc/sys", "/etc", "/bin/true"]}
    facts = oci.probe("write:/etc", "write:/bin/true", "proc:mountinfo", "file:/etc/group", changes=changes)
    assert (facts["write:/etc"], facts["write:/bin/true"]) == (False, False)
    assert facts.mount("/proc/sys").read_only
    assert facts["file:/etc/group"]


@pytest.mark.breach(drops("linux.readonlyPaths"))
def test_read_only_path_keeps_its_other_options(oci: OciTrial) -> None:
    """Readonly paths: read-only is added to what the mount was: nosuid, nodev and noexec stay."""
    box = oci.box({"mounts.0": mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev")})
    facts = oci.probe("proc:mountinfo", changes={"linux.readonlyPaths": ["/proc/sys"]}, box=box)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(facts.mount("/proc/sys").options)


# Execution domain


def of_32_bits(config: Any) -> Any:
    """A runtime that has programs see a machine of 32 bits."""
    config["process"]["args"] = ["/bin/busybox", "linux32", *config["process"]["args"]]
    return config


@pytest.mark.breach(drops("linux.personality"))
def test_personality(oci: OciTrial) -> None:
    """Personality: "LINUX32": the process is told of a machine of 32 bits (personality(2))."""
    facts = oci.probe("proc:personality", changes={"linux.personality": {"domain": "LINUX32"}})
    assert int(facts.text("proc:personality"), 16) & 0xFF == 8


@pytest.mark.breach(takes(of_32_bits))
def test_personality_by_default(oci: OciTrial) -> None:
    """Personality is OPTIONAL."""
    assert int(oci.probe("proc:personality").text("proc:personality"), 16) & 0xFF == 0


# Memory of several nodes


@pytest.mark.breach(drops("linux.memoryPolicy"))
def test_memory_policy(oci: OciTrial) -> None:
    """Memory policy: "memoryPolicy (object, OPTIONAL) sets the NUMA memory policy for the container"."""
    oci.needs_feature("linux.memoryPolicy.modes", "MPOL_BIND")
    oci.needs(Path("/proc/self/numa_maps").exists(), "the kernel knows no memory policies")
    facts = oci.probe("proc:numa_maps", changes={"linux.memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}})
    assert {line.split()[1] for line in facts.text("proc:numa_maps").splitlines()} == {"bind:0"}


# Default file systems


@pytest.mark.breach(drops("mounts.2"))
def test_proc_and_devpts(oci: OciTrial) -> None:
    """Default Filesystems: /proc is proc, /dev/pts is devpts: of its own, so that terminals of the machine are not in it."""
    facts = oci.probe("proc:mountinfo", "list:/dev/pts", "stat:/dev/pts/ptmx")
    assert facts.mount("/proc").fstype == "proc"
    assert facts.mount("/dev/pts").fstype == "devpts"
    assert facts.text("list:/dev/pts").split() == ["ptmx"]


@pytest.mark.breach(drops("mounts.-1"))
def test_sysfs(oci: OciTrial) -> None:
    """Default Filesystems: /sys is sysfs: of the container's network namespace."""
    changes = {"linux.namespaces.+": {"type": "network"}, "mounts.+": mount("/sys", "sysfs", "sysfs", "nosuid", "ro")}
    facts = oci.probe("list:/sys/class/net", "proc:mountinfo", changes=changes)
    assert facts.mount("/sys").fstype == "sysfs"
    assert facts.text("list:/sys/class/net").split() == ["lo"]
