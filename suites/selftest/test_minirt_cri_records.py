"""What is remembered on disk: damaged, foreign, of another version, or on a disk that is full. One bad thing loses no other."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running, running_with_image

from harness.clock import wait_until
from harness.linux import syscalls
from harness.minirt.cri.records import EXITED, VERSION, Container, Folder, Pod

FOREVER = "while :; do sleep 0.1; done"


def a_pod(id: str) -> Pod:
    return Pod(id, api.PodSandboxConfig(metadata=api.PodSandboxMetadata(name="a")), "", 1, ips=("10.0.0.1",))


def a_container(id: str) -> Container:
    config = api.ContainerConfig(metadata=api.ContainerMetadata(name="a"))
    return Container(id, "pod", config, "sha256:1", ("sha256:2",), "/a/b", "", 15, (1, 2, (3,)), 4, EXITED, exit_code=3)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "pods", "pod.json")
    (tmp_path / "pods/a").mkdir()
    (tmp_path / "pods/b").mkdir()
    folder.write("b", a_pod("b").to_json())
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "containers", "container.json")
    (tmp_path / "containers/a").mkdir()
    folder.write("a", a_container("a").to_json())
    assert list(folder.read(Container)) == [("a", a_container("a"))]
    assert [path.name for path in (tmp_path / "containers/a").iterdir()] == ["container.json"]
    folder.remove("a")
    folder.remove("a")
    assert list(folder.read(Container)) == []


def changed(**change: Any) -> bytes:
    return json.dumps({**a_pod("a").to_json(), **change}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        changed()[:-20],
        b"\0" * 512,
        b"[]",
        b"null",
        b"5",
        b"\xff\xfe",
        b"[" * 100_000,
        changed(id="b"),
        changed(version=VERSION + 1),
        changed(config="not base64!"),
        changed(config="/////w=="),
        changed(config=5),
        changed(ready="yes"),
        changed(created_ns="soon"),
        changed(ips=5),
        json.dumps({"id": "a"}).encode(),
    ],
    ids=lambda raw: raw[:30].decode(errors="replace") if len(raw) < 400 else f"{len(raw)} bytes of {raw[:1]!r}",
)
def test_a_damaged_record_is_put_aside_and_the_next_one_read(folder: Folder, tmp_path: Path, raw: bytes) -> None:
    folder.path("a").joinpath("pod.json").write_bytes(raw)
    assert list(folder.read(Pod)) == [("a", None), ("b", a_pod("b"))]
    assert (tmp_path / "damaged/a.pod.json").read_bytes() == raw
    assert list(folder.read(Pod)) == [("a", None), ("b", a_pod("b"))]


def test_records_of_other_versions(folder: Folder) -> None:
    row = a_pod("a").to_json()
    del row["made_cgroup_parent"]  # an older one had fewer fields, and no version
    folder.path("a").joinpath("pod.json").write_text(json.dumps({**row, "colour": "blue"}))
    assert list(folder.read(Pod)) == [("a", a_pod("a")), ("b", a_pod("b"))]


def test_what_is_no_folder_is_passed_over(folder: Folder) -> None:
    folder.path("stray").write_text("")
    folder.path("a").joinpath("pod.json").mkdir()
    assert dict(folder.read(Pod)) == {"a": None, "b": a_pod("b"), "stray": None}


# -- a daemon that finds such things -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    with running_with_image(tmp_path_factory.mktemp("minirt")) as found:
        yield found


def corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:25])


def listed(daemon: Daemon) -> set[str]:
    return {row.id for row in daemon.runtime.ListContainers(api.ListContainersRequest()).containers}


def test_the_others_live_on(served: tuple[Daemon, str]) -> None:
    daemon, image = served
    pods = [daemon.pod(name) for name in ("kept", "lost")]
    kept, lost, ended, in_lost_pod = (
        daemon.run(pods[0], image, FOREVER, "kept"),
        daemon.run(pods[0], image, FOREVER, "lost"),
        daemon.run(pods[0], image, "exit 4", "ended"),
        daemon.run(pods[1], image, FOREVER, "in-lost-pod"),
    )
    daemon.wait_exited(ended)
    daemon.end(signal.SIGKILL)
    corrupt(daemon.root / "containers" / lost / "container.json")
    corrupt(daemon.root / "pods" / pods[1] / "pod.json")
    (daemon.state / "containers" / ended / "exit.json").write_text("[]")
    daemon.start()
    try:
        assert listed(daemon) == {kept, ended, in_lost_pod}
        assert daemon.exec(kept, "echo", "here").stdout == b"here\n"
        assert daemon.status(ended).exit_code == 4
        # Nobody could stop what has no record, and what has no pod has no network any more.
        wait_until(lambda: daemon.status(in_lost_pod).state == api.CONTAINER_EXITED, 10, "its end")
        assert not [path for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/**/{lost}") if path.is_dir()]
        log = (daemon.top / "daemon.log").read_text()
        for id, name in ((lost, "container.json"), (pods[1], "pod.json")):
            assert re.search(rf'level=warning msg="a record cannot be read" path=\S+{id}/{name}', log)
            assert (daemon.root / "damaged" / f"{id}.{name}").stat().st_size == 25
        daemon.remove(in_lost_pod)
        assert not list(Path("/sys/fs/cgroup").glob(f"*{CGROUP}/lost"))
        daemon.remove_pod(pods[0])
        assert listed(daemon) == set()
    finally:
        for pod in pods:
            daemon.remove_pod(pod)


@pytest.mark.parametrize("name", ["config.json", "exit.json", "state.json"])
def test_a_damaged_file_of_a_running_container(served: tuple[Daemon, str], name: str) -> None:
    daemon, image = served
    pod = daemon.pod("damaged")
    try:
        id = daemon.run(pod, image, FOREVER)
        (daemon.state / "containers" / id / name).write_text("{")
        daemon.end(signal.SIGKILL)
        daemon.start()
        assert daemon.status(id).state == api.CONTAINER_RUNNING
        if name == "config.json":
            with pytest.raises(grpc.RpcError) as error:
                daemon.exec(id, "true")
            assert error.value.code() == grpc.StatusCode.DATA_LOSS  # type: ignore[attr-defined]
        else:
            assert daemon.exec(id, "echo", "here").stdout == b"here\n"
        daemon.stop(id)
        assert daemon.status(id).exit_code == 137
    finally:
        daemon.remove_pod(pod)


# -- a disk that has no room, or may not be written to ---------------------------------------------------------------------------


class Disk:
    """A small file system for a daemon's folders. `fill` and `read_only` until `relieve`."""

    def __init__(self, top: Path) -> None:
        self.top = top
        syscalls.mount("minirt-test", str(top), "tmpfs", 0, "size=24m,nr_inodes=1500,mode=755")

    def fill_bytes(self) -> None:
        with (self.top / "ballast").open("ab", buffering=0) as file:
            for part in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"\0" * part)
                except OSError:
                    continue

    def fill_inodes(self) -> None:
        (self.top / "many").mkdir()
        try:
            for number in range(5000):
                (self.top / "many" / str(number)).touch()
        except OSError:
            return

    def read_only(self) -> None:
        syscalls.mount("", str(self.top), None, syscalls.MS_REMOUNT | syscalls.MS_RDONLY)

    def relieve(self) -> None:
        syscalls.mount("", str(self.top), None, syscalls.MS_REMOUNT)
        (self.top / "ballast").unlink(missing_ok=True)
        for path in (self.top / "many").glob("*"):
            path.unlink()

    def close(self) -> None:
        syscalls.umount2(str(self.top), syscalls.MNT_DETACH)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (tmp_path / "root").mkdir()
    disk = Disk(tmp_path / "root")
    yield disk
    disk.close()


EXHAUSTED, PRECONDITION = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(Disk.fill_bytes, EXHAUSTED), (Disk.fill_inodes, EXHAUSTED), (Disk.read_only, PRECONDITION)],
    ids=["full", "no inodes", "read-only"],
)
def test_a_root_folder_without_room(
    tmp_path: Path, disk: Disk, spoil: Callable[[Disk], None], code: grpc.StatusCode
) -> None:
    with running_with_image(tmp_path) as (daemon, image):
        pod = daemon.pod("before")
        id = daemon.run(pod, image, FOREVER)
        created = daemon.create(pod, image, "exit 5", "created")
        spoil(disk)
        for refused in (lambda: daemon.pod("after"), lambda: daemon.create(pod, image, FOREVER, "after")):
            with pytest.raises(grpc.RpcError) as error:
                refused()
            assert error.value.code() == code, error.value  # type: ignore[attr-defined]
        assert listed(daemon) == {id, created}
        assert len(daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items) == 1
        assert daemon.exec(id, "echo", "here").stdout == b"here\n"
        daemon.stop(id)
        assert daemon.status(id).exit_code == 137
        disk.relieve()
        daemon.start_container(created)
        assert daemon.wait_exited(created).exit_code == 5
        daemon.end(signal.SIGKILL)
        daemon.start()
        assert daemon.status(id).exit_code == 137
        daemon.remove_pod(pod)
        daemon.remove_pod(daemon.pod("after"))
        assert daemon.left()["files"] == [str(daemon.state / "supervisor.sock")] or daemon.left()["files"] == [
            "supervisor.sock"
        ]


def test_a_full_disk_does_not_keep_it_from_starting_and_clearing_away(tmp_path: Path, disk: Disk) -> None:
    with running_with_image(tmp_path) as (daemon, image):
        pod = daemon.pod("before")
        id = daemon.run(pod, image, FOREVER)
        daemon.end(signal.SIGKILL)
        disk.fill_bytes()
        disk.fill_inodes()
        daemon.start()
        assert daemon.exec(id, "echo", "here").stdout == b"here\n"
        daemon.remove_pod(pod)
        assert listed(daemon) == set()


def test_what_cannot_be_removed_stays_listed(tmp_path: Path, disk: Disk) -> None:
    with running(Daemon(tmp_path)) as daemon:
        pod = daemon.pod("kept")
        disk.read_only()
        daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
        with pytest.raises(grpc.RpcError) as error:
            daemon.runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=pod))
        assert error.value.code() == PRECONDITION  # type: ignore[attr-defined]
        items = daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items
        assert [(row.id, row.state) for row in items] == [(pod, api.SANDBOX_NOTREADY)]
        disk.relieve()
        daemon.remove_pod(pod)
        assert not daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items
