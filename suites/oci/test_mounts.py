"""Mounts, as the container's own mountinfo tells of them (config.md, "Mounts" and "Linux mount options")."""

from __future__ import annotations

from typing import Any

import pytest

from harness.model.area import OciArea
from harness.session.oci import OciTrial
from harness.session.oci_box import Box
from harness.session.oci_breach import drops, puts, takes
from harness.session.oci_config import bind, mount
from harness.session.oci_facts import Facts

pytestmark = [pytest.mark.operation(OciArea.MOUNTS), pytest.mark.kernel]


def tmpfs(*options: str, destination: str = "/mnt/x"):  # type: ignore[no-untyped-def]
    return mount(destination, "tmpfs", "tmpfs", *options)


def mounted(oci: OciTrial, *options: str, box: Box | None = None) -> Facts:
    """The facts of a container with a tmpfs that has these options."""
    return oci.probe("proc:mountinfo", box=box or oci.box(), changes={"mounts.+": tmpfs(*options)})


OWN = {
    "ro": ("ro", True),
    "nosuid": ("nosuid", True),
    "nodev": ("nodev", True),
    "noexec": ("noexec", True),
    "noatime": ("noatime", True),
    "nodiratime": ("nodiratime", True),
    "relatime": ("relatime", True),
    "strictatime": ("relatime", False),
    "norelatime,strictatime": ("relatime", False),
    "ro,rw": ("ro", False),
    "rw,ro": ("ro", True),
    "nosuid,suid": ("nosuid", False),
    "nodev,dev": ("nodev", False),
    "noexec,exec": ("noexec", False),
    "noatime,atime": ("noatime", False),
    "nodiratime,diratime": ("nodiratime", False),
}
"""Options, and which of a mount's own options they set or clear: of two that speak of the same, the later wins."""


def many(oci: OciTrial, table: dict[str, tuple[str, bool]]) -> Facts:
    """The facts of a container with a tmpfs for each row of a table, at ``/mnt/0`` and on."""
    box = oci.box()
    for index, options in enumerate(table):
        box.set("mounts.+", tmpfs(*options.split(","), destination=f"/mnt/{index}"))
    return oci.probe("proc:mountinfo", box=box)


@pytest.mark.breach(puts("mounts.-1.options", ["noatime", "ro"]), puts("mounts.3.options", ["rw"]))
def test_options_of_a_mount(oci: OciTrial) -> None:
    """Linux mount options: "Runtimes MUST/SHOULD/MAY implement the following option strings for Linux": those of the mount; of two that
    speak of the same the later holds.
    """
    facts = many(oci, OWN)
    found = {
        options: word in facts.mount(f"/mnt/{index}").options for index, (options, (word, _)) in enumerate(OWN.items())
    }
    assert found == {options: there for options, (_, there) in OWN.items()}


SUPER = {
    "sync": ("sync", True),
    "sync,async": ("sync", False),
    "dirsync": ("dirsync", True),
    "lazytime": ("lazytime", True),
}


@pytest.mark.breach(puts("mounts.3.options", ["async"]))
def test_options_of_a_filesystem(oci: OciTrial) -> None:
    """Linux mount options: those of the file system as a whole."""
    facts = many(oci, SUPER)
    rows = enumerate(SUPER.items())
    found = {options: word in facts.mount(f"/mnt/{index}").super_options for index, (options, (word, _)) in rows}
    assert found == {options: there for options, (_, there) in SUPER.items()}


@pytest.mark.breach(drops("mounts.-1"))
@pytest.mark.parametrize(
    "option", ["defaults", "loud", "silent", "nolazytime", "noiversion", "norelatime", "nostrictatime"]
)
def test_option_without_a_trace(oci: OciTrial, option: str) -> None:
    """Linux mount options: those that "MUST" be implemented and that the kernel does not show are accepted, and are not taken
    for options of the file system.
    """
    assert mounted(oci, option).mount("/mnt/x").fstype == "tmpfs"


@pytest.mark.breach(drops("mounts.-1.options"))
def test_option_of_the_kind_of_filesystem(oci: OciTrial) -> None:
    """Linux mount options: "Runtimes SHOULD treat unknown options as filesystem-specific ones"."""
    facts = mounted(oci, "size=1m", "nr_inodes=77", "mode=1750")
    found = facts.mount("/mnt/x").super_options
    assert {"size=1024k", "nr_inodes=77", "mode=1750"} <= set(found)


@pytest.mark.breach(drops("mounts.-1"))
def test_nosymfollow(oci: OciTrial) -> None:
    """Linux mount options: nosymfollow (SHOULD)."""
    oci.needs_feature("mountOptions", "nosymfollow")
    assert "nosymfollow" in mounted(oci, "nosymfollow").mount("/mnt/x").options


def reversed_mounts(config):  # type: ignore[no-untyped-def]
    config["mounts"] = [*config["mounts"][:-2], *reversed(config["mounts"][-2:])]
    return config


@pytest.mark.breach(takes(reversed_mounts))
def test_mounts_are_made_in_their_order(oci: OciTrial) -> None:
    """Mounts: "The runtime MUST mount entries in the listed order"."""
    box = oci.box().set("mounts.+", tmpfs("size=1m")).set("mounts.+", tmpfs("size=2m", destination="/mnt/x/inner"))
    facts = oci.probe("proc:mountinfo", "list:/mnt/x", box=box)
    assert facts.text("list:/mnt/x").split() == ["inner"]
    assert "size=2048k" in facts.mount("/mnt/x/inner").super_options


@pytest.mark.breach(takes(reversed_mounts))
def test_a_later_mount_covers_an_earlier_one(oci: OciTrial) -> None:
    """Mounts: "The runtime MUST mount entries in the listed order": the last at a place is the one that is seen."""
    box = oci.box().set("mounts.+", tmpfs("size=1m")).set("mounts.+", tmpfs("size=2m"))
    facts = oci.probe("proc:mountinfo", box=box)
    assert "size=2048k" in facts.mount("/mnt/x").super_options


@pytest.mark.breach(drops("mounts.-1"))
def test_a_relative_destination_starts_at_the_root(oci: OciTrial) -> None:
    """Mounts: "it MAY be a relative path, in which case it MUST be interpreted as relative to "/""."""
    facts = oci.probe("proc:mountinfo", changes={"mounts.+": tmpfs(destination="mnt/y")})
    assert facts.mount("/mnt/y").fstype == "tmpfs"


@pytest.mark.breach(drops("mounts.-1"))
def test_a_destination_through_a_link_stays_inside(oci: OciTrial) -> None:
    """Mounts: "destination (string, REQUIRED) Destination of mount point: path inside container": a link in it, absolute or
    with .., leads nowhere else.
    """
    box = oci.box({"mounts.+": tmpfs(destination="/leading/up/x")})
    (box.rootfs / "mnt").mkdir()
    (box.rootfs / "leading").symlink_to("../../../../../../mnt")
    before = oci.shell("cat /proc/self/mountinfo | wc -l")
    facts = oci.probe("proc:mountinfo", box=box)
    assert facts.mount("/mnt/up/x").fstype == "tmpfs"
    assert oci.shell("cat /proc/self/mountinfo | wc -l") == before


@pytest.mark.breach(drops("mounts.-1"))
def test_a_missing_destination_is_made(oci: OciTrial) -> None:
    """Create: "All of the properties configured in config.json [...] MUST be applied": runc makes the mount point, a folder or,
    for a file that is bound, a file.
    """
    box = oci.box()
    (box.path / "file").write_text("bound\n")
    box.set("mounts.+", bind(box.path / "file", "/made/for/it"))
    facts = oci.probe("file:/made/for/it", box=box)
    assert facts["file:/made/for/it"] == "bound\n"


# Bind mounts


def bound(oci: OciTrial, *options: str, source: str = "data") -> Box:
    """A bundle of which a folder with a file in it is bound."""
    box = oci.box()
    folder = box.folder("data")
    (folder / "file").write_text("outside\n")
    return box.set("mounts.+", bind(folder if source == "data" else source, "/mnt/data", *options))


@pytest.mark.breach(drops("mounts.-1"))
def test_bind(oci: OciTrial) -> None:
    """Mounts: "A mount is a bind mount if it has either bind or rbind in the options": both ways see the same folder."""
    box = bound(oci)
    facts = oci.probe("file:/mnt/data/file", "try:echo inside >/mnt/data/new", box=box)
    assert facts["file:/mnt/data/file"] == "outside\n"
    assert (box.path / "data" / "new").read_text() == "inside\n"


@pytest.mark.breach(puts("mounts.-1.source", "elsewhere"))
def test_a_relative_source_starts_at_the_bundle(oci: OciTrial) -> None:
    """Mounts: "Path values for bind mounts are either absolute or relative to the bundle"."""
    facts = oci.probe("file:/mnt/data/file", box=bound(oci, source="./data"))
    assert facts["file:/mnt/data/file"] == "outside\n"


@pytest.mark.breach(puts("mounts.-1.options", ["bind"]))
@pytest.mark.parametrize("option", ["ro", "nosuid", "nodev", "noexec", "noatime"])
def test_option_of_a_bind_mount(oci: OciTrial, option: str) -> None:
    """Linux mount options: a bind mount takes its options in a second step (mount(8)); they hold for it all the same."""
    facts = oci.probe("proc:mountinfo", "write:/mnt/data", box=bound(oci, option))
    assert option in facts.mount("/mnt/data").options
    assert facts["write:/mnt/data"] is (option != "ro")


@pytest.mark.breach(puts("mounts.-1.type", "tmpfs"), puts("mounts.-1.options", []))
@pytest.mark.parametrize("kind", ["bind", "tmpfs", ""])
def test_the_type_of_a_bind_mount_means_nothing(oci: OciTrial, kind: str) -> None:
    """Mounts: "bind mounts (when options include either bind or rbind), the type is a dummy, often "none""."""
    box = bound(oci)
    box.config["mounts"][-1]["type"] = kind
    assert oci.probe("file:/mnt/data/file", box=box)["file:/mnt/data/file"] == "outside\n"


def nested(oci: OciTrial, *options: str, recursive: bool = True) -> Box:
    """A bundle of which a folder with a mount below it is bound: a tmpfs of the arena's own."""
    box = oci.box()
    folder = box.folder("data")
    (folder / "below").mkdir()
    oci.shell(f"mount -t tmpfs -o size=64k,mode=755 below {folder}/below && touch {folder}/below/mark")
    return box.set("mounts.+", bind(folder, "/mnt/data", *(["rbind"] if recursive else []), *options))


def unnest(oci: OciTrial, box: Box) -> None:
    oci.shell(f"umount -l {box.path}/data/below")


@pytest.mark.breach(puts("mounts.-1.options", ["bind"]))
def test_rbind_takes_the_mounts_below_along(oci: OciTrial) -> None:
    """Linux mount options: rbind, "Recursive bind mount"."""
    box = nested(oci)
    try:
        assert oci.probe("file:/mnt/data/below/mark", box=box)["file:/mnt/data/below/mark"] == ""
    finally:
        unnest(oci, box)


@pytest.mark.breach(puts("mounts.-1.options", ["rbind"]))
def test_bind_leaves_the_mounts_below_out(oci: OciTrial) -> None:
    """Linux mount options: bind, "Bind mount": of the one mount alone."""
    box = nested(oci, recursive=False)
    try:
        facts = oci.probe("list:/mnt/data", "list:/mnt/data/below", box=box)
        assert (facts.text("list:/mnt/data"), facts["list:/mnt/data/below"]) == ("below", "")
    finally:
        unnest(oci, box)


RECURSIVE = {
    "rro": ("ro", True),
    "rnosuid": ("nosuid", True),
    "rnodev": ("nodev", True),
    "rnoexec": ("noexec", True),
    "rnoatime": ("noatime", True),
    "rnodiratime": ("nodiratime", True),
    "rstrictatime": ("relatime", False),
}


@pytest.mark.breach(puts("mounts.-1.options", ["rbind"]))
def test_recursive_options(oci: OciTrial) -> None:
    """Linux mount options: "Recursive ro" and its like (SHOULD): by mount_setattr(2), also for the mounts below."""
    known = {option: row for option, row in RECURSIVE.items() if option in (oci.feature("mountOptions") or [])}
    if not known:
        oci.needs_feature("mountOptions", "rro")
    box = nested(oci, next(iter(known)))
    try:
        for option in list(known)[1:]:
            box.set("mounts.+", bind(box.path / "data", f"/mnt/{option}", "rbind", option))
        box.config["mounts"][-len(known)]["destination"] = f"/mnt/{next(iter(known))}"
        facts = oci.probe("proc:mountinfo", box=box)
        found = {
            option: [word in facts.mount(f"/mnt/{option}{below}").options for below in ("", "/below")]
            for option, (word, _) in known.items()
        }
        assert found == {option: [there, there] for option, (_, there) in known.items()}
    finally:
        unnest(oci, box)


@pytest.mark.breach(puts("mounts.-1.options", ["rbind", "rro"]))
def test_ro_is_not_recursive(oci: OciTrial) -> None:
    """Linux mount options: ro is that of mount(8), which holds for the one mount; rro is the recursive one."""
    oci.needs_feature("mountOptions", "rro")
    box = nested(oci, "ro")
    try:
        facts = oci.probe("write:/mnt/data", "write:/mnt/data/below", box=box)
        assert (facts["write:/mnt/data"], facts["write:/mnt/data/below"]) == (False, True)
    finally:
        unnest(oci, box)


# Propagation

PROPAGATION = {
    "private": "",
    "rprivate": "",
    "slave": "master",
    "rslave": "master",
    "shared": "shared",
    "rshared": "shared",
    "unbindable": "unbindable",
    "runbindable": "unbindable",
}


def spread(config):  # type: ignore[no-untyped-def]
    """A runtime that knows no propagation but the one that was not asked for."""
    options = config["mounts"][-1]["options"]
    options[-1] = "rshared" if "private" in options[-1] else "rprivate"
    return config


@pytest.mark.breach(takes(spread))
def test_propagation(oci: OciTrial) -> None:
    """Linux mount options: "Bind mount propagation" (mount_namespaces(7)); the source is shared outside."""
    box = oci.box({"linux.rootfsPropagation": "slave"})
    folder = box.folder("data")
    oci.shell(f"mount --bind {folder} {folder} && mount --make-shared {folder}")
    try:
        for option in PROPAGATION:
            how = "rbind" if option.startswith("r") else "bind"
            box.set("mounts.+", mount(f"/mnt/{option}", "none", str(folder), how, option))
        facts = oci.probe("proc:mountinfo", box=box)
    finally:
        oci.shell(f"umount -l {folder}")
    found = {}
    for option, wanted in PROPAGATION.items():
        kinds = {word.partition(":")[0] for word in facts.mount(f"/mnt/{option}").propagation} - {"propagate_from"}
        # One that is shared among containers may still be a slave of the machine's.
        found[option] = " ".join(sorted(kinds - ({"master"} if wanted == "shared" else set())))
    assert found == PROPAGATION


@pytest.mark.breach(puts("mounts.-1.options.-1", "rprivate"))
def test_mounts_of_the_machine_reach_a_slave(oci: OciTrial) -> None:
    """Linux mount options: rslave: what is mounted outside afterwards is seen inside."""
    box = oci.box(
        args=("/bin/sh", "-c", "echo ready; until [ -e /mnt/data/below/mark ]; do sleep 0.02; done; echo seen")
    )
    folder = box.folder("data")
    (folder / "below").mkdir()
    oci.shell(f"mount --bind {folder} {folder} && mount --make-shared {folder}")
    try:
        # Engines ask for it for the root, too, where a mount is to be a slave: what is private has no master.
        box.set("linux.rootfsPropagation", "slave")
        oci.sail(box.set("mounts.+", bind(folder, "/mnt/data", "rbind", "rslave")))
        oci.await_output(box, "ready")
        oci.shell(f"mount -t tmpfs -o size=64k below {folder}/below && touch {folder}/below/mark")
        oci.await_output(box, "seen")
    finally:
        oci.shell(f"umount -l {folder}/below; umount -l {folder}")


def leaking(config: Any) -> Any:
    """A runtime that shares what it should not."""
    config["linux"]["rootfsPropagation"] = "shared"
    config["mounts"][-1]["options"][-1] = "rshared"
    return config


@pytest.mark.breach(takes(leaking))
@pytest.mark.parametrize("option", ["rslave", "rprivate"])
def test_mounts_of_the_container_stay_inside(oci: OciTrial, option: str) -> None:
    """Linux mount options: rslave and rprivate let nothing of what the container mounts out, also where the source is shared."""
    box = oci.box(
        {"process.capabilities": {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}}
    )
    folder = box.folder("data")
    oci.shell(f"mount --bind {folder} {folder} && mount --make-shared {folder} && mkdir {folder}/below")
    try:
        box.set("mounts.+", bind(folder, "/mnt/data", "rbind", option)).set("linux.rootfsPropagation", "slave")
        script = "mount -t tmpfs below /mnt/data/below && echo mounted; sleep 3600"
        box.set("process.args", ["/bin/sh", "-c", script])
        oci.sail(box)
        oci.await_output(box, "mounted")
        assert oci.shell(f"grep -c ' {folder}/below ' /proc/self/mountinfo || true") == "0"
    finally:
        oci.shell(f"umount -l {folder}/below 2>/dev/null; umount -l {folder}")


# Id-mapped mounts


@pytest.mark.breach(drops("mounts.-1.uidMappings", "mounts.-1.gidMappings"))
def test_id_mapped_mount(oci: OciTrial) -> None:
    """Mounts: uidMappings is "The mapping to convert UIDs from the source file system to the destination mount point", done
    "using mount_setattr(MOUNT_ATTR_IDMAP)".
    """
    oci.needs_feature("linux.mountExtensions.idmap.enabled")
    box = bound(oci, "idmap")
    mapping = [{"containerID": 0, "hostID": 5000, "size": 1000}]
    box.config["mounts"][-1] |= {"uidMappings": mapping, "gidMappings": mapping}
    node = oci.probe("stat:/mnt/data/file", box=box).node("/mnt/data/file")
    assert node is not None
    assert (node.uid, node.gid) == (5000, 5000)


# File systems that are special


@pytest.mark.breach(drops("mounts.-1"))
def test_mqueue_and_shm(oci: OciTrial) -> None:
    """Default Filesystems: "The following filesystems SHOULD be made available in each container's filesystem"."""
    box = oci.box({"mounts.+": mount("/dev/shm", "tmpfs", "shm", "nosuid", "mode=1777", "size=64k")})
    box.set("mounts.+", mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"))
    facts = oci.probe("proc:mountinfo", "write:/dev/shm", box=box)
    assert facts.mount("/dev/mqueue").fstype == "mqueue"
    assert facts["write:/dev/shm"]


@pytest.mark.breach(drops("mounts.-1"))
def test_a_cgroup_mount_shows_the_containers_own(oci: OciTrial) -> None:
    """Cgroup mounts: with a cgroup namespace "the runtime" mounts "type cgroup" so that the container sees its own as root."""
    box = oci.box({"mounts.+": mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro")})
    box.set("linux.namespaces.+", {"type": "cgroup"})
    facts = oci.probe("proc:mountinfo", "proc:cgroup", box=box)
    found = [entry for entry in facts.mounts if entry.fstype in ("cgroup", "cgroup2")]
    assert found, "no cgroup is mounted"
    assert [entry.target for entry in found if not entry.read_only] == []
    assert [entry.target for entry in found if entry.root != "/"] == []
    assert {line.rpartition(":")[2] for line in facts.text("proc:cgroup").splitlines()} == {"/"}


@pytest.mark.breach(puts("mounts.-1.options", ["size=1m"]))
def test_tmpcopyup(oci: OciTrial) -> None:
    """Linux mount options: "tmpcopyup (MAY): copy up the contents to a tmpfs"."""
    oci.needs_feature("mountOptions", "tmpcopyup")
    facts = oci.probe(
        "file:/etc/nsswitch.conf", "proc:mountinfo", changes={"mounts.+": tmpfs("tmpcopyup", destination="/etc")}
    )
    assert facts.mount("/etc").fstype == "tmpfs"
    assert facts["file:/etc/nsswitch.conf"] == "hosts: files dns\n"
