"""The configuration as a whole: its version, what is unknown in it, and its root (config.md)."""

from __future__ import annotations

from typing import Any

import pytest

from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_breach import accepts, drops, puts, refuses
from harness.session.oci_config import Path as FieldPath
from harness.session.oci_config import bind

pytestmark = pytest.mark.operation(OciArea.CONFIG)


@pytest.mark.breach(refuses("create"))
@pytest.mark.parametrize("version", ["1.0.0", "1.0.2", "1.0.2-dev", "1.0.0-rc5+build"])
def test_a_version_of_its_major_is_accepted(oci: OciTrial, version: str) -> None:
    """Specification version: "retains forward and backward compatibility within major versions"."""
    oci.create(oci.box({"ociVersion": version}, SLEEP))


@pytest.mark.breach(accepts("create"))
@pytest.mark.parametrize("version", ["latest", "1.0", "", None], ids=["word", "short", "empty", "missing"])
def test_a_version_that_is_no_semver_is_refused(oci: OciTrial, version: str | None) -> None:
    """Specification version: "ociVersion (string, REQUIRED) MUST be in SemVer v2.0.0 format"."""
    box = oci.box(args=SLEEP)
    del box.config["ociVersion"]
    if version is not None:
        box.config["ociVersion"] = version
    assert oci.cannot_create(box)


UNKNOWN: dict[str, tuple[FieldPath, Any]] = {
    "top": ("unknownField", {"a": [1, "b", None]}),
    "process": ("process.unknownField", True),
    "user": ("process.user.unknownField", "x"),
    "root": ("root.unknownField", 1.5),
    "mount": ("mounts.0.unknownField", ["x"]),
    "linux": ("linux.unknownField", {"x": {}}),
    "resources": ("linux.resources", {"unknownField": {"limit": 1}}),
    "namespace": ("linux.namespaces.0.unknownField", ""),
    "annotation": (("annotations", "org.opencontainers.image.nonesuch"), "x"),
}


@pytest.mark.breach(refuses("create"))
@pytest.mark.parametrize("where", UNKNOWN)
def test_an_unknown_property_is_ignored(oci: OciTrial, where: str) -> None:
    """Extensibility: "Runtimes MAY log unknown properties but MUST otherwise ignore them. That includes not generating errors
    if they encounter an unknown property".
    """
    path, value = UNKNOWN[where]
    box = oci.launch({path: value})
    assert oci.status(box) == "running"


@pytest.mark.breach(refuses("create"))
def test_null_is_the_same_as_absent(oci: OciTrial) -> None:
    """Configuration: what is OPTIONAL may be left out; engines in Go write null for an empty list."""
    fields = ("hooks", "annotations", "process.rlimits", "linux.devices", "linux.maskedPaths", "linux.sysctl")
    oci.create(oci.box(dict.fromkeys(fields), SLEEP))


@pytest.mark.breach(accepts("create"))
@pytest.mark.parametrize("text", ["", "[]", '{"ociVersion": "1.0.2"', "{} x"], ids=["empty", "list", "cut", "more"])
def test_what_is_no_json_object_is_refused(oci: OciTrial, text: str) -> None:
    """Configuration: config.json is an object in JSON; Create: what cannot be applied generates an error."""
    box = oci.box()
    box.config = text  # type: ignore[assignment]
    assert oci.cannot_create(box)


# Root


@pytest.mark.breach(puts("root.path", "another"))
@pytest.mark.parametrize("how", ["relative", "absolute"])
def test_root_path(oci: OciTrial, how: str) -> None:
    """Root: "path is either an absolute path or a relative path to the bundle"."""
    box = oci.box(args=("/bin/cat", "/mark"))
    (box.rootfs / "mark").write_text("here\n")
    box.set("root.path", "rootfs" if how == "relative" else str(box.rootfs))
    assert oci.run(box) == "here\n"


@pytest.mark.breach(drops("root.readonly"))
def test_root_is_read_only(oci: OciTrial) -> None:
    """Root: "readonly (bool, OPTIONAL) If true then the root filesystem MUST be read-only inside the container"."""
    facts = oci.probe("write:/etc", "write:/bin/true", "proc:mountinfo", changes={"root.readonly": True})
    assert (facts["write:/etc"], facts["write:/bin/true"]) == (False, False)
    assert facts.mount("/").read_only


@pytest.mark.breach(puts("root.readonly", True))
def test_root_is_writable_by_default(oci: OciTrial) -> None:
    """Root: readonly "defaults to false"."""
    box = oci.box()
    assert oci.probe("write:/tmp", box=box)["write:/tmp"]


@pytest.mark.breach(puts("root.readonly", True))
@pytest.mark.kernel
def test_root_is_the_folder_itself(oci: OciTrial) -> None:
    """Root: "path (string, REQUIRED) Specifies the path to the root filesystem for the container": what the container writes
    is in that folder.
    """
    box = oci.box(args=("/bin/sh", "-c", "echo written > /tmp/file"))
    oci.run(box)
    written = box.rootfs / "tmp" / "file"
    assert written.exists(), "nothing was written"
    assert written.read_text() == "written\n"


@pytest.mark.breach(puts("mounts.+", bind("/etc", "/leaked")))
@pytest.mark.kernel
def test_nothing_outside_of_the_root_is_seen(oci: OciTrial) -> None:
    """Root: it is "the container's root filesystem": no mount of the machine is left, and .. of / is / itself."""
    facts = oci.probe("proc:mountinfo", "list:/..", "file:/../etc/hostname")
    assert facts.mounts[0].target == "/"
    assert {mount.target.split("/")[1] for mount in facts.mounts} <= {"", "proc", "dev"}
    assert facts["file:/../etc/hostname"] is None


# Hostname and domain name


@pytest.mark.breach(drops("hostname"))
def test_hostname(oci: OciTrial) -> None:
    """Hostname: "specifies the container's hostname as seen by processes running inside the container"."""
    assert oci.probe("hostname", changes={"hostname": "ahoy.example"}).text("hostname") == "ahoy.example"


@pytest.mark.breach(drops("domainname"))
def test_domainname(oci: OciTrial) -> None:
    """Domainname: "specifies the container's domainname as seen by processes running inside the container"."""
    oci.needs_spec("1.1.0")
    facts = oci.probe("file:/proc/sys/kernel/domainname", changes={"domainname": "port.example"})
    assert facts.text("file:/proc/sys/kernel/domainname") == "port.example\n"


@pytest.mark.breach(puts("hostname", "renamed"))
@pytest.mark.kernel
def test_without_hostname_nothing_is_renamed(oci: OciTrial) -> None:
    """Hostname is OPTIONAL: a new UTS namespace starts with the names of the old (uts_namespaces(7))."""
    assert oci.probe("hostname").text("hostname") == oci.shell("uname -n")


@pytest.mark.breach(accepts("create"))
@pytest.mark.kernel
def test_hostname_without_a_namespace_is_refused(oci: OciTrial) -> None:
    """Hostname: "On Linux, this depends on the UTS namespace": else the machine would be renamed."""
    box = oci.box({"hostname": "captured"}, SLEEP)
    box.config["linux"]["namespaces"] = [row for row in box.config["linux"]["namespaces"] if row["type"] != "uts"]
    name = oci.shell("uname -n")
    try:
        assert oci.cannot_create(box)
    finally:
        assert oci.shell("uname -n") == name
