"""What a container's user may do at once: speak by the names of its streams, be in its folder, execute its program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from minirt_bundle import Bundle, open_bundle

RUNTIMES = [
    "minirt",
    pytest.param("runc", marks=pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed")),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000}
        yield bundle


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_user_opens_the_standard_streams_by_name(bundle: Bundle, runtime: str) -> None:
    done = bundle.sh("echo a > /dev/stdout; echo b > /proc/self/fd/1; echo c > /dev/stderr").runtime(
        runtime, "run", "box"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\nb\n", "c\n")


def test_an_exec_opens_the_standard_streams_by_name(bundle: Bundle) -> None:
    bundle.sh("sleep 60").create()
    bundle.ok("start", "box")
    assert bundle.ok("exec", "--user", "1001:7", "box", "/bin/sh", "-c", "echo a > /dev/stdout") == "a\n"


def test_streams_change_their_owner_and_keep_their_group(bundle: Bundle) -> None:
    out, null = bundle.folder / "text", Path("/dev/null").stat().st_uid
    with out.open("w") as stdout:
        os.fchown(stdout.fileno(), 5, 6)
        bundle.sh("echo a > /dev/stdout")
        done = bundle.minirt("run", "box", stdout=stdout, stderr=stdout, capture_output=False)
    assert done.returncode == 0, out.read_text()
    assert (out.stat().st_uid, out.stat().st_gid, Path("/dev/null").stat().st_uid) == (1000, 6, null)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("owner", [0, 1000])
def test_a_folder_that_root_or_the_user_may_enter(bundle: Bundle, runtime: str, owner: int) -> None:
    place = bundle.rootfs / "place"
    place.mkdir(mode=0o700)
    os.chown(place, owner, owner)
    bundle.config["process"]["cwd"] = "/place"
    done = bundle.sh("pwd").runtime(runtime, "run", "box")
    assert (done.returncode, done.stdout) == (0, "/place\n"), done.stderr


@pytest.mark.parametrize(("name", "reason"), [("file", "not a directory"), ("loop", "symbolic links")])
def test_a_folder_that_nobody_can_enter_is_told(bundle: Bundle, name: str, reason: str) -> None:
    (bundle.rootfs / "file").touch()
    (bundle.rootfs / "loop").symlink_to("loop")
    bundle.config["process"]["cwd"] = f"/{name}"
    done = bundle.sh("pwd").minirt("run", "box")
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert bundle.leftovers() == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("capable", [True, False])
def test_an_ambient_capability_counts_when_the_program_is_found(bundle: Bundle, runtime: str, capable: bool) -> None:
    program = bundle.rootfs / "bin/busybox-mine"
    shutil.copy(bundle.rootfs / "bin/busybox", program)
    program.chmod(0o700)
    names = ["CAP_DAC_OVERRIDE"] if capable else []
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    bundle.config["process"]["capabilities"] = dict.fromkeys(sets, names)
    bundle.config["process"]["args"] = ["busybox-mine", "id", "-u"]
    done = bundle.runtime(runtime, "run", "box")
    if capable:
        assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
    else:
        assert done.returncode != 0
        # In the words of execvp(3), or of a search that passes over what cannot be executed (runc 1.1.15).
        assert "permission denied" in done.stderr or (runtime != "minirt" and "not found" in done.stderr)
