"""CRI's ImageService as a client sees it: statuses, credentials, what survives the daemon, what is left."""

from __future__ import annotations

import base64
import json
import os
import signal
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running
from minirt_registry import Registry, busybox_layer, entry, serving_registry, tar_of

from harness.clock import wait_until

FOREVER = "while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with serving_registry() as registry:
        registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "User": "alice:sailors"})
        registry.add_image("pause", "1", [tar_of(("pause", b""))])
        yield registry


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Daemon]:
    top = tmp_path_factory.mktemp("minirt")
    words = ("--pause-image", f"{registry.address}/pause:1", "--registry-config", str(top / "config.json"))
    with running(Daemon(top, extra=words)) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def behaving(daemon: Daemon, registry: Registry) -> Iterator[None]:
    """A registry without tricks, and no image, before and after each test."""
    yield
    registry.token, registry.basic, registry.hold = "", False, None
    registry.faults.clear()

    def emptied() -> bool:
        for image in daemon.images.ListImages(api.ListImagesRequest()).images:
            remove(daemon, image.id)
        return left(daemon) == []

    wait_until(emptied, 20, "all images to be gone")  # a large one is removed behind the back of its last call


def pull(daemon: Daemon, name: str, auth: Any = None, timeout: float = 30) -> str:
    request = api.PullImageRequest(image=api.ImageSpec(image=name), auth=auth)
    return str(daemon.images.PullImage(request, timeout=timeout).image_ref)


def remove(daemon: Daemon, name: str) -> None:
    daemon.images.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=name)))


def status(daemon: Daemon, name: str, verbose: bool = False) -> Any:
    return daemon.images.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=name), verbose=verbose))


def left(daemon: Daemon) -> list[str]:
    folders = (daemon.root / "layers", daemon.root / "images/blobs/sha256")
    return [path.name for folder in folders for path in folder.iterdir()]


def test_an_image_is_told_of_by_all_its_names(daemon: Daemon, registry: Registry) -> None:
    name = f"{registry.address}/busybox:1"
    id = pull(daemon, name)
    found = status(daemon, name, verbose=True)
    assert (found.image.id, list(found.image.repo_tags)) == (id, [name])
    assert (found.image.username, found.image.HasField("uid"), found.image.pinned) == ("alice", False, False)
    assert '"chainID": "sha256:' in found.info["info"]
    assert '"imageSpec": {' in found.info["info"]
    for other in (id, id.removeprefix("sha256:"), id[7:19], found.image.repo_digests[0]):
        assert status(daemon, other).image == found.image
        listed = daemon.images.ListImages(
            api.ListImagesRequest(filter=api.ImageFilter(image=api.ImageSpec(image=other)))
        )
        assert list(listed.images) == [found.image]
    assert not status(daemon, "nothing:1").HasField("image")
    remove(daemon, id)
    remove(daemon, id)
    assert left(daemon) == []


@pytest.mark.parametrize(
    "name", ["UPPER CASE", "a\nb", "../../etc/passwd", "x@sha256:123", "sha256:123", "é", "x" * 100_000]
)
def test_what_cannot_be_a_name_is_not_here(daemon: Daemon, name: str) -> None:
    """Clients ask before they pull, and remove what may be gone: as with containerd, the pull alone tells them why not."""
    assert not status(daemon, name).HasField("image")
    remove(daemon, name)
    wanted = api.ImageFilter(image=api.ImageSpec(image=name))
    assert not daemon.images.ListImages(api.ListImagesRequest(filter=wanted)).images


def test_the_pause_image_is_pinned(daemon: Daemon, registry: Registry) -> None:
    id = pull(daemon, f"{registry.address}/pause:1")
    assert status(daemon, id).image.pinned


def test_space_is_told_as_it_is(daemon: Daemon, registry: Registry) -> None:
    def used() -> tuple[int, int]:
        row = daemon.images.ImageFsInfo(api.ImageFsInfoRequest()).image_filesystems[0]
        assert row.fs_id.mountpoint == str(daemon.root)
        return row.used_bytes.value, row.inodes_used.value

    assert used() == (0, 0)
    pull(daemon, f"{registry.address}/busybox:1")
    size, inodes = used()
    assert size > len(busybox_layer()) * 0.9
    assert 5 < inodes < 50
    remove(daemon, f"{registry.address}/busybox:1")
    assert used() == (0, 0)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("UPPER CASE", grpc.StatusCode.INVALID_ARGUMENT),
        ("a\nb", grpc.StatusCode.INVALID_ARGUMENT),
        ("../../etc/passwd", grpc.StatusCode.INVALID_ARGUMENT),
        ("{registry}/x@sha256:123", grpc.StatusCode.INVALID_ARGUMENT),
        ("x" * 100_000, grpc.StatusCode.INVALID_ARGUMENT),
        ("{registry}/nothing:1", grpc.StatusCode.NOT_FOUND),
        ("127.0.0.1:1/a:1", grpc.StatusCode.UNAVAILABLE),
    ],
    ids=["none", "spaces", "newline", "climbing", "digest", "huge", "unknown", "unreachable"],
)
def test_names_that_lead_nowhere(daemon: Daemon, registry: Registry, name: str, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pull(daemon, name.replace("{registry}", registry.address))
    assert caught.value.code() == code  # type: ignore[attr-defined]
    assert left(daemon) == []


@pytest.mark.parametrize(
    "auth",
    [
        {"username": "user", "password": "secret"},
        {"auth": base64.b64encode(b"user:secret").decode()},
        {"auth": base64.b64encode(b"user:secret\0\0").decode(), "server_address": "{registry}"},
        {"identity_token": "identity"},
        {"registry_token": "abc"},
    ],
    ids=["user and password", "auth", "for a server", "identity", "registry token"],
)
def test_credentials_of_a_call(daemon: Daemon, registry: Registry, auth: dict[str, str]) -> None:
    registry.token = "abc"
    with pytest.raises(grpc.RpcError) as caught:
        pull(daemon, f"{registry.address}/busybox:1")
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
    facts = {key: value.replace("{registry}", registry.address) for key, value in auth.items()}
    pull(daemon, f"{registry.address}/busybox:1", api.AuthConfig(**facts))
    log = (daemon.top / "daemon.log").read_text()
    assert "secret" not in log
    assert "dXNlcjpzZWNyZXQ" not in log


def test_credentials_that_are_no_base64(daemon: Daemon, registry: Registry) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pull(daemon, f"{registry.address}/busybox:1", api.AuthConfig(auth="%%%"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_a_hostile_layer_is_refused_and_leaves_nothing(daemon: Daemon, registry: Registry) -> None:
    raw = tar_of(("good", b"1"), entry("way", tarfile.SYMTYPE, linkname="/"), ("../../../../minirt-escaped", b"x"))
    registry.add_image("evil", "1", [tar_of(("fine", b"1")), raw])
    with pytest.raises(grpc.RpcError, match="outside its root") as caught:
        pull(daemon, f"{registry.address}/evil:1")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert left(daemon) == []
    assert not Path("/minirt-escaped").exists()


def test_a_pull_whose_client_runs_out_of_time_leaves_nothing(daemon: Daemon, registry: Registry) -> None:
    registry.hold = threading.Event()
    with pytest.raises(grpc.RpcError) as caught:
        pull(daemon, f"{registry.address}/busybox:1", timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    log = daemon.top / "daemon.log"
    # Until the daemon has noticed, the pull is one that may succeed.
    wait_until(lambda: "busybox:1 was cancelled" in log.read_text(), 10, "the daemon to notice")
    registry.hold.set()
    wait_until(lambda: 'error="the pull was cancelled"' in log.read_text(), 10, "the pull to end")
    assert left(daemon) == []


def test_a_container_outlives_its_image(daemon: Daemon, registry: Registry) -> None:
    id = pull(daemon, f"{registry.address}/busybox:1")
    pod = daemon.pod("outlives")
    try:
        container = daemon.run(pod, id, FOREVER)
        remove(daemon, id)
        assert not status(daemon, id).HasField("image")
        assert daemon.exec(container, "echo", "here").stdout == b"here\n"
        assert left(daemon) != []
        daemon.stop(container)
        daemon.remove(container)
        assert left(daemon) == []
    finally:
        daemon.remove_pod(pod)


@pytest.mark.parametrize("user", [False, True], ids=["plain", "in a user namespace"])
def test_a_container_of_as_many_layers_as_engines_allow(daemon: Daemon, registry: Registry, user: bool) -> None:
    layers = [tar_of((f"f{number}", b"%d" % number)) for number in range(126)]
    registry.add_image("tall", "1", [busybox_layer(), *layers], {"Env": ["PATH=/bin"]}, compress=False)
    name = f"{registry.address}/tall:1"
    id = pull(daemon, name)
    config, options = daemon.pod_config("tall"), api.NamespaceOption(pid=api.NamespaceMode.CONTAINER)
    options.network = api.NamespaceMode.NODE
    if user:
        (daemon.top / "net.d").mkdir()
        network = {"cniVersion": "1.0.0", "name": "lo", "plugins": [{"type": "loopback"}]}
        (daemon.top / "net.d/10.conflist").write_text(json.dumps(network))
        rows = [api.IDMapping(host_id=200_000, container_id=0, length=65536)]
        options.network = api.NamespaceMode.POD
        options.userns_options.CopyFrom(api.UserNamespace(mode=api.NamespaceMode.POD, uids=rows, gids=rows))
        config.linux.security_context.namespace_options.CopyFrom(options)
    pod = daemon.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id
    try:
        whole = api.Mount(container_path="/whole", image=api.ImageSpec(image=id), readonly=True)
        container = daemon.run(pod, id, FOREVER, mounts=[whole], namespaces=options)
        assert daemon.exec(container, "cat", "/f0", "/f125", "/whole/f0", "/whole/f125").stdout == b"01250125"
        daemon.stop(container)
        daemon.remove(container)
    finally:
        daemon.remove_pod(pod)
        remove(daemon, id)
    wait_until(lambda: left(daemon) == [], 20, "the layers to be gone")


def test_a_daemon_that_is_killed_in_the_middle_of_a_pull(tmp_path: Path, registry: Registry) -> None:
    noise = tar_of(("noise", os.urandom(100_000)))
    registry.add_image("heavy", "1", [tar_of(("first", b"1")), noise])
    name = f"{registry.address}/heavy:1"
    daemon = Daemon(tmp_path)
    with running(daemon):
        registry.hold = threading.Event()
        call = daemon.images.PullImage.future(api.PullImageRequest(image=api.ImageSpec(image=name)))
        wait_until(lambda: any("/blobs/" in path for path in registry.requests), 10, "the pull")
        daemon.end(signal.SIGKILL)
        call.cancel()
        registry.hold.set()
        registry.hold = None
        daemon.start()
        assert not daemon.images.ListImages(api.ListImagesRequest()).images
        assert left(daemon) == []
        id = pull(daemon, name)
        daemon.end(signal.SIGKILL)
        daemon.start()
        assert status(daemon, name).image.id == id
