"""Volumes of a container (cri-api v1, ``Mount``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import RuntimeRefusal
from harness.linux.mounts import read_mounts
from harness.model.area import Area
from harness.session.breach import answers, drops, puts, swaps
from harness.session.cri import Box, CriTrial, secured

pytestmark = pytest.mark.operation(Area.MOUNTS)

MOUNTS = "CreateContainer.config.mounts"
PRIVATE, SLAVE, SHARED = 0, 1, 2
"""runtime.v1.MountPropagation"""


@pytest.fixture
def volume(cri: CriTrial) -> Path:
    """A folder of the host with a manifest in it."""
    folder = cri.trial.arena.root / cri.trial.name("volume")
    folder.mkdir()
    (folder / "manifest").write_text("cargo\n")
    return folder


def mount(host: Path, inside: str = "/cargo", **more: Any) -> dict[str, Any]:
    return {"host_path": str(host), "container_path": inside, **more}


def options(cri: CriTrial, box: Box, target: str) -> tuple[set[str], set[str]]:
    """Options of the last mount at `target`, and its ties of propagation."""
    found = [entry for entry in read_mounts(cri.init(box)) if entry.target == target]
    assert found, f"there is no mount at {target}"
    return set(found[-1].options), {tie.partition(":")[0] for tie in found[-1].propagation}


def on_host(cri: CriTrial, *argv: str) -> None:
    cri.trial.arena.run(argv, timeout_s=10).check()


@pytest.mark.breach(drops(MOUNTS))
def test_folder_of_the_host(volume: Path, cri: CriTrial) -> None:
    """What is in it is seen, what is written to it stays; the mount point is made."""
    box = cri.launch(mounts=[mount(volume, "/deep/down/cargo")])
    assert cri.said(box, "cat /deep/down/cargo/manifest && echo out >/deep/down/cargo/log") == "cargo"
    assert (volume / "log").read_text() == "out\n"


@pytest.mark.breach(drops(MOUNTS))
def test_file_of_the_host(volume: Path, cri: CriTrial) -> None:
    """A single file, also over one that the image has."""
    boxes = [mount(volume / "manifest", "/etc/passwd"), mount(volume / "manifest", "/new/file")]
    assert cri.run("cat /etc/passwd /new/file", mounts=boxes).lines == ["cargo", "cargo"]


@pytest.mark.breach(drops(f"{MOUNTS}.0.readonly"))
def test_readonly(volume: Path, cri: CriTrial) -> None:
    """Mount.readonly: "If set, the mount is read-only"."""
    box = cri.launch(mounts=[mount(volume, readonly=True)])
    assert cri.said(box, "cat /cargo/manifest") == "cargo"
    assert cri.execute(box, "touch /cargo/x").exit_code != 0
    assert "ro" in options(cri, box, "/cargo")[0]


@pytest.mark.breach(drops(f"{MOUNTS}.0.recursive_read_only"))
def test_recursive_readonly(volume: Path, cri: CriTrial) -> None:
    """recursive_read_only: what is mounted below is read-only too."""
    cri.needs_feature("recursive_read_only_mounts")
    (volume / "inner").mkdir()
    on_host(cri, "mount", "-t", "tmpfs", "inner", str(volume / "inner"))
    try:
        box = cri.launch(mounts=[mount(volume, readonly=True, recursive_read_only=True)])
        assert cri.execute(box, "touch /cargo/inner/x").exit_code != 0
        assert cri.status(box).mounts[0].recursive_read_only
        plain = cri.launch(mounts=[mount(volume, readonly=True)])
        assert cri.execute(plain, "touch /cargo/inner/x").exit_code == 0
    finally:
        on_host(cri, "umount", str(volume / "inner"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"recursive_read_only": True},
        {"recursive_read_only": True, "readonly": True, "propagation": SLAVE},
    ],
    ids=["not-readonly", "propagation"],
)
@pytest.mark.breach(drops(f"{MOUNTS}.0.recursive_read_only"))
def test_recursive_readonly_goes_with_readonly_and_private(wrong: dict[str, Any], volume: Path, cri: CriTrial) -> None:
    """recursive_read_only: "readonly must be explicitly set to true, and propagation must be PRIVATE"."""
    cri.needs_feature("recursive_read_only_mounts")
    share(cri, volume)
    try:
        with pytest.raises(RuntimeRefusal):
            cri.launch(mounts=[mount(volume, **wrong)])
    finally:
        unshare(cri, volume)


@pytest.mark.breach(drops(MOUNTS))
def test_symbolic_link_on_the_host_is_followed(volume: Path, cri: CriTrial) -> None:
    """host_path: "runtimes should follow the symlink and mount the real destination to container"."""
    link = volume.with_name(f"{volume.name}-link")
    link.symlink_to(volume)
    assert cri.run("cat /cargo/manifest", mounts=[mount(link)]).lines == ["cargo"]


@pytest.mark.breach(drops(MOUNTS))
def test_missing_host_path_is_refused_or_made(volume: Path, cri: CriTrial) -> None:
    """host_path: "If the hostPath doesn't exist, then runtimes should report error"; or make it, which many clients
    count on. Never is the volume left out.
    """
    missing = volume / "none"
    try:
        box = cri.launch(mounts=[mount(missing)])
    except RuntimeRefusal:
        return
    cri.said(box, "echo kept >/cargo/log")
    assert (missing / "log").read_text() == "kept\n"


@pytest.mark.breach(puts(f"{MOUNTS}.0.propagation", SLAVE))
def test_private_propagation(volume: Path, cri: CriTrial) -> None:
    """PROPAGATION_PRIVATE: "No mount propagation"."""
    shared = share(cri, volume)
    box = cri.launch(mounts=[mount(volume)])
    try:
        on_host(cri, "mount", "-t", "tmpfs", "late", str(shared / "late"))
        on_host(cri, "touch", str(shared / "late" / "seen"))
        assert cri.said(box, "ls /cargo/late") == ""
    finally:
        unshare(cri, volume)


@pytest.mark.breach(drops(f"{MOUNTS}.0.propagation"))
def test_propagation_to_the_container(volume: Path, cri: CriTrial) -> None:
    """PROPAGATION_HOST_TO_CONTAINER: "Mounts get propagated from the host to the container", and not back."""
    share(cri, volume)
    pod = cri.pod(linux=secured(privileged=True))
    box = cri.launch(pod=pod, mounts=[mount(volume, propagation=SLAVE)], linux=secured(privileged=True))
    try:
        on_host(cri, "mount", "-t", "tmpfs", "late", str(volume / "late"))
        on_host(cri, "touch", str(volume / "late" / "seen"))
        assert cri.said(box, "ls /cargo/late") == "seen"
        cri.said(box, "mkdir -p /cargo/inside && mount -t tmpfs inside /cargo/inside")
        assert not any(entry.target == str(volume / "inside") for entry in cri.trial.arena.mounts())
    finally:
        unshare(cri, volume)


@pytest.mark.breach(drops(f"{MOUNTS}.0.propagation"))
def test_propagation_both_ways(volume: Path, cri: CriTrial) -> None:
    """PROPAGATION_BIDIRECTIONAL: "and from the container to the host"."""
    share(cri, volume)
    pod = cri.pod(linux=secured(privileged=True))
    box = cri.launch(pod=pod, mounts=[mount(volume, propagation=SHARED)], linux=secured(privileged=True))
    try:
        cri.said(box, "mkdir -p /cargo/inside && mount -t tmpfs inside /cargo/inside")
        assert any(entry.target == str(volume / "inside") for entry in cri.trial.arena.mounts())
        on_host(cri, "mount", "-t", "tmpfs", "late", str(volume / "late"))
        on_host(cri, "touch", str(volume / "late" / "seen"))
        assert cri.said(box, "ls /cargo/late") == "seen"
    finally:
        cri.stop(box)
        unshare(cri, volume)


def share(cri: CriTrial, volume: Path) -> Path:
    """Make `volume` a shared mount of its own (mount_namespaces(7)), with room for a late one."""
    (volume / "late").mkdir()
    on_host(cri, "mount", "--bind", str(volume), str(volume))
    on_host(cri, "mount", "--make-shared", str(volume))
    return volume


def unshare(cri: CriTrial, volume: Path) -> None:
    cri.trial.arena.run(["umount", "-R", "-l", str(volume)], timeout_s=10)


@pytest.mark.parametrize("propagation", [SLAVE, SHARED])
@pytest.mark.breach(drops(f"{MOUNTS}.0.propagation"))
def test_propagation_needs_a_shared_mount(propagation: int, volume: Path, cri: CriTrial) -> None:
    """A promise that cannot be kept is refused: nothing spreads out of a private mount."""
    on_host(cri, "mount", "--bind", str(volume), str(volume))
    on_host(cri, "mount", "--make-private", str(volume))
    try:
        with pytest.raises(RuntimeRefusal):
            cri.launch(mounts=[mount(volume, propagation=propagation)])
    finally:
        unshare(cri, volume)


@pytest.mark.breach(answers("ContainerStatus.status.mounts"))
def test_status_has_the_mounts(volume: Path, cri: CriTrial) -> None:
    """ContainerStatus.mounts: "Mounts for the container"."""
    (found,) = cri.status(cri.create(mounts=[mount(volume, readonly=True)])).mounts or [None]
    assert found is not None, "the status has no mounts"
    assert (found.host_path, found.container_path, found.readonly) == (str(volume), "/cargo", True)


@pytest.mark.breach(puts("CreateContainer.config.mounts.0.container_path", "/elsewhere"))
def test_mount_over_dev_shm_and_hosts(volume: Path, cri: CriTrial) -> None:
    """Mounts of the request win over those that a runtime makes by itself, as kubelet's /etc/hosts does."""
    (volume / "hosts").write_text("10.1.2.3 quay\n")
    found = cri.run("cat /etc/hosts", mounts=[mount(volume / "hosts", "/etc/hosts")])
    assert found.lines == ["10.1.2.3 quay"]


def _escapes(request: dict[str, Any], call: Any) -> Any:
    (Path(request["config"]["mounts"][0]["host_path"]) / "escaped").mkdir()
    return call(request)


@pytest.mark.breach(swaps("CreateContainer", _escapes))
def test_mount_point_cannot_leave_the_container(volume: Path, cri: CriTrial) -> None:
    """container_path is "within the container", whatever it says: nothing appears on the host."""
    target = volume / "escaped"
    before = set(volume.iterdir())
    try:
        box = cri.launch(mounts=[mount(volume, f"/../../../../../../../..{target}")])
    except RuntimeRefusal:
        box = None
    assert set(volume.iterdir()) == before
    assert not any(entry.target == str(target) for entry in cri.trial.arena.mounts())
    if box is not None:
        assert cri.said(box, "cat", f"{target}/manifest") == "cargo"


@pytest.mark.breach(drops(f"{MOUNTS}.0.image"))
def test_image_as_a_volume(cri: CriTrial) -> None:
    """Mount.image: "Mount an image reference"; "All OCI mounts are per feature definition readonly"."""
    cri.since("1.33")
    spare = cri.image("seatrial/spare:1")
    cri.call("PullImage", image={"image": spare})
    box = cri.launch(mounts=[{"container_path": "/cargo", "image": {"image": spare}, "readonly": True}])
    assert "base is shared" in cri.said(box, "cat /cargo/etc/spare")
    assert cri.execute(box, "touch /cargo/x").exit_code != 0
