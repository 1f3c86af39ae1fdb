"""Mounts, devices and the propagation of the root: what each option of the specification's table does in a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.linux import syscalls
from harness.minirt.container.idmap import open_mapping
from harness.minirt.container.options import parse_options
from harness.minirt.container.spec import IdMap


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path / "bundle_") as bundle:
        yield bundle


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder of the machine with a mount below it."""
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    syscalls.mount("below", str(folder / "below"), "tmpfs", syscalls.MS_NOSUID)
    try:
        (folder / "file").write_text("content")
        yield folder
    finally:
        syscalls.umount2(str(folder / "below"))


@pytest.fixture
def add(bundle: Bundle) -> Any:
    def add(destination: str, *options: str, type: str = "bind", source: object = "") -> None:
        entry = {"destination": destination, "type": type, "options": list(options)}
        bundle.config["mounts"].append(entry | ({"source": str(source)} if source else {}))

    return add


def mounted(bundle: Bundle, *places: str) -> list[set[str]]:
    """The options, of mount and file system, and the optional fields of what is mounted at places."""
    found: dict[str, set[str]] = {}
    for line in bundle.run("cat /proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words = left.split()
        found[words[4]] = {*words[5].split(","), *right.split()[2].split(","), *words[6:]}
    return [found[place] for place in places]


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (("ro",), {"ro"}, set()),
        (("ro", "rw"), set(), {"ro"}),
        (("nosuid", "nodev", "noexec"), {"nosuid", "nodev", "noexec"}, set()),
        (("nosuid", "suid", "noexec", "exec", "nodev", "dev"), set(), {"nosuid", "nodev", "noexec"}),
        (("noatime",), {"noatime"}, {"relatime"}),
        (("strictatime",), set(), {"relatime", "noatime"}),
        (("noatime", "relatime"), {"relatime"}, {"noatime"}),
        (("nodiratime",), {"nodiratime"}, set()),
        (("sync",), {"sync"}, set()),
        (("sync", "async"), set(), {"sync"}),
        (("dirsync",), {"dirsync"}, set()),
        (("lazytime",), {"lazytime"}, set()),
        (("lazytime", "nolazytime"), set(), {"lazytime"}),
        (("nosymfollow",), {"nosymfollow"}, set()),
        (("nosymfollow", "symfollow"), set(), {"nosymfollow"}),
        (("defaults", "silent", "loud", "atime", "diratime", "norelatime", "nostrictatime"), {"rw"}, {"ro"}),
        (("size=64k", "mode=700"), {"size=64k", "mode=700"}, set()),
        (("x-systemd.automount", "_netdev", "comment=x", "noauto"), {"rw"}, set()),
    ],
)
def test_options_of_a_file_system(
    bundle: Bundle, add: Any, options: tuple[str, ...], present: set[str], absent: set[str]
) -> None:
    add("/m", *options, type="tmpfs", source="tmpfs")
    (found,) = mounted(bundle, "/m")
    assert present <= found
    assert not absent & found


@pytest.mark.parametrize(
    ("options", "top", "below"),
    [
        (("rbind", "ro"), {"ro"}, {"rw", "nosuid"}),
        (("rbind", "rro"), {"ro"}, {"ro", "nosuid"}),
        (("rbind", "rnoexec", "rnodev"), {"noexec", "nodev"}, {"noexec", "nodev", "nosuid"}),
        (("rbind", "rnosuid", "rsuid"), {"rw"}, {"rw"}),
        (("rbind", "rnoatime"), {"noatime"}, {"noatime"}),
        (("rbind", "rro", "rrw"), {"rw"}, {"rw"}),
        (("rbind", "rnosymfollow", "rnodiratime"), {"nosymfollow", "nodiratime"}, {"nosymfollow", "nodiratime"}),
        (("rbind", "rstrictatime"), set(), set()),
    ],
)
def test_recursive_options_reach_what_is_below(
    bundle: Bundle, add: Any, data: Path, options: tuple[str, ...], top: set[str], below: set[str]
) -> None:
    add("/m", *options, source=data)
    found = mounted(bundle, "/m", "/m/below")
    assert top <= found[0]
    assert below <= found[1]
    assert ("nosuid" in found[1]) == ("rsuid" not in options)
    assert ("relatime" in found[1]) == (not {"rnoatime", "rstrictatime"} & set(options))


def test_bind_takes_one_mount_and_rbind_all(bundle: Bundle, add: Any, data: Path) -> None:
    add("/one", "bind", source=data)
    add("/all", "rbind", source=data)
    places = bundle.run("cat /proc/self/mountinfo")
    assert " /all/below " in places
    assert " /one/below " not in places


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        ("shared", {"shared"}),
        ("rshared", {"shared"}),
        ("private", set()),
        ("rprivate", set()),
        ("slave", set()),
        ("unbindable", {"unbindable"}),
        ("runbindable", {"unbindable"}),
    ],
)
def test_propagation_of_a_mount(bundle: Bundle, add: Any, data: Path, option: str, fields: set[str]) -> None:
    add("/m", "rbind", option, source=data)
    top, below = mounted(bundle, "/m", "/m/below")
    for found, concerned in ((top, True), (below, option.startswith("r"))):
        shown = {word.partition(":")[0] for word in found} & {"shared", "unbindable"}
        assert shown == (fields if concerned else set())


def test_remount_changes_what_is_mounted(bundle: Bundle, add: Any, data: Path) -> None:
    """A file system as a whole, the mount of it alone, and the root of a bind mount."""
    add("/t", "size=1m", type="tmpfs", source="tmpfs")
    add("/t", "remount", "size=2m", "nosuid", type="tmpfs", source="tmpfs")
    add("/b", "bind", source=data)
    add("/b", "remount", "bind", "ro", "noexec")
    tmpfs, bound = mounted(bundle, "/t", "/b")
    assert {"size=2048k", "nosuid"} <= tmpfs
    assert {"ro", "noexec"} <= bound


def test_options_of_a_file_system_do_nothing_to_a_bind_mount(bundle: Bundle, add: Any, data: Path) -> None:
    add("/b", "bind", "ro", "mode=755", "size=1k", source=data)
    done = bundle.sh("grep ' /b ' /proc/self/mountinfo").minirt("run", "box")
    assert done.returncode == 0
    assert " ro," in done.stdout
    assert "has no 'mode=755,size=1k', which is ignored" in done.stderr


def test_a_tmpfs_begins_with_what_it_hides(bundle: Bundle, add: Any) -> None:
    folder = bundle.rootfs / "full"
    folder.mkdir(mode=0o711)
    (folder / "file").write_text("kept\n")
    (folder / "link").symlink_to("file")
    add("/full", "tmpcopyup", "ro", type="tmpfs", source="tmpfs")
    shown = bundle.run("cat /full/link; stat -c %a /full; touch /full/x 2>&1 || true")
    assert shown.splitlines() == ["kept", "711", "touch: /full/x: Read-only file system"]


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({"destination": "/", "type": "tmpfs"}, "destination: is the root itself"),
        ({"destination": "/x/..", "type": "tmpfs"}, "destination: is the root itself"),
        ({"destination": "/proc", "type": "tmpfs"}, "destination: cannot be mounted because it is not of type proc"),
        (
            {"destination": "//proc/./self", "type": "tmpfs"},
            "destination: cannot be mounted because it is inside /proc",
        ),
        ({"destination": "proc/sys", "type": "bind", "source": "/"}, "destination: cannot be mounted"),
        ({"destination": "/x", "type": "tmpfs", "options": ["size=" + 5000 * "1"]}, "options: are longer"),
        ({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}, "options: only bind mounts"),
        ({"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]}, "options: idmap needs"),
        ({"destination": "/x", "type": "bind", "source": "/", "options": ["ridmap"]}, "options: ridmap needs"),
        ({"destination": "/x", "options": ["nosuid"]}, "type: is missing"),
    ],
)
def test_mounts_that_are_refused(bundle: Bundle, entry: dict[str, Any], where: str) -> None:
    bundle.config["mounts"].append(entry)
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert f"mounts[{len(bundle.config['mounts']) - 1}].{where}" in done.stderr
    assert bundle.leftovers() == []


def test_a_link_leads_no_mount_into_proc(bundle: Bundle, add: Any) -> None:
    (bundle.rootfs / "innocent").symlink_to("/proc/sys")
    add("/innocent", type="tmpfs", source="tmpfs")
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert "/proc/sys cannot be mounted because it is inside /proc" in done.stderr
    (bundle.rootfs / "innocent").unlink()
    (bundle.rootfs / "innocent").symlink_to("/proc")
    for entry in ({"type": "tmpfs", "source": "tmpfs"}, {"type": "bind", "source": str(bundle.rootfs)}):
        bundle.config["mounts"][-1] = {"destination": "/innocent", **entry}
        done = bundle.minirt("create", "box")
        assert done.returncode == 1
        assert "cannot be mounted because it is not of type proc" in done.stderr
    assert bundle.leftovers() == []


def test_what_may_lie_on_proc(bundle: Bundle, add: Any, tmp_path: Path) -> None:
    """A view of the machine's memory that somebody else gives, and a procfs; not any other folder."""
    (tmp_path / "meminfo").write_text("mine\n")
    add("/proc/meminfo", "bind", source=tmp_path / "meminfo")
    assert bundle.run("cat /proc/meminfo") == "mine\n"
    bundle.config["mounts"] = [entry for entry in bundle.config["mounts"] if "/proc" not in entry["destination"]]
    bundle.config["linux"]["maskedPaths"] = bundle.config["linux"]["readonlyPaths"] = []
    add("/proc", "rbind", source="/proc")
    assert bundle.run(f"ls -d /proc/{os.getpid()}") == f"/proc/{os.getpid()}\n"
    bundle.config["mounts"][-1]["source"] = str(tmp_path)
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert "not of type proc" in done.stderr


def test_idmap_in_a_user_namespace_by_path(bundle: Bundle, tmp_path: Path) -> None:
    """Which has mappings, whether the config tells them or not."""
    folder = tmp_path / "owned"
    folder.mkdir()
    (folder / "file").touch()
    os.chown(folder / "file", 5, 6)
    for path in (tmp_path, folder):
        path.chmod(0o755)
    user = open_mapping([IdMap(0, 100000, 65536)], [IdMap(0, 200000, 65536)])
    try:
        bundle.config["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{os.getpid()}/fd/{user}"})
        entry = {"destination": "/mapped", "type": "bind", "source": str(folder), "options": ["rbind", "idmap"]}
        bundle.config["mounts"] = [bundle.config["mounts"][0], entry]
        bundle.rootfs.parent.chmod(0o755)
        for name in ("mapped", "proc", "dev"):
            (bundle.rootfs / name).mkdir()
        for name in ("null", "zero", "full", "random", "urandom", "tty"):
            (bundle.rootfs / "dev" / name).touch()
        bundle.config["root"]["readonly"] = True
        bundle.config["linux"]["maskedPaths"] = bundle.config["linux"]["readonlyPaths"] = []
        for path in bundle.rootfs.rglob("*"):
            os.chown(path, 100000, 200000, follow_symlinks=False)
        os.chown(bundle.rootfs, 100000, 200000)
        assert bundle.run("stat -c %u:%g /mapped/file") == "5:6\n"
    finally:
        os.close(user)


@pytest.mark.parametrize(
    ("propagation", "fields"),
    [
        ("", {"master"}),
        ("shared", {"shared"}),
        ("rshared", {"shared"}),
        ("slave", {"master"}),
        ("rslave", {"master"}),
        ("private", set()),
        ("rprivate", set()),
        ("unbindable", {"unbindable"}),
        ("runbindable", {"unbindable"}),
    ],
)
def test_rootfs_propagation(bundle: Bundle, propagation: str, fields: set[str]) -> None:
    """The root file system is a shared mount of the machine, and no mount of the container's comes back to it."""
    root = str(bundle.rootfs)
    syscalls.mount(root, root, None, syscalls.MS_BIND)
    syscalls.mount(None, root, None, syscalls.MS_SHARED)
    try:
        group = {
            word
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {root} " in line
            for word in line.split()
            if word.startswith("shared:")
        }
        if propagation:
            bundle.config["linux"]["rootfsPropagation"] = propagation
        (found,) = mounted(bundle, "/")
        shown = {word.partition(":")[0] for word in found} & {"shared", "master", "unbindable"}
        assert shown == fields
        if "shared" in fields:
            assert not group & found  # "belongs to a new peer group"
        assert [target for target in bundle.leftovers() if target != root] == []
    finally:
        syscalls.umount2(root)


def test_devices(bundle: Bundle) -> None:
    """A fifo needs no number, a node that is there is used, and anything else there is an error."""
    bundle.config["mounts"] = [
        entry for entry in bundle.config["mounts"] if not entry["destination"].startswith("/dev")
    ]
    bundle.config["root"]["readonly"] = False
    (bundle.rootfs / "dev").mkdir()
    os.mknod(bundle.rootfs / "dev/null", 0o020600, os.makedev(1, 3))
    os.mknod(bundle.rootfs / "dev/ptmx", 0o020666, os.makedev(5, 2))
    bundle.config["linux"]["devices"] = [
        {"path": "/pipe", "type": "p", "fileMode": 0o640},
        {"path": "/deep/zero", "type": "u", "major": 1, "minor": 5},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]
    script = "readlink /dev/ptmx; stat -c '%F %a' /pipe /deep/zero /dev/null; stat -c %t:%T /deep/zero; echo x > /dev/null && echo null"
    lines = ["pts/ptmx", "fifo 640", "character special file 666", "character special file 600", "1:5", "null"]
    assert bundle.run(script).splitlines() == lines
    assert bundle.run(script).splitlines() == lines
    (bundle.rootfs / "deep/zero").unlink()
    (bundle.rootfs / "deep/zero").touch()
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert "make the device /deep/zero: another file is there already" in done.stderr
    assert bundle.leftovers() == []


def test_a_dev_of_the_machine_stays_as_it_is(bundle: Bundle) -> None:
    """What the container needs elsewhere is made all the same."""
    bundle.config["mounts"] = [bundle.config["mounts"][0]]
    bundle.config["mounts"].append(
        {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "ro"]}
    )
    bundle.config["linux"]["devices"] = [
        {"path": f"{folder}/mine", "type": "c", "major": 1, "minor": 3} for folder in ("/dev", "/else")
    ]
    assert bundle.run("test -c /dev/full && stat -c %t:%T /else/mine; ls /dev/mine 2>/dev/null || true") == "1:3\n"
    assert not Path("/dev/mine").exists()


def test_another_device_of_the_machine_is_not_taken_for_it(bundle: Bundle) -> None:
    """In a user namespace devices are the machine's, by their path: which has to be the device that is asked for."""
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    maps = [{"containerID": 0, "hostID": 0, "size": 10}]
    bundle.config["linux"] |= {"uidMappings": maps, "gidMappings": maps}
    bundle.config["linux"]["devices"] = [{"path": "/dev/full", "type": "c", "major": 1, "minor": 11}]
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert "make the device /dev/full: the machine has another device there" in done.stderr
    assert bundle.leftovers() == []


def test_words_that_only_fstab_knows() -> None:
    options = parse_options(["auto", "_netdev", "x-a.b=c", "auto_da_alloc", "size=1"])
    assert options.data == "auto_da_alloc,size=1"


@pytest.mark.parametrize(
    ("folder", "options", "mode"),
    [
        (None, (), "1777"),  # the kernel's own, and not that of a folder which has just been made for it
        (0o710, (), "710"),
        (0o1700, ("size=64k",), "1700"),
        (0o710, ("mode=1500",), "1500"),
    ],
)
def test_the_mode_of_a_tmpfs(bundle: Bundle, add: Any, folder: int | None, options: tuple[str, ...], mode: str) -> None:
    bundle.config["root"]["readonly"] = False
    if folder is not None:
        (bundle.rootfs / "some/where").mkdir(parents=True)
        (bundle.rootfs / "some/where").chmod(folder)
    add("/some/where", *options, type="tmpfs", source="tmpfs")
    assert bundle.run("stat -c %a /some/where") == f"{mode}\n"
    assert (bundle.rootfs / "some/where").stat().st_mode & 0o7777 == (0o755 if folder is None else folder)


def test_a_destination_as_the_machine_has_it(bundle: Bundle, add: Any) -> None:
    """Not what the specification says, but what callers write and runc takes."""
    bundle.config["root"]["readonly"] = False
    add(f"{bundle.rootfs}/there", type="tmpfs", source="tmpfs")
    add(f"{bundle.rootfs}x/there", type="tmpfs", source="tmpfs")
    places = [line.split()[4] for line in bundle.run("cat /proc/self/mountinfo").splitlines()]
    assert "/there" in places
    assert f"{bundle.rootfs}x/there" in places
    add(str(bundle.rootfs), type="tmpfs", source="tmpfs")
    assert "is the root itself" in bundle.minirt("run", "box").stderr


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("there", ["link", "file"])
def test_proc_and_sys_are_mounted_on_folders_alone(bundle: Bundle, name: str, there: str) -> None:
    place = bundle.rootfs / name
    place.symlink_to("tmp") if there == "link" else place.touch()
    done = bundle.sh("echo ran").minirt("run", "box")
    assert (done.returncode, done.stdout) == (1, "")
    assert "must be mounted on ordinary directory" in done.stderr
