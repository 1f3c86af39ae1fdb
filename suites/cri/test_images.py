"""Images: pulled in every form, listed, described, removed (cri-api v1, ImageService)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.errors import NotFound, RuntimeRefusal
from harness.model.area import Area
from harness.session.breach import accepts, answers, drops, pretends, puts, refuses, swaps
from harness.session.cri import SLEEP, CriTrial

pytestmark = pytest.mark.operation(Area.IMAGES)

SPARE = "an image of which the base is shared and the rest is not"
USER, PASSWORD = "sailor", "harbour"
"""of the registry's locked repositories (harness.image.server)"""


@pytest.fixture
def bare(cri: CriTrial) -> Iterator[CriTrial]:
    """None of the images that these tests pull is there, before and after."""
    remove_all(cri)
    yield cri
    cri.tidy()
    remove_all(cri)


FORMS = ("plain:1", "zstd:1", "docker:1", "many:1", "dockermany:1")
OTHERS = ("untagged:latest", "harbour:1", "numbered:1", "spare:1")
NAMES = (*(f"seatrial/{name}" for name in (*FORMS, *OTHERS)), "private/spare:1", "guarded/spare:1")


def remove_all(cri: CriTrial) -> None:
    ids = {image.id for name in NAMES if (image := status(cri, cri.image(name))).id}
    for id in ids:
        cri._honest.call("RemoveImage", {"image": {"image": id}})


def status(cri: CriTrial, reference: str) -> Any:
    return cri.call("ImageStatus", image={"image": reference}).image


def pull(cri: CriTrial, reference: str, **more: Any) -> str:
    return str(cri.call("PullImage", image={"image": reference}, **more).image_ref)


def digest_of(cri: CriTrial, name: str) -> str:
    manifests = json.loads((cri.trial.blobs / "manifests.json").read_text())
    return str(manifests[name]["digest"])


def prints(cri: CriTrial, name: str) -> str:
    """What the image's own command prints."""
    return cri.run(image=name).text.strip()


@pytest.mark.breach(pretends("PullImage"))
def test_pull_by_tag(bare: CriTrial) -> None:
    """PullImageResponse.image_ref: "this should be an image ID or digest", by which the image is found."""
    name = bare.image("seatrial/plain:1")
    ref = pull(bare, name)
    found = status(bare, name)
    assert found.id and ref in (found.id, *found.repo_digests)
    assert status(bare, ref).id == found.id
    assert list(found.repo_tags) == [name]


@pytest.mark.breach(puts("PullImage.image.image", "no.such.host/none:1"))
def test_pull_by_digest(bare: CriTrial) -> None:
    """The digest counts; the image has it among its repo_digests, and no tag."""
    name = bare.image("seatrial/plain")
    digest = digest_of(bare, "seatrial/plain:1")
    pull(bare, f"{name}@{digest}")
    found = status(bare, f"{name}@{digest}")
    assert f"{name}@{digest}" in found.repo_digests
    assert not found.repo_tags


@pytest.mark.breach(refuses("PullImage"))
def test_pull_without_a_tag(bare: CriTrial) -> None:
    """Then it is "latest"."""
    pull(bare, bare.image("seatrial/untagged"))
    assert bare.image("seatrial/untagged:latest") in status(bare, bare.image("seatrial/untagged")).repo_tags


@pytest.mark.parametrize("name", [f"seatrial/{name}" for name in FORMS])
@pytest.mark.breach(
    swaps(
        "CreateContainer",
        lambda request, call: call({**request, "config": {**request["config"], "command": ["/bin/echo", "another"]}}),
    )
)
def test_every_form_of_an_image_runs(name: str, bare: CriTrial) -> None:
    """Layers plain, gzip and zstd; OCI's and Docker's media types; an index, of which this platform's is taken."""
    pull(bare, bare.image(name))
    assert prints(bare, name) == SPARE


@pytest.mark.breach(accepts("PullImage"))
def test_image_for_another_platform_only_is_refused(bare: CriTrial) -> None:
    with pytest.raises(RuntimeRefusal):
        pull(bare, bare.image("seatrial/abroad:1"))
    assert not status(bare, bare.image("seatrial/abroad:1")).id


@pytest.mark.parametrize("name", ["seatrial/none:1", "seatrial/busybox:none", "none/none:1"])
@pytest.mark.breach(accepts("PullImage"))
def test_pull_of_what_the_registry_has_not(name: str, bare: CriTrial) -> None:
    """Clients look for NotFound."""
    with pytest.raises(NotFound):
        pull(bare, bare.image(name))


@pytest.mark.parametrize("name", ["tampered/spare:1", "seatrial/forged:1"])
@pytest.mark.breach(accepts("PullImage"), answers("ImageStatus.image.id", "sha256:x"))
def test_content_that_is_not_what_its_digest_says(name: str, bare: CriTrial) -> None:
    """A blob with another digest (image-spec, descriptor), or a layer with another DiffID, is refused; no image is left."""
    with pytest.raises(RuntimeRefusal):
        pull(bare, bare.image(name))
    assert not status(bare, bare.image(name)).id


@pytest.mark.parametrize("auth", ["password", "field"])
@pytest.mark.parametrize("name", ["private/spare:1", "guarded/spare:1"])
@pytest.mark.breach(drops("PullImage.auth"))
def test_pull_with_a_password(name: str, auth: str, bare: CriTrial) -> None:
    """AuthConfig: username and password, or both in ``auth`` as a docker config.json has them; Basic and Bearer."""
    both = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    words = {"username": USER, "password": PASSWORD} if auth == "password" else {"auth": both}
    pull(bare, bare.image(name), auth=words)
    assert status(bare, bare.image(name)).id


@pytest.mark.parametrize("auth", [None, {"username": USER, "password": "wrong"}], ids=["none", "wrong"])
@pytest.mark.parametrize("name", ["private/spare:1", "guarded/spare:1"])
@pytest.mark.breach(puts("PullImage.auth", {"username": USER, "password": PASSWORD}))
def test_pull_without_the_password_is_refused(name: str, auth: dict[str, str] | None, bare: CriTrial) -> None:
    with pytest.raises(RuntimeRefusal):
        pull(bare, bare.image(name), **({"auth": auth} if auth else {}))
    assert not status(bare, bare.image(name)).id


COUNT: list[int] = []


def _never_the_same(request: dict[str, Any], call: Any) -> Any:
    answer = call(request)
    COUNT.append(1)
    answer.image_ref = f"sha256:{len(COUNT):064}"
    return answer


@pytest.mark.breach(swaps("PullImage", _never_the_same))
def test_pull_again_and_at_once(bare: CriTrial) -> None:
    """Clients that pull the same image at the same time, and again, get the same."""
    name = bare.image("seatrial/plain:1")
    with ThreadPoolExecutor(4) as pool:
        refs = set(pool.map(lambda _: pull(bare, name), range(4)))
    assert refs == {pull(bare, name)}
    assert prints(bare, "seatrial/plain:1") == SPARE


@pytest.mark.breach(answers("ImageStatus.image.repo_digests"))
def test_image_is_described(bare: CriTrial) -> None:
    """Image: id, repo_tags, repo_digests, size "Must be > 0"; the same in the list."""
    name = bare.image("seatrial/plain:1")
    pull(bare, name)
    found = status(bare, name)
    listed = next((image for image in bare.call("ListImages").images if name in image.repo_tags), found)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", found.id)
    assert name in {tag for image in bare.call("ListImages").images for tag in image.repo_tags}
    assert listed.id == found.id
    for image in (found, listed):
        assert list(image.repo_tags) == [name]
        assert list(image.repo_digests) == [f"{bare.image('seatrial/plain')}@{digest_of(bare, 'seatrial/plain:1')}"]
        assert image.size > 1000
        assert not image.pinned


@pytest.mark.parametrize(
    ("name", "uid", "username"), [("harbour:1", None, "sailor"), ("numbered:1", 1001, ""), ("plain:1", None, "")]
)
@pytest.mark.breach(answers("ImageStatus.image.username", "another"), answers("ImageStatus.image.uid"))
def test_user_of_an_image(name: str, uid: int | None, username: str, bare: CriTrial) -> None:
    """Image: "UID and the following user name are mutually exclusive"."""
    pull(bare, bare.image(f"seatrial/{name}"))
    found = status(bare, bare.image(f"seatrial/{name}"))
    assert found.username == username
    assert (found.uid.value if found.HasField("uid") else None) in ((uid,) if uid else (None, 0))


@pytest.mark.breach(drops("ImageStatus.verbose"))
def test_verbose_status_of_an_image(bare: CriTrial) -> None:
    """ImageStatusResponse.info "should only be returned non-empty when Verbose is true"."""
    name = bare.image("seatrial/plain:1")
    pull(bare, name)
    assert dict(bare.call("ImageStatus", image={"image": name}, verbose=True).info)
    assert not dict(bare.call("ImageStatus", image={"image": name}).info)


@pytest.mark.breach(refuses("ImageStatus", 1))
def test_absent_image_has_an_empty_status(cri: CriTrial) -> None:
    """ImageStatus: "If the image is not present, returns a response with ImageStatusResponse.Image set to nil"."""
    assert not cri.call("ImageStatus", image={"image": cri.image("seatrial/none:1")}).HasField("image")


@pytest.mark.breach(drops("ListImages.filter"))
def test_list_of_images_is_filtered(bare: CriTrial) -> None:
    """ImageFilter.image; without it all are listed."""
    names = [bare.image("seatrial/plain:1"), bare.image("seatrial/docker:1")]
    for name in names:
        pull(bare, name)
    assert set(names) <= {tag for image in bare.call("ListImages").images for tag in image.repo_tags}
    found = bare.call("ListImages", filter={"image": {"image": names[0]}}).images
    assert [list(image.repo_tags) for image in found] == [names[:1]]
    assert not bare.call("ListImages", filter={"image": {"image": bare.image("seatrial/none:1")}}).images


@pytest.mark.breach(pretends("RemoveImage"))
def test_image_is_removed(bare: CriTrial) -> None:
    """RemoveImage "removes the image", by its name or by its id."""
    for by_id in (False, True):
        name = bare.image("seatrial/plain:1")
        pull(bare, name)
        found = status(bare, name)
        bare.call("RemoveImage", image={"image": found.id if by_id else name})
        assert not status(bare, name).id
        assert not status(bare, found.id).id


def _removes_both(request: dict[str, Any], call: Any) -> Any:
    reference = request["image"]["image"]
    call({"image": {"image": reference.replace("plain", "docker")}})
    return call(request)


@pytest.mark.breach(swaps("RemoveImage", _removes_both))
def test_layers_that_another_image_has_too_stay(bare: CriTrial) -> None:
    """A removal takes away what nobody else needs."""
    for name in ("seatrial/plain:1", "seatrial/docker:1"):
        pull(bare, bare.image(name))
    bare.call("RemoveImage", image={"image": bare.image("seatrial/plain:1")})
    assert status(bare, bare.image("seatrial/docker:1")).id
    assert prints(bare, "seatrial/docker:1") == SPARE


@pytest.mark.breach(puts("ExecSync.cmd", ["/bin/cat", "/no/such/file"]))
def test_container_outlives_the_removal_of_its_image(bare: CriTrial) -> None:
    """What is in use is not taken from under a container."""
    name = "seatrial/plain:1"
    pull(bare, bare.image(name))
    box = bare.launch(SLEEP, image=name)
    try:
        bare.call("RemoveImage", image={"image": bare.image(name)})
    except RuntimeRefusal:
        assert status(bare, bare.image(name)).id
    assert bare.said(box, "/bin/cat", "/etc/spare") == SPARE


@pytest.mark.breach(answers("ImageFsInfo.image_filesystems"))
def test_file_system_of_images(cri: CriTrial) -> None:
    """ImageFsInfo: timestamp "Must be > 0", where it is, and the bytes and inodes "used for images"."""
    cri.config()
    found = cri.call("ImageFsInfo").image_filesystems
    assert found, "there is no file system"
    assert found[0].timestamp > 0
    assert found[0].fs_id.mountpoint.startswith("/")
    cri.wait(lambda: cri.call("ImageFsInfo").image_filesystems[0].used_bytes.value > 1 << 20, "the bytes of the images")
    assert cri.call("ImageFsInfo").image_filesystems[0].inodes_used.value > 10


@pytest.mark.breach(answers("ImageStatus.image.pinned", False), answers("ListImages.images"))
def test_image_of_pods_is_pinned(cri: CriTrial) -> None:
    """Image.pinned: "Recommendation on whether this image should be exempt from garbage collection"."""
    cri.since("1.26")
    cri.pod()
    found = status(cri, cri.image("seatrial/pause:1"))
    if found.id:
        assert found.pinned
    else:
        assert not any("pause" in tag for image in cri.call("ListImages").images for tag in image.repo_tags)
        assert cri.call("ListImages").images
