"""The document of what a runtime can do (features.md, features-linux.md): it is well formed, and true."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from harness.errors import NotExpressible
from harness.linux.capabilities import NAMES
from harness.linux.cgroups import Mode
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_breach import answers, refuses, says
from harness.session.oci_config import mount

pytestmark = pytest.mark.operation(OciArea.FEATURES)


def document(oci: OciTrial) -> dict[str, Any]:
    """What the test's own command prints. Raises `NotExpressible` where a runtime has no such verb, `AssertionError`."""
    if oci.features is None:
        raise NotExpressible(oci.trial.subject.name, "has no features document (features.md)")
    said = oci.do("features").text
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    assert isinstance(found, dict), f"features printed no JSON object but {said[:200]!r}"
    return found


def number(version: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", version)[:3]]


@pytest.mark.breach(says("features", stdout=b"enabled\n"))
def test_document(oci: OciTrial) -> None:
    """Features: "a JSON object": ociVersionMin and ociVersionMax are REQUIRED."""
    found = document(oci)
    assert isinstance(found["ociVersionMin"], str)
    assert isinstance(found["ociVersionMax"], str)


@pytest.mark.breach(answers("features", "ociVersionMax", "0.9.0"))
def test_versions(oci: OciTrial) -> None:
    """Features, ociVersionMax: "The value MUST NOT be less than the value of the ociVersionMin property"."""
    found = document(oci)
    assert number(found["ociVersionMin"]) <= number(found["ociVersionMax"])


@pytest.mark.breach(refuses("create"))
@pytest.mark.parametrize("which", ["ociVersionMin", "ociVersionMax"])
def test_the_versions_are_accepted(oci: OciTrial, which: str) -> None:
    """Features: "The runtime MUST accept this value as the ociVersion property of config.json"."""
    oci.create(oci.box({"ociVersion": document(oci)[which]}, SLEEP))


@pytest.mark.breach(answers("features", "hooks", ["prestart"]))
def test_hooks(oci: OciTrial) -> None:
    """Features, hooks: "The recognized names of the hooks": those of the specification."""
    assert set(document(oci)["hooks"]) >= {
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
    }  # fmt: skip


MUST = """async atime bind defaults dev diratime dirsync exec iversion lazytime loud noatime nodev nodiratime noexec noiversion nolazytime
norelatime nostrictatime nosuid private rbind relatime remount ro rprivate rshared rslave runbindable rw shared silent slave
strictatime suid sync unbindable"""


@pytest.mark.breach(answers("features", "mountOptions", ["bind"]))
def test_mount_options(oci: OciTrial) -> None:
    """Features, mountOptions: "The recognized names of the mount options": all that config.md says MUST be implemented."""
    assert set(MUST.split()) - set(document(oci)["mountOptions"]) == set()


@pytest.mark.breach(refuses("create"))
def test_each_mount_option_is_recognized(oci: OciTrial) -> None:
    """Features, mountOptions: "The runtime MUST recognize the elements in this array as the options of mounts objects"."""
    skip = {"bind", "rbind", "remount", "idmap", "ridmap", "copy-symlink", "src-nofollow", "dest-nofollow"}
    options = [word for word in document(oci)["mountOptions"] if word not in skip]
    box = oci.box(args=SLEEP)
    for index, option in enumerate(options):
        box.set("mounts.+", mount(f"/mnt/{index}", "tmpfs", "tmpfs", option))
    oci.create(box)


@pytest.mark.breach(answers("features", "linux.namespaces", ["mount"]))
def test_namespaces(oci: OciTrial) -> None:
    """Features, linux.namespaces: "The runtime MUST recognize the elements in this array"; Namespaces: which "SHOULD be supported"."""
    assert set(document(oci)["linux"]["namespaces"]) >= {"pid", "network", "mount", "ipc", "uts", "user", "cgroup"}


@pytest.mark.breach(answers("features", "linux.capabilities", ["CAP_CHOWN", "CAP_NONSENSE"]))
def test_capabilities(oci: OciTrial) -> None:
    """Features, linux.capabilities: "The recognized names of the capabilities": each in capital letters, and the kernel knows its name."""
    found = document(oci)["linux"]["capabilities"]
    assert set(found) <= set(NAMES)
    assert len(found) >= 38


@pytest.mark.breach(answers("features", "linux.cgroup", {"v1": False, "v2": False}))
def test_cgroup(oci: OciTrial) -> None:
    """Features, linux.cgroup: "v1", "v2": what the machine has is supported by what runs on it."""
    found = document(oci)["linux"]["cgroup"]
    assert found["v2" if oci.trial.witness.layout.mode is Mode.V2 else "v1"]


@pytest.mark.breach(refuses("create"))
def test_each_action_and_operator_is_recognized(oci: OciTrial) -> None:
    """Features, linux.seccomp: actions and operators: "The runtime MUST recognize the elements in this array"."""
    found = document(oci)["linux"]["seccomp"]
    if not found.get("enabled"):
        raise NotExpressible(oci.trial.subject.name, "reports no seccomp")
    # Calls that nothing here makes, one for each action and each operator: two rules of one call might contradict.
    calls = iter(("swapon", "swapoff", "reboot", "acct", "quotactl", "vhangup", "syslog", "sethostname", "settimeofday", "kexec_load",
                  "init_module", "delete_module", "bpf", "userfaultfd", "ptrace", "io_setup", "mbind", "add_key", "keyctl"))  # fmt: skip
    without_words = ("SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW")
    rules: list[dict[str, Any]] = [
        {"names": [next(calls)], "action": action} for action in found["actions"] if action not in without_words
    ]
    compared = {"index": 0, "value": 9, "valueTwo": 1}
    rules += [
        {"names": [next(calls)], "action": "SCMP_ACT_ERRNO", "args": [{**compared, "op": operator}]}
        for operator in found["operators"]
    ]
    oci.create(oci.box({"linux.seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}}, SLEEP))


@pytest.mark.breach(refuses("create"))
def test_each_supported_flag_is_supported(oci: OciTrial) -> None:
    """Features, linux.seccomp.supportedFlags: "The runtime MUST recognize and support the elements in this array"."""
    found = document(oci)["linux"]["seccomp"]
    if not found.get("supportedFlags"):
        raise NotExpressible(oci.trial.subject.name, "reports no flags of seccomp")
    flags = [flag for flag in found["supportedFlags"] if flag != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    rule = {"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}
    oci.create(
        oci.box({"linux.seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "flags": flags}}, SLEEP)
    )
