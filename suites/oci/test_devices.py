"""Devices: those that are asked for, those that are always there, and who may use them (config-linux.md, "Devices")."""

from __future__ import annotations

from typing import Any

import pytest

from harness.model.area import OciArea
from harness.session.oci import OciTrial
from harness.session.oci_breach import accepts, drops, puts, takes
from harness.session.oci_config import bind

pytestmark = [pytest.mark.operation(OciArea.DEVICES), pytest.mark.kernel]

DEFAULT = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}
LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
DENY = {"allow": False, "access": "rwm"}


def covered(config: Any) -> Any:
    """A runtime without devices of its own: an empty folder lies over them."""
    config["mounts"].append({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]})
    config["process"]["args"] = ["/bin/sh", "-c", 'rm -rf /dev/*; exec "$0" "$@"', *config["process"]["args"]]
    return config


def device(path: str, kind: str, major: int | None = None, minor: int | None = None, **more: Any) -> dict[str, Any]:
    numbers = {} if major is None else {"major": major, "minor": minor}
    return {"path": path, "type": kind, **numbers, **more}


@pytest.mark.breach(takes(covered))
def test_default_devices(oci: OciTrial) -> None:
    """Default Devices: "In addition to any devices configured with this setting, the runtime MUST also supply": these."""
    facts = oci.probe(*(f"stat:{path}" for path in DEFAULT))
    nodes = {path: facts.node(path) for path in DEFAULT}
    found = {path: (node.kind, node.major, node.minor, node.permissions) for path, node in nodes.items() if node}
    assert found == {path: ("c", *numbers, 0o666) for path, numbers in DEFAULT.items()}


@pytest.mark.breach(puts("mounts.+", bind("/dev/null", "/dev/zero")))
def test_default_devices_work(oci: OciTrial) -> None:
    """Default Devices: what is supplied can be used, by any user."""
    asked = ("write:/dev/null", "read:/dev/zero", "read:/dev/full", "read:/dev/random", "read:/dev/urandom")
    zeros = "head -c 3 /dev/zero | od -An -tx1"
    facts = oci.probe(*asked, "write:/dev/full", f"try:{zeros}", changes={"process.user": {"uid": 1000, "gid": 1000}})
    assert [facts[word] for word in asked] == [True] * len(asked)
    assert facts.tried(zeros)[1].split() == ["00", "00", "00"]
    assert not facts["write:/dev/full"]


@pytest.mark.breach(takes(covered))
def test_ptmx_is_that_of_the_container(oci: OciTrial) -> None:
    """Default Devices: "/dev/ptmx. A bind-mount or symlink of the container's /dev/pts/ptmx"."""
    facts = oci.probe("link:/dev/ptmx", "stat:/dev/ptmx", "stat:/dev/pts/ptmx", "proc:mountinfo")
    mounted = [mount for mount in facts.mounts if mount.target == "/dev/ptmx"]
    assert facts["link:/dev/ptmx"] in ("pts/ptmx", "/dev/pts/ptmx") or (mounted and mounted[-1].fstype == "devpts")


@pytest.mark.breach(takes(covered))
def test_default_links(oci: OciTrial) -> None:
    """Dev symbolic links: "runtimes MUST create the following symlinks if the source file exists after processing mounts"."""
    facts = oci.probe(*(f"link:{path}" for path in LINKS))
    assert {path: facts[f"link:{path}"] for path in LINKS} == LINKS


@pytest.mark.breach(puts("linux.devices", [device("/dev/kvm", "c", 10, 232), device("/dev/sda", "b", 8, 0)]))
def test_no_device_but_those(oci: OciTrial) -> None:
    """Devices: "lists devices that MUST be available in the container": what is not asked for is not there."""
    names = set(oci.probe("list:/dev").text("list:/dev").split())
    allowed = {*(path.rpartition("/")[2] for path in [*DEFAULT, *LINKS]), "ptmx", "pts", "console", "core"}
    assert names <= allowed


@pytest.mark.breach(drops("linux.devices"))
@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (device("/dev/made", "c", 1, 3, fileMode=0o640, uid=12, gid=34), "c"),
        (device("/dev/disk", "b", 7, 99, fileMode=0o600, uid=0, gid=6), "b"),
        (device("/dev/pipe", "p", fileMode=0o622, uid=0, gid=0), "p"),
        (device("/dev/unbuffered", "u", 1, 5, fileMode=0o444, uid=0, gid=0), "c"),
        (device("/dev/deep/down/below", "c", 1, 7, fileMode=0o666, uid=0, gid=0), "c"),
    ],
    ids=["char", "block", "fifo", "unbuffered", "folder"],
)
def test_device(oci: OciTrial, row: dict[str, Any], kind: str) -> None:
    """Devices: type, "major, minor", fileMode ("file mode for the device"), uid and gid ("id of device owner")."""
    node = oci.probe(f"stat:{row['path']}", changes={"linux.devices": [row]}).node(row["path"])
    assert node is not None, f"there is no {row['path']}"
    assert node.kind == kind
    assert (node.uid, node.gid, node.permissions) == (row["uid"], row["gid"], row["fileMode"])
    if kind != "p":
        assert (node.major, node.minor) == (row["major"], row["minor"])


@pytest.mark.breach(puts("linux.devices.0.fileMode", 0))
def test_the_mode_of_a_device_is_not_masked(oci: OciTrial) -> None:
    """Devices: "fileMode (uint32, OPTIONAL) - file mode for the device": whatever the umask of the runtime is."""
    box = oci.box({"linux.devices": [device("/dev/wide", "c", 1, 3, fileMode=0o666, uid=0, gid=0)]})
    box.set("process.args", ["/bin/stat", "-c", "%a", "/dev/wide"])
    done = oci.try_create(box, under=("/bin/sh", "-c", 'umask 077; exec "$@"', "sh"))
    assert done.status == 0, done.stderr
    oci.start(box)
    oci.await_end(box)
    assert oci.output(box) == "666\n"


@pytest.mark.breach(accepts("create"))
def test_a_file_in_the_place_of_a_device_is_an_error(oci: OciTrial) -> None:
    """Devices: "If a file already exists at path that does not match the requested device, the runtime MUST generate an error"."""
    box = oci.box({"linux.devices": [device("/etc/taken", "c", 1, 3)]}, ("/bin/true",))
    (box.rootfs / "etc" / "taken").write_text("a plain file\n")
    assert oci.cannot_create(box)


# Who may use them (Allowed Device list)


def needs_fuse(oci: OciTrial) -> None:
    """The device that these tests use: no runtime allows it by itself, and to open it does nothing."""
    oci.needs_controller("devices")
    there = oci.shell("if (exec 3</dev/fuse) 2>/dev/null; then echo there; fi")
    oci.needs(there, "/dev/fuse cannot be opened")


@pytest.mark.breach(takes(covered))
def test_devices_that_are_made_may_be_used(oci: OciTrial) -> None:
    """Devices: "lists devices that MUST be available in the container": runc and crun allow those that they make and the default
    ones, after all that is denied.
    """
    oci.needs_controller("devices")
    facts = oci.probe(
        "read:/dev/zero", "write:/dev/null", "read:/dev/urandom", changes={"linux.resources.devices": [DENY]}
    )
    assert facts.said == {"read:/dev/zero": True, "write:/dev/null": True, "read:/dev/urandom": True}


@pytest.mark.breach(puts("linux.resources.devices", [{"allow": True, "access": "rwm"}]))
def test_what_is_not_allowed_cannot_be_used(oci: OciTrial) -> None:
    """Allowed Device list: "devices (array of objects, OPTIONAL) configures the allowed device list": what is denied and not
    allowed again cannot be opened, whoever made its node.
    """
    needs_fuse(oci)
    changes = {"linux.resources.devices": [DENY, {"allow": True, "type": "c", "access": "m"}]}
    script = "mknod /tmp/fuse c 10 229 && (exec 3</tmp/fuse) 2>/dev/null; echo $?"
    assert oci.script(script, changes) != "0\n"


@pytest.mark.breach(puts("linux.resources.devices", [DENY]))
def test_what_is_allowed_can_be_used(oci: OciTrial) -> None:
    """Allowed Device list: an entry with its type, major, minor and access."""
    needs_fuse(oci)
    fuse = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
    script = "mknod /tmp/fuse c 10 229 && exec 3</tmp/fuse && echo opened"
    assert oci.script(script, {"linux.resources.devices": [DENY, fuse]}) == "opened\n"


def shuffled(config: Any) -> Any:
    """A runtime that applies the later entries first."""
    rows = config["linux"]["resources"]["devices"]
    config["linux"]["resources"]["devices"] = [rows[0], *reversed(rows[1:])]
    return config


@pytest.mark.breach(takes(shuffled))
def test_entries_are_applied_in_their_order(oci: OciTrial) -> None:
    """Allowed Device list: "The runtime MUST apply entries in the listed order"."""
    needs_fuse(oci)
    fuse = {"type": "c", "major": 10, "minor": 229, "access": "rwm"}
    rows = [{**fuse, "allow": True}, {**fuse, "allow": False}, {"allow": True, "type": "c", "access": "m"}]
    script = "mknod /tmp/fuse c 10 229; (exec 3</tmp/fuse) 2>/dev/null; echo $?"
    assert oci.script(script, {"linux.resources.devices": [DENY, *rows]}) != "0\n"
    assert oci.script(script, {"linux.resources.devices": [DENY, rows[1], rows[0]]}) == "0\n"


@pytest.mark.breach(puts("linux.resources.devices.1.access", "rwm"))
def test_access_is_as_given(oci: OciTrial) -> None:
    """Allowed Device list: "access (string, OPTIONAL) - cgroup permissions for device. A composition of r (read), w (write), and m
    (mknod)".
    """
    needs_fuse(oci)
    row = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rm"}
    script = (
        "mknod /tmp/fuse c 10 229; (exec 3</tmp/fuse) 2>/dev/null; echo $?; (exec 3>/tmp/fuse) 2>/dev/null; echo $?"
    )
    read, write = oci.script(script, {"linux.resources.devices": [DENY, row]}).split()
    assert read == "0"
    assert write != "0"


@pytest.mark.breach(puts("linux.resources.devices", [DENY]))
def test_wildcards(oci: OciTrial) -> None:
    """Allowed Device list: "major, minor (int64, OPTIONAL) - device numbers": all of them where they are absent."""
    needs_fuse(oci)
    row = {"allow": True, "type": "c", "major": 10, "access": "rwm"}
    assert (
        oci.script(
            "mknod /tmp/fuse c 10 229 && exec 3</tmp/fuse && echo opened", {"linux.resources.devices": [DENY, row]}
        )
        == "opened\n"
    )
