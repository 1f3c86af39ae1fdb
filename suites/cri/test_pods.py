"""RunPodSandbox and the life of a pod (cri-api v1, ``PodSandboxConfig``, ``LinuxPodSandboxConfig``)."""

from __future__ import annotations

import pytest

from harness.model.area import Area
from harness.session.breach import answers, puts
from harness.session.cri import NOT_READY, READY, CriTrial

pytestmark = pytest.mark.operation(Area.PODS)


@pytest.mark.breach(answers("PodSandboxStatus.status.state", NOT_READY))
def test_pod_is_ready_when_the_call_returns(cri: CriTrial) -> None:
    """RunPodSandbox: "Runtimes must ensure the sandbox is in the ready state on success"."""
    assert cri.pod_status(cri.pod()).state == READY


@pytest.mark.breach(puts("RunPodSandbox.config.metadata", {"name": "x", "uid": "y", "namespace": "z"}))
def test_pod_keeps_its_metadata(cri: CriTrial) -> None:
    """PodSandboxStatus.metadata is that of the PodSandboxConfig."""
    pod = cri.pod(metadata={"attempt": 3})
    found = cri.pod_status(pod).metadata
    assert (found.name, found.uid, found.namespace, found.attempt) == (pod.name, pod.name, "seatrial", 3)
