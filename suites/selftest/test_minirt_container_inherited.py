"""A container without a mount namespace of its own: what is mounted for it is below its root, and goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

from harness.linux.mounts import mounts_below, read_mounts
from harness.linux.namespaces import FLAGS, identity


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        linux = bundle.config["linux"]
        linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "mount"]
        yield bundle


def below(bundle: Bundle) -> list[str]:
    return [mount.target for mount in mounts_below(read_mounts(), str(bundle.rootfs))]


@pytest.mark.parametrize("by_path", [False, True])
def test_its_mounts_are_there_and_go_with_it(bundle: Bundle, by_path: bool) -> None:
    if by_path:  # which is the same, and must not be taken for one whose root can be changed
        bundle.config["linux"]["namespaces"].append({"type": "mount", "path": f"/proc/{os.getpid()}/ns/mnt"})
    root = Path("/").stat()
    bundle.sh("echo $$; stat -L -c %i /proc/self/ns/mnt; ls /; while :; do sleep 0.05; done").create()
    bundle.ok("start", "box")
    bundle.await_output("tmp")
    pid, namespace, *names = bundle.output().split()
    assert (int(pid), int(namespace)) == (1, identity("self", "mnt")[1])
    assert {"bin", "dev", "proc", "sys"} <= set(names)
    assert {str(bundle.rootfs), f"{bundle.rootfs}/proc", f"{bundle.rootfs}/dev"} <= set(below(bundle))
    assert bundle.ok("exec", "box", "ls", "/proc/self").split()
    assert os.path.samestat(Path("/").stat(), root)
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


def test_run_leaves_nothing(bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    done = bundle.sh("touch /file; cat /proc/self/timerslack_ns /proc/timer_list; touch /dev/file && echo ran").minirt(
        "run", "box"
    )
    assert done.stdout.split()[-1] == "ran", done.stderr
    assert "/file: Read-only file system" in done.stderr
    assert not (bundle.rootfs / "file").exists()
    assert bundle.leftovers() == []


@pytest.mark.parametrize("what", ["program", "mount", "hook"])
def test_a_failure_leaves_nothing(bundle: Bundle, what: str) -> None:
    if what == "program":
        bundle.config["process"]["args"] = ["/bin/missing"]
    elif what == "mount":
        bundle.config["mounts"].append({"destination": "/x", "type": "no-such-type", "source": "x"})
    else:
        bundle.config["hooks"] = {"createContainer": [{"path": "/bin/false"}]}
    done = bundle.minirt("run", "box")
    assert done.returncode == 1
    assert bundle.leftovers() == []


def test_a_mount_of_somebody_else_at_the_same_place_stays(bundle: Bundle) -> None:
    subprocess.run(["mount", "--bind", str(bundle.rootfs), str(bundle.rootfs)], check=True, timeout=20)
    try:
        assert bundle.run("echo ran") == "ran\n"
        bundle.config["process"]["args"] = ["/bin/missing"]
        assert bundle.minirt("run", "box").returncode == 1
        assert below(bundle) == [str(bundle.rootfs)]
    finally:
        subprocess.run(["umount", str(bundle.rootfs)], check=True, timeout=20)


@pytest.mark.parametrize("kind", sorted(FLAGS))
def test_a_path_of_another_kind_is_no_namespace_to_join(bundle: Bundle, kind: str) -> None:
    """config-linux.md, "Namespaces": it "MUST generate an error if path is not associated with a namespace of type type"."""
    linux = bundle.config["linux"]
    name = {"net": "network", "mnt": "mount"}.get(kind, kind)
    other = "uts" if kind != "uts" else "ipc"
    for path in (f"/proc/{os.getpid()}/ns/{other}", "/etc/passwd", "/proc/self/ns"):
        linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] not in (name, "mount")]
        linux["namespaces"] += [{"type": name, "path": path}]
        if kind != "mnt":
            linux["namespaces"].append({"type": "mount"})
        done = bundle.sh("echo ran").minirt("run", "box")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{path} is not a {kind} namespace" in done.stderr
        assert bundle.leftovers() == []


JOIN = """
import os, sys
from harness.minirt.container import channel
from harness.minirt.container.operations import JoinNamespaces, Stage
kind, other = sys.argv[1:]
stage = Stage(channel.pair()[1], {kind: os.open(f"/proc/self/ns/{other}", os.O_RDONLY)}, -1, None)
try:
    JoinNamespaces((kind,)).perform(stage)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("kind", sorted(FLAGS))
def test_what_is_no_longer_of_its_kind_is_not_joined(kind: str) -> None:
    """The path is opened once more after it was checked, and may lead elsewhere by then: the kernel is told the kind too."""
    argv = [sys.executable, "-c", JOIN, kind, "uts" if kind != "uts" else "ipc"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.stdout == "Invalid argument\n", done.stderr
