"""What a container may do (cri-api v1, ``LinuxContainerSecurityContext``), by what the kernel says of its init."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RuntimeRefusal
from harness.linux.mounts import read_mounts
from harness.linux.namespaces import identity
from harness.model.area import Area
from harness.model.container import Network
from harness.session.breach import accepts, drops, puts, swaps
from harness.session.cri import POD, READY, Box, CriTrial, secured

pytestmark = pytest.mark.operation(Area.SECURITY)

CONTEXT = "CreateContainer.config.linux.security_context"
RUNTIME_DEFAULT, UNCONFINED, LOCALHOST = 0, 1, 2
"""runtime.v1.SecurityProfile.ProfileType"""
CHOWN, KILL, NET_BIND, NET_ADMIN, SYS_ADMIN, SYS_TIME = 0, 5, 10, 12, 21, 25
"""capabilities(7), by number"""


def facts(cri: CriTrial, box: Box) -> dict[str, str]:
    """proc_pid_status(5) of a container's init."""
    lines = Path(f"/proc/{cri.init(box)}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def sets(cri: CriTrial, box: Box) -> dict[str, int]:
    return {name: int(value, 16) for name, value in facts(cri, box).items() if name.startswith("Cap")}


def has(mask: int, *capabilities: int) -> bool:
    return all(mask >> number & 1 for number in capabilities)


# Capabilities


@pytest.mark.breach(puts(f"{CONTEXT}.capabilities", {"add_capabilities": ["SYS_ADMIN"]}))
def test_default_capabilities(cri: CriTrial) -> None:
    """Nothing asked for: the usual ones, none of an administrator's, none ambient."""
    found = sets(cri, cri.launch())
    assert has(found["CapEff"], CHOWN, KILL, NET_BIND)
    assert not any(has(found[name], SYS_ADMIN) or has(found[name], NET_ADMIN) for name in ("CapEff", "CapBnd"))
    assert found["CapAmb"] == 0


@pytest.mark.breach(drops(f"{CONTEXT}.capabilities"))
def test_added_capability(cri: CriTrial) -> None:
    """add_capabilities: "permitted, inheritable, effective and bounding sets, i.e. all sets except the ambient set"."""
    found = sets(cri, cri.launch(linux=secured(capabilities={"add_capabilities": ["NET_ADMIN", "SYS_TIME"]})))
    assert all(has(found[name], NET_ADMIN, SYS_TIME) for name in ("CapPrm", "CapEff", "CapBnd"))
    assert found["CapAmb"] == 0


@pytest.mark.breach(drops(f"{CONTEXT}.capabilities"))
def test_dropped_capability(cri: CriTrial) -> None:
    """Capability: "Dropping a capability will drop it from all sets"."""
    found = sets(cri, cri.launch(linux=secured(capabilities={"drop_capabilities": ["CHOWN"]})))
    assert not any(has(mask, CHOWN) for mask in found.values())
    assert has(found["CapEff"], KILL)


@pytest.mark.breach(drops(f"{CONTEXT}.capabilities"))
def test_all_capabilities_dropped_but_one(cri: CriTrial) -> None:
    """ALL, as kubelet's restricted pods have it, and one that is added nevertheless."""
    wish = {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]}
    found = sets(cri, cri.launch(linux=secured(capabilities=wish)))
    assert found["CapEff"] == found["CapBnd"] == 1 << NET_BIND


@pytest.mark.breach(drops(f"{CONTEXT}.capabilities.add_capabilities"))
def test_all_capabilities_added_but_one(cri: CriTrial) -> None:
    """ALL, and one that is dropped nevertheless."""
    wish = {"add_capabilities": ["ALL"], "drop_capabilities": ["SYS_TIME"]}
    found = sets(cri, cri.launch(linux=secured(capabilities=wish)))
    assert has(found["CapEff"], SYS_ADMIN, NET_ADMIN)
    assert not has(found["CapBnd"], SYS_TIME)


@pytest.mark.breach(drops(f"{CONTEXT}.run_as_user"))
def test_user_without_privileges_has_no_effective_capability(cri: CriTrial) -> None:
    """capabilities(7), "Transformation of capabilities during execve": what root has, others have not."""
    assert sets(cri, cri.launch(linux=secured(run_as_user={"value": 1000})))["CapEff"] == 0


@pytest.mark.breach(drops(f"{CONTEXT}.capabilities.add_ambient_capabilities"))
def test_ambient_capability(cri: CriTrial) -> None:
    """add_ambient_capabilities: "all sets", also for a user without privileges."""
    cri.since("1.26")
    wish = {"add_ambient_capabilities": ["NET_BIND_SERVICE"]}
    found = sets(cri, cri.launch(linux=secured(capabilities=wish, run_as_user={"value": 1000})))
    assert all(has(found[name], NET_BIND) for name in ("CapAmb", "CapEff", "CapPrm", "CapInh", "CapBnd"))


# Privileged


def privileged(cri: CriTrial, **more: Any) -> Box:
    pod = cri.pod(linux=secured(privileged=True))
    return cri.launch(pod=pod, linux=secured(privileged=True, **more))


@pytest.mark.breach(drops(f"{CONTEXT}.privileged"))
def test_privileged_has_all_capabilities_and_no_seccomp(cri: CriTrial) -> None:
    """privileged: "1. All capabilities are added. [...] 5. Seccomp restrictions are not applied."."""
    box = privileged(cri)
    mine = int(Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0], 16)
    assert sets(cri, box)["CapEff"] == mine
    assert facts(cri, box)["Seccomp"] == "0"


@pytest.mark.breach(drops(f"{CONTEXT}.privileged"))
def test_privileged_sees_the_machine(cri: CriTrial) -> None:
    """privileged: "3. Any sysfs and procfs mounts are mounted RW. [...] 7. All devices from the host's /dev are available"."""
    box = privileged(cri)
    options = {mount.target: mount.options for mount in read_mounts(cri.init(box))}
    assert "rw" in options["/proc"] and "rw" in options["/sys"]
    inside, outside = set(cri.said(box, "ls /dev").split()), {path.name for path in Path("/dev").iterdir()}
    # Those that the arena's mount namespace shares with the host, whatever they are here.
    nodes = {
        name for name in outside if (Path("/dev") / name).is_char_device() or (Path("/dev") / name).is_block_device()
    }
    assert len(nodes & inside) >= 0.9 * len(nodes), nodes - inside


@pytest.mark.breach(swaps("RunPodSandbox", lambda request, call: call(_privileged(request))))
def test_privileged_container_needs_a_privileged_pod(cri: CriTrial) -> None:
    """LinuxSandboxSecurityContext.privileged: "If a privileged container is to be executed within it, this MUST be true"."""
    pod = cri.pod()
    with pytest.raises(RuntimeRefusal):
        cri.launch(pod=pod, linux=secured(privileged=True))


def _privileged(request: dict[str, Any]) -> dict[str, Any]:
    request["config"]["linux"]["security_context"]["privileged"] = True
    return request


# No new privileges, seccomp


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.breach(swaps("CreateContainer", lambda request, call: call(_other_privileges(request))))
def test_no_new_privs(wanted: bool, cri: CriTrial) -> None:
    """no_new_privs: PR_SET_NO_NEW_PRIVS of prctl(2)."""
    assert facts(cri, cri.launch(linux=secured(no_new_privs=wanted)))["NoNewPrivs"] == str(int(wanted))


def _other_privileges(request: dict[str, Any]) -> dict[str, Any]:
    context = request["config"]["linux"]["security_context"]
    context["no_new_privs"] = not context.get("no_new_privs", False)
    return request


@pytest.mark.breach(puts(f"{CONTEXT}.seccomp", {"profile_type": UNCONFINED}))
def test_default_seccomp_profile(cri: CriTrial) -> None:
    """RuntimeDefault: "The container runtime default profile should be used"."""
    box = cri.launch(linux=secured(seccomp={"profile_type": RUNTIME_DEFAULT}))
    assert facts(cri, box)["Seccomp"] == "2"
    assert cri.execute(box, "unshare -U true || true; mount -t tmpfs x /tmp").exit_code != 0


@pytest.mark.breach(puts(f"{CONTEXT}.seccomp", {"profile_type": RUNTIME_DEFAULT}))
def test_unconfined(cri: CriTrial) -> None:
    """Unconfined: "Disable the feature for the sandbox or the container"."""
    assert facts(cri, cri.launch(linux=secured(seccomp={"profile_type": UNCONFINED})))["Seccomp"] == "0"


def profile(cri: CriTrial) -> str:
    """A profile under which no folder can be made."""
    path = cri.trial.arena.state / "no-mkdir.json"
    calls = ["mkdir", "mkdirat"]
    rule = {"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    return str(path)


@pytest.mark.breach(drops(f"{CONTEXT}.seccomp"))
def test_seccomp_profile_of_the_host(cri: CriTrial) -> None:
    """localhost_ref: "For seccomp, it must be an absolute path to the seccomp profile"."""
    box = cri.launch(linux=secured(seccomp={"profile_type": LOCALHOST, "localhost_ref": profile(cri)}))
    assert facts(cri, box)["Seccomp"] == "2"
    assert (
        b"Function not implemented"
        in cri.execute(box, "mkdir /tmp/x").stderr + cri.execute(box, "mkdir /tmp/x 2>&1").stdout
    )


@pytest.mark.parametrize("ref", ["/no/such/profile.json", "relative.json", ""])
@pytest.mark.breach(drops(f"{CONTEXT}.seccomp"))
def test_seccomp_profile_that_is_not_there_is_refused(ref: str, cri: CriTrial) -> None:
    with pytest.raises(RuntimeRefusal):
        cri.launch(linux=secured(seccomp={"profile_type": LOCALHOST, "localhost_ref": ref}))


@pytest.mark.parametrize(("old", "mode"), [("runtime/default", "2"), ("unconfined", "0"), ("localhost", "2")])
@pytest.mark.breach(swaps("CreateContainer", lambda request, call: call(_other_profile(request))))
def test_seccomp_profile_by_its_old_field(old: str, mode: str, cri: CriTrial) -> None:
    """seccomp_profile_path, deprecated: runtime/default, unconfined, localhost/<full-path-to-profile>."""
    word = f"localhost/{profile(cri)}" if old == "localhost" else old
    assert facts(cri, cri.launch(linux=secured(seccomp_profile_path=word)))["Seccomp"] == mode


def _other_profile(request: dict[str, Any]) -> dict[str, Any]:
    context = request["config"]["linux"]["security_context"]
    context["seccomp_profile_path"] = (
        "runtime/default" if context["seccomp_profile_path"] == "unconfined" else "unconfined"
    )
    return request


# Files


@pytest.mark.breach(drops(f"{CONTEXT}.readonly_rootfs"))
def test_readonly_root_file_system(cri: CriTrial) -> None:
    """readonly_rootfs: "If set, the root filesystem of the container is read-only"; /dev/shm is none of it."""
    box = cri.launch(linux=secured(readonly_rootfs=True))
    assert cri.execute(box, "touch /x").exit_code != 0
    assert cri.execute(box, "touch /dev/shm/x && rm /dev/shm/x").exit_code == 0


@pytest.mark.breach(puts(f"{CONTEXT}.readonly_rootfs", True))
def test_root_file_system_is_the_containers_own(cri: CriTrial) -> None:
    """What one writes another does not see, of the same image."""
    one, two = cri.launch(), cri.launch()
    cri.said(one, "echo mine >/x && echo changed >/etc/group")
    assert cri.said(one, "cat /x") == "mine"
    assert cri.execute(two, "test -e /x").exit_code == 1
    assert "sailor" in cri.said(two, "cat /etc/group")


@pytest.mark.breach(drops(f"{CONTEXT}.masked_paths"))
def test_masked_paths(cri: CriTrial) -> None:
    """masked_paths: a file reads as empty, a folder has nothing in it (runtime-spec, config-linux)."""
    box = cri.launch(linux=secured(masked_paths=["/etc/passwd", "/home", "/no/such/path"]))
    assert cri.said(box, "cat /etc/passwd; ls /home") == ""


@pytest.mark.breach(drops(f"{CONTEXT}.readonly_paths"))
def test_readonly_paths(cri: CriTrial) -> None:
    """readonly_paths: "set as readonly by the container runtime"."""
    box = cri.launch(linux=secured(readonly_paths=["/etc", "/no/such/path"]))
    assert cri.execute(box, "touch /etc/x").exit_code != 0
    assert "sailor" in cri.said(box, "cat /etc/passwd")
    assert cri.execute(box, "touch /home/x").exit_code == 0


# AppArmor, user namespaces


@pytest.mark.breach(drops(f"{CONTEXT}.apparmor"))
def test_apparmor_profile_that_is_not_there_is_refused(cri: CriTrial) -> None:
    """A confinement that cannot be had is not silently left out."""
    with pytest.raises(RuntimeRefusal):
        cri.launch(linux=secured(apparmor={"profile_type": LOCALHOST, "localhost_ref": "no-such-profile"}))


MAPPING = {"host_id": 200_000, "container_id": 0, "length": 65_536}
USERNS = {"mode": POD, "uids": [MAPPING], "gids": [MAPPING]}


@pytest.mark.breach(
    drops(
        "RunPodSandbox.config.linux.security_context.namespace_options.userns_options",
        f"{CONTEXT}.namespace_options.userns_options",
    )
)
def test_user_namespace_of_a_pod(cri: CriTrial) -> None:
    """UserNamespace, POD, with its mappings; the image's files and a volume's belong to whom they did before."""
    cri.needs_feature("user_namespaces")
    volume = cri.trial.arena.root / cri.trial.name("volume")
    volume.mkdir()
    (volume / "manifest").write_text("cargo\n")
    os.chown(volume / "manifest", 1000, 1000)
    pod = cri.pod(Network.BRIDGE, hostname="quay", linux=secured(namespace_options={"userns_options": USERNS}))
    mount = {"host_path": str(volume), "container_path": "/cargo", "uidMappings": [MAPPING], "gidMappings": [MAPPING]}
    box = cri.launch(pod=pod, mounts=[mount], linux=secured(namespace_options={"userns_options": USERNS}))
    pid = cri.init(box)
    assert identity(pid, "user") != identity(cri.trial.arena.keeper_pid, "user")
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "200000", "65536"]
    assert facts(cri, box)["Uid"].split() == ["200000"] * 4
    assert cri.said(box, "stat -c %u:%g /etc/passwd /cargo/manifest").split() == ["0:0", "1000:1000"]
    assert cri.pod_status(pod).state == READY


@pytest.mark.breach(accepts("RunPodSandbox"))
def test_user_namespace_that_cannot_be_is_refused(cri: CriTrial) -> None:
    """A mapping of nothing, and a mode that pods do not have."""
    cri.needs_feature("user_namespaces")
    for wrong in ({"mode": POD, "uids": [{**MAPPING, "length": 0}], "gids": [MAPPING]}, {**USERNS, "mode": 1}):
        with pytest.raises(RuntimeRefusal):
            cri.pod(Network.BRIDGE, hostname="quay", linux=secured(namespace_options={"userns_options": wrong}))
