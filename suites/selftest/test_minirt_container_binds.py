"""Bind mounts: which flags they have (config.md, "Mounts", as runc reads it), and what a user namespace can have of the machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.minirt.container.idmap import open_mapping
from harness.minirt.container.spec import IdMap

TIMES = ("nodiratime", "relatime")
MAPPINGS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    tmp_path.chmod(0o755)
    with open_bundle(tmp_path) as bundle:
        yield bundle


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A mount whose flags are its own, not its file system's."""
    place = tmp_path / "data"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", str(place)], check=True, timeout=20)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=20)


def enter_user_namespace(bundle: Bundle) -> None:
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = linux["gidMappings"] = MAPPINGS
    os.chown(bundle.rootfs, 100000, 100000)  # there are folders to be made in it


def bind(bundle: Bundle, source: Path, *options: str) -> None:
    entry: dict[str, Any] = {"destination": "/m", "type": "bind", "source": str(source), "options": list(options)}
    bundle.config["mounts"].append(entry)


def flags(text: str) -> set[str]:
    (line,) = (line for line in text.splitlines() if line.split()[4] == "/m")
    return set(line.split()[5].split(","))


@pytest.mark.parametrize(
    ("host", "options", "plain", "in_user_namespace"),
    [
        ("ro,noexec,nodiratime", ("bind",), {"ro", "noexec", *TIMES}, {"ro", "noexec", *TIMES}),
        ("ro,noexec,nodiratime", ("bind", "dev"), {"rw", *TIMES}, {"ro", "noexec", "nodiratime"}),
        ("ro", ("bind", "nosuid", "private"), {"rw", "nosuid"}, {"ro", "nosuid"}),
        ("ro", ("bind", "rw", "nosuid"), {"rw", "nosuid"}, "ro"),
        ("nosuid,noexec,noatime", ("bind", "suid", "exec", "atime"), {"rw", "noatime"}, "noatime,noexec,nosuid"),
        ("nodev,nosuid,noatime", ("bind", "ro"), {"ro", "noatime"}, {"ro", "nodev", "nosuid", "noatime"}),
        ("noatime", ("bind", "relatime"), {"rw", "relatime"}, "noatime"),
        ("noatime", ("bind", "noatime"), {"rw", "noatime"}, {"rw", "noatime"}),
        ("noatime", ("bind", "nodiratime"), {"rw", "nodiratime", "relatime"}, "noatime"),
        ("nodiratime", ("bind", "strictatime"), {"rw"}, "nodiratime"),
        ("noatime", ("bind", "nodiratime", "strictatime"), {"rw", "nodiratime"}, "noatime"),
        ("nosymfollow", ("bind", "ro", "symfollow"), {"ro"}, {"ro"}),
        ("nosymfollow", ("bind", "rprivate"), {"rw", "nosymfollow"}, {"rw", "nosymfollow"}),
    ],
)
def test_what_is_said_is_exact_and_what_is_locked_stays(
    bundle: Bundle,
    data: Path,
    host: str,
    options: tuple[str, ...],
    plain: set[str],
    in_user_namespace: set[str] | str,
) -> None:
    subprocess.run(["mount", "--bind", "-o", f"remount,{host}", str(data)], check=True, timeout=20)
    bind(bundle, data, *options)
    times = {"noatime", "relatime", "nodiratime"}
    found = flags(bundle.run("cat /proc/self/mountinfo"))
    assert found - times == plain - times
    if times & plain or "strictatime" in options:
        assert found & times == plain & times
    enter_user_namespace(bundle)
    done = bundle.minirt("run", "box")
    if isinstance(in_user_namespace, set):
        assert done.returncode == 0, done.stderr
        assert in_user_namespace <= flags(done.stdout)
        assert ("rw" in in_user_namespace) == ("rw" in flags(done.stdout))
        assert "nosymfollow" in in_user_namespace or "nosymfollow" not in flags(done.stdout)
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "locked" in done.stderr
        assert in_user_namespace in done.stderr
        assert bundle.leftovers() == [str(data)]


@pytest.mark.parametrize("mode", [0o700, 0o750])
def test_a_user_namespace_has_sources_that_its_root_could_not_reach(bundle: Bundle, mode: int) -> None:
    private = bundle.folder / "private"
    (private / "folder").mkdir(parents=True)
    (private / "folder/file").write_text("text")
    private.chmod(mode)
    bind(bundle, private / "folder", "rbind", "ro")
    bundle.config["mounts"].append(
        {"destination": "/file", "type": "bind", "source": str(private / "folder/file"), "options": ["bind"]}
    )
    enter_user_namespace(bundle)
    assert bundle.run("cat /m/file /file") == "texttext"


def test_a_user_namespace_has_a_root_that_its_root_could_not_reach(bundle: Bundle) -> None:
    bundle.folder.chmod(0o700)
    enter_user_namespace(bundle)
    assert bundle.run("cat /proc/self/uid_map").split() == ["0", "100000", "65536"]


@pytest.mark.parametrize("joined", [False, True])
def test_a_time_namespace_of_a_user_namespace_has_its_offsets(bundle: Bundle, joined: bool) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"monotonic": {"secs": 7881, "nanosecs": 5}, "boottime": {"secs": 1337}}
    script = "cat /proc/self/timens_offsets"
    expected = [["monotonic", "7881", "5"], ["boottime", "1337", "0"]]
    if not joined:
        enter_user_namespace(bundle)
        assert [line.split() for line in bundle.run(script).splitlines()] == expected
        return
    user = open_mapping([IdMap(0, 0, 10)], [IdMap(0, 0, 10)])
    try:
        path = f"/proc/{os.getpid()}/fd/{user}"
        bundle.config["linux"]["namespaces"].append({"type": "user", "path": path})
        assert [line.split() for line in bundle.run(script).splitlines()] == expected
    finally:
        os.close(user)


@pytest.mark.parametrize("own_user_namespace", [False, True])
def test_a_source_inside_the_root_is_what_the_mounts_before_have_made_of_it(
    bundle: Bundle, own_user_namespace: bool
) -> None:
    """config.md, "Mounts": "The runtime MUST mount entries in the listed order"."""
    bundle.folder.chmod(0o755)
    outer = bundle.folder
    while outer != outer.parent and "pytest" in str(outer):  # its root has to get there by itself
        outer.chmod(outer.stat().st_mode | 0o055)
        outer = outer.parent
    (bundle.folder / "data").mkdir()
    (bundle.folder / "data/file").write_text("text")
    (bundle.rootfs / "first").mkdir()
    bundle.config["mounts"] += [
        {"destination": "/first", "type": "bind", "source": str(bundle.folder / "data"), "options": ["bind"]},
        {"destination": "/second", "type": "bind", "source": str(bundle.rootfs / "first"), "options": ["bind"]},
        {"destination": "/third", "type": "bind", "source": str(bundle.rootfs / "second/file"), "options": ["bind"]},
    ]
    if own_user_namespace:
        enter_user_namespace(bundle)
    assert bundle.run("cat /second/file /third") == "texttext"
