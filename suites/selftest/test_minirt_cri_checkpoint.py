"""Checkpoints of containers: the archive, and what is said where there can be none.

Where CRIU works on this machine's kernel it is used; a stand-in for it takes its place in the other tests, which are about
what minirt itself does.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running_with_image

from harness.minirt.container import checkpoint
from harness.minirt.errors import Unsupported

STAND_IN = """#!/bin/sh
# Takes criu's place: notes how it was called and whether the container stands still, then does what the test says.
here=$(dirname "$0")
echo "$@" > "$here/words"
while [ $# -gt 0 ]; do
  case "$1" in --images-dir) images=$2 ;; --work-dir) work=$2 ;; --freeze-cgroup) freezer=$2 ;; esac
  shift
done
cat "$freezer/freezer.state" "$freezer/cgroup.freeze" > "$here/frozen" 2>/dev/null
. "$here/does"
"""
WELL = 'echo image > "$images/core-1.img"; echo figures > "$work/stats-dump"; echo log > "$work/dump.log"'
BADLY = """echo '(00.1) Error (criu/files.c:12): Something is in the way' > "$work/dump.log"
echo '(00.2) Error (criu/cr-dump.c:34): Dumping FAILED.' >> "$work/dump.log"
exit 1"""
FOREVER = "echo up; rm /etc/passwd; echo text > /file; mkdir /made; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "criu").write_text(STAND_IN)
    (folder / "criu").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def served(bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    prefix = ("env", f"PATH={bin}:{os.environ['PATH']}")
    with running_with_image(tmp_path_factory.mktemp("minirt"), prefix=prefix) as found:
        yield found


@pytest.fixture
def daemon(served: tuple[Daemon, str]) -> Daemon:
    return served[0]


@pytest.fixture
def container(served: tuple[Daemon, str], request: pytest.FixtureRequest) -> Iterator[str]:
    daemon, image = served
    pod = daemon.pod("checkpointed")
    id = daemon.run(pod, image, FOREVER)
    wait = daemon.exec(id, "sh", "-c", "while [ ! -d /made ]; do sleep 0.05; done")
    assert wait.exit_code == 0
    yield id
    daemon.remove_pod(pod)


def make(daemon: Daemon, id: str, location: Path | str, timeout: int = 0) -> None:
    request = api.CheckpointContainerRequest(container_id=id, location=str(location), timeout=timeout)
    daemon.runtime.CheckpointContainer(request, timeout=60)


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined,no-any-return]


def nothing_is_left(daemon: Daemon, id: str, folder: Path) -> bool:
    return not (daemon.root / "containers" / id / "checkpoint").exists() and not list(folder.iterdir())


def test_the_archive(daemon: Daemon, container: str, bin: Path, tmp_path: Path) -> None:
    (bin / "does").write_text(WELL)
    location = tmp_path / "box.tar"
    location.write_text("an older one")
    make(daemon, container, location)
    assert stat.S_IMODE(location.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [location]
    with tarfile.open(location) as tar:
        names = set(tar.getnames())
        assert {"checkpoint", "checkpoint/core-1.img", "config.dump", "spec.dump", "dump.log", "stats-dump"} <= names
        files = {
            name: tar.extractfile(name) for name in ("config.dump", "spec.dump", "container.log", "rootfs-diff.tar")
        }
        config = json.load(files["config.dump"])  # type: ignore[arg-type]
        assert (config["id"], config["name"], config["restored"]) == (container, "box", False)
        assert json.load(files["spec.dump"])["process"]["args"][0] == "sh"  # type: ignore[arg-type]
        assert b"stdout F up" in files["container.log"].read()  # type: ignore[union-attr]
        with tarfile.open(fileobj=files["rootfs-diff.tar"]) as layer:
            written = set(layer.getnames())
            text = layer.extractfile("file")
            assert text is not None
            assert text.read() == b"text\n"
    assert {"file", "made", "etc/.wh.passwd"} <= written
    words = (bin / "words").read_text().split()
    assert words[words.index("--tree") + 1].isdigit()
    assert "--leave-running" in words
    assert any(word.startswith("file[") for word in words)  # its stdin is the machine's /dev/null
    assert (bin / "frozen").read_text().strip() in ("FROZEN", "1")
    assert daemon.exec(container, "echo", "here").stdout == b"here\n"
    assert not (daemon.root / "containers" / container / "checkpoint").exists()


def test_what_criu_cannot_do_is_said_in_its_words(daemon: Daemon, container: str, bin: Path, tmp_path: Path) -> None:
    (bin / "does").write_text(BADLY)
    with pytest.raises(grpc.RpcError, match="Something is in the way") as error:
        make(daemon, container, tmp_path / "box.tar")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    assert nothing_is_left(daemon, container, tmp_path)
    assert daemon.exec(container, "echo", "here").stdout == b"here\n"


def test_one_that_takes_too_long_is_given_up(daemon: Daemon, container: str, bin: Path, tmp_path: Path) -> None:
    (bin / "does").write_text("exec sleep 60")
    with pytest.raises(grpc.RpcError) as error:
        make(daemon, container, tmp_path / "box.tar", timeout=1)
    assert code(error) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert nothing_is_left(daemon, container, tmp_path)
    assert daemon.exec(container, "echo", "here").stdout == b"here\n"


def test_only_what_runs_has_checkpoints(daemon: Daemon, container: str, bin: Path, tmp_path: Path) -> None:
    (bin / "does").write_text(WELL)
    assert daemon.cli("pause", container).returncode == 0
    with pytest.raises(grpc.RpcError, match="paused") as error:
        make(daemon, container, tmp_path / "box.tar")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    assert daemon.cli("resume", container).returncode == 0
    daemon.stop(container)
    with pytest.raises(grpc.RpcError, match="not running") as error:
        make(daemon, container, tmp_path / "box.tar")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as error:
        make(daemon, "f" * 64, tmp_path / "box.tar")
    assert code(error) == grpc.StatusCode.NOT_FOUND
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("location", ["", "relative.tar", "/tmp/", "/tmp/a\0b"], ids=repr)
def test_a_place_that_cannot_be(daemon: Daemon, container: str, location: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        make(daemon, container, location)
    assert code(error) == grpc.StatusCode.INVALID_ARGUMENT


def test_a_folder_that_is_not_there(daemon: Daemon, container: str, tmp_path: Path) -> None:
    with pytest.raises(grpc.RpcError, match="not there") as error:
        make(daemon, container, tmp_path / "none/box.tar")
    assert code(error) == grpc.StatusCode.FAILED_PRECONDITION


def test_without_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(Unsupported, match="criu, which is not installed"):
        checkpoint.find_criu()


def test_a_checkpoint_by_criu(tmp_path: Path) -> None:
    try:
        done = subprocess.run(
            [checkpoint.find_criu(), "check"], capture_output=True, text=True, timeout=30, check=False
        )
    except Unsupported as error:
        pytest.skip(str(error))
    if done.returncode:
        pytest.skip(f"criu does not work on this kernel: {done.stderr.strip()[-200:]}")
    with running_with_image(tmp_path) as (daemon, image):
        id = daemon.run(daemon.pod("real"), image, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done")
        make(daemon, id, tmp_path / "box.tar")
        with tarfile.open(tmp_path / "box.tar") as tar:
            names = tar.getnames()
        assert {"checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/core-1.img"} <= set(names)
        assert any(name.startswith("checkpoint/pages-") for name in names)
        assert daemon.exec(id, "echo", "here").stdout == b"here\n"
        assert daemon.status(id).state == api.CONTAINER_RUNNING
