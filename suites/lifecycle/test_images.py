"""Pull and remove an image: a kubelet's PullImage, and the garbage collection that follows."""

from __future__ import annotations

import pytest

from harness.errors import NotFound, Refused, Unreachable
from harness.model.capability import Capability
from harness.model.lifecycle import Contract
from harness.session.trial import SPARE_IMAGE, Trial

pytestmark = pytest.mark.needs(Capability.IMAGES)

CLOSED_PORT = "127.0.0.1:9"
"""discard (RFC 863): nothing listens there, in a network namespace of our own least of all"""


@pytest.mark.operation("pull")
def test_pull_brings_the_image(trial: Trial) -> None:
    """PullImage answers only when the image is there."""
    image = trial.image(SPARE_IMAGE)
    trial.client.remove_image(image) if trial.client.has_image(image) else None
    reference = trial.client.pull(image)
    assert reference, "the pull returned no reference"
    assert trial.client.has_image(image), f"{image} was pulled and is not there"


@pytest.mark.operation("pull_again")
def test_pull_again_changes_nothing(trial: Trial) -> None:
    """Pulling what is there succeeds, and gives the same image."""
    image = trial.image(SPARE_IMAGE)
    first = trial.client.pull(image)
    assert trial.client.pull(image) == first, "the second pull gave another image"
    assert trial.client.has_image(image)


@pytest.mark.operation("pull")
@pytest.mark.parametrize("name", ["seatrial/nowhere:1", "seatrial/busybox:no-such-tag"])
def test_pull_of_an_unknown_image_is_not_found(trial: Trial, name: str) -> None:
    """A name or a tag that the registry does not have (distribution-spec: 404 NAME_UNKNOWN, MANIFEST_UNKNOWN)."""
    image = trial.image(name)
    with pytest.raises(NotFound):
        trial.client.pull(image)
    assert not trial.client.has_image(image), f"{image} does not exist, and is listed after its pull failed"


@pytest.mark.operation("pull")
def test_pull_from_an_unreachable_registry_says_so(trial: Trial) -> None:
    """Not "not found": a kubelet backs off and tries again on the one, and gives up on the other."""
    image = f"{CLOSED_PORT}/seatrial/busybox:1"
    with pytest.raises((Unreachable, Refused)) as caught:
        trial.client.pull(image)
    assert CLOSED_PORT in str(caught.value) or "refused" in str(caught.value), (
        f"the error does not say what was unreachable: {caught.value}"
    )
    assert not trial.client.has_image(image)


@pytest.mark.operation("remove_image")
def test_remove_image(trial: Trial) -> None:
    image = trial.image(SPARE_IMAGE)
    trial.client.pull(image)
    trial.client.remove_image(image)
    assert not trial.client.has_image(image), f"{image} was removed and is still there"


@pytest.mark.operation("remove_image")
def test_remove_image_twice(trial: Trial) -> None:
    """CRI: "This call is idempotent, and must not return an error if the image has already been removed"; Docker: 404."""
    image = trial.image(SPARE_IMAGE)
    trial.client.pull(image)
    trial.client.remove_image(image)
    if trial.client.contract is Contract.CRI:
        trial.client.remove_image(image)
    else:
        with pytest.raises(NotFound):
            trial.client.remove_image(image)
    assert not trial.client.has_image(image)
