"""What is stopped or gone already may be stopped or removed again: no call that frees something complains of that."""

from __future__ import annotations

import pytest

from harness.model.area import Area
from harness.session.breach import refuses
from harness.session.cri import EXITED, NOT_READY, CriTrial

pytestmark = pytest.mark.operation(Area.IDEMPOTENCE)


@pytest.mark.breach(refuses("StopPodSandbox", 2))
def test_stop_of_a_stopped_pod(cri: CriTrial) -> None:
    """StopPodSandbox "is idempotent [...] multiple StopPodSandbox calls are expected"."""
    pod = cri.pod()
    cri.stop_pod(pod)
    cri.stop_pod(pod)
    assert cri.pod_status(pod).state == NOT_READY


@pytest.mark.breach(refuses("RemovePodSandbox", 2))
def test_removal_of_a_removed_pod(cri: CriTrial) -> None:
    """RemovePodSandbox "is idempotent, and must not return an error if the sandbox has already been removed"."""
    pod = cri.pod()
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    cri.remove_pod(pod)


@pytest.mark.breach(refuses("StopPodSandbox", 1))
def test_stop_of_a_removed_pod(cri: CriTrial) -> None:
    """StopPodSandbox "must not return an error if all relevant resources have already been reclaimed"."""
    pod = cri.pod()
    cri.remove_pod(pod)
    cri.stop_pod(pod)


@pytest.mark.breach(refuses("StopContainer", 2))
def test_stop_of_a_stopped_container(cri: CriTrial) -> None:
    """StopContainer "is idempotent, and must not return an error if the container has already been stopped"."""
    box = cri.launch()
    cri.stop(box)
    before = cri.status(box)
    cri.stop(box)
    assert cri.status(box) == before
    assert before.state == EXITED


@pytest.mark.breach(refuses("StopContainer"))
def test_stop_of_what_ended_by_itself(cri: CriTrial) -> None:
    box = cri.run("exit 5").box
    cri.stop(box, timeout=5)
    assert cri.status(box).exit_code == 5


@pytest.mark.breach(refuses("RemoveContainer", 2))
def test_removal_of_a_removed_container(cri: CriTrial) -> None:
    """RemoveContainer "is idempotent, and must not return an error if the container has already been removed"."""
    box = cri.create()
    cri.remove(box)
    cri.remove(box)


@pytest.mark.breach(refuses("RemoveContainer"))
def test_removal_of_what_never_was(cri: CriTrial) -> None:
    cri.call("RemoveContainer", container_id="no-such-container")
    cri.call("RemovePodSandbox", pod_sandbox_id="no-such-pod")


@pytest.mark.breach(refuses("RemoveImage", 2))
def test_removal_of_a_removed_image(cri: CriTrial) -> None:
    """RemoveImage "is idempotent, and must not return an error if the image has already been removed"."""
    reference = {"image": cri.image("seatrial/plain:1")}
    cri.call("PullImage", image=reference)
    cri.call("RemoveImage", image=reference)
    cri.call("RemoveImage", image=reference)
    cri.call("RemoveImage", image={"image": f"sha256:{'0' * 64}"})
