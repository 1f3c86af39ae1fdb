"""What a runtime says of itself (cri-api v1, Version, Status, RuntimeConfig), and checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile

import pytest

from harness.command import Group
from harness.errors import NotExpressible, RuntimeRefusal
from harness.model.area import Area
from harness.session.breach import answers, drops, pretends, refuses
from harness.session.cri import RUNNING, CriTrial

pytestmark = pytest.mark.operation(Area.STATUS)

SEMVER = re.compile(r"v?\d+(\.\d+){0,2}.*")
SYSTEMD, CGROUPFS = 0, 1


@pytest.mark.breach(answers("Version.runtime_version", "unknown"))
def test_version(cri: CriTrial) -> None:
    """VersionResponse: the runtime's version and the API's "must be semver-compatible"."""
    found = cri.call("Version", version="v1")
    assert found.runtime_name
    assert SEMVER.fullmatch(found.runtime_version), found.runtime_version
    assert found.runtime_api_version == "v1"
    assert SEMVER.fullmatch(found.version)


@pytest.mark.breach(answers("Status.status.conditions"))
def test_runtime_and_network_are_ready(cri: CriTrial) -> None:
    """The required conditions: RuntimeReady and NetworkReady."""
    conditions = {condition.type: condition.status for condition in cri.call("Status").status.conditions}
    assert conditions.get("RuntimeReady") is True
    assert conditions.get("NetworkReady") is True


@pytest.mark.breach(drops("Status.verbose"))
def test_verbose_status(cri: CriTrial) -> None:
    """StatusResponse.info: "value should be in json format", "only [...] non-empty when Verbose is true"."""
    info = dict(cri.call("Status", verbose=True).info)
    assert info
    # A value that is not JSON (a plain word, as containerd has of its last network problem) is no object at least.
    assert any(isinstance(json.loads(value), dict) for value in info.values() if value[:1] == "{")
    assert not dict(cri.call("Status").info)


@pytest.mark.breach(answers("Status.runtime_handlers"))
def test_runtime_handlers(cri: CriTrial) -> None:
    """RuntimeHandler: "Name must be unique"; an "empty string denotes the default handler". Each can be used."""
    cri.since("1.33")
    names = [handler.name for handler in cri.call("Status").runtime_handlers]
    assert "" in names
    assert len(set(names)) == len(names)
    assert cri.run("echo afloat", pod=cri.pod(handler="")).lines == ["afloat"]


@pytest.mark.breach(answers("RuntimeConfig.linux"))
def test_runtime_config(cri: CriTrial) -> None:
    """LinuxRuntimeConfiguration.cgroup_driver: clients shape cgroup parents by it; here they are paths."""
    cri.needs_call("RuntimeConfig")
    assert cri.call("RuntimeConfig").linux.cgroup_driver == CGROUPFS


@pytest.mark.breach(refuses("UpdateRuntimeConfig"))
def test_pod_cidr_is_taken(cri: CriTrial) -> None:
    """NetworkConfig.pod_cidr: "CIDR to use for pod IP addresses. If the CIDR is empty, runtimes should omit it"."""
    cri.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": ""}})
    cri.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": "10.88.0.0/16"}})
    conditions = {condition.type: condition.status for condition in cri.call("Status").status.conditions}
    assert conditions["NetworkReady"]


@pytest.mark.breach(pretends("UpdatePodSandboxResources"))
def test_update_of_a_pods_resources(cri: CriTrial) -> None:
    """UpdatePodSandboxResources "synchronously updates the PodSandboxConfig with the pod-level resource configuration"."""
    cri.since("1.33")
    pod = cri.pod()
    cri.call("UpdatePodSandboxResources", pod_sandbox_id=pod.id, resources={"cpu_shares": 512}, overhead={})
    with pytest.raises(RuntimeRefusal):
        cri.call("UpdatePodSandboxResources", pod_sandbox_id="no-such-pod", resources={"cpu_shares": 512})


def needs_criu(cri: CriTrial) -> None:
    """Go on only where criu is installed, and can dump a process of this machine's kernel at all."""
    program = shutil.which("criu", path="/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise NotExpressible("this machine", "has no criu")
    images = cri.trial.arena.state / "criu"
    images.mkdir(exist_ok=True)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        process = cri.trial.arena.start(["/bin/sleep", "60"], group=Group.HARNESS, stdout_fd=sink, stderr_fd=sink)
    finally:
        os.close(sink)
    try:
        words = ("dump", "--tree", str(process.pid), "--images-dir", str(images), "--leave-running", "--shell-job")
        if cri.trial.arena.run([program, *words], timeout_s=30, group=Group.HARNESS).status:
            raise NotExpressible("this machine", "has a criu that cannot dump a process of this kernel")
    finally:
        process.stop()


@pytest.mark.breach(pretends("CheckpointContainer"))
def test_checkpoint(cri: CriTrial) -> None:
    """CheckpointContainer: an archive at ``location``; the container goes on."""
    cri.needs_call("CheckpointContainer", container_id="no-such-container", location="/no/such/place")
    needs_criu(cri)
    location = cri.trial.arena.state / "checkpoint.tar"
    box = cri.launch()
    cri.call("CheckpointContainer", container_id=box.id, location=str(location), timeout=30)
    with tarfile.open(location) as archive:
        assert any(name.strip("./").startswith("checkpoint") for name in archive.getnames())
    assert cri.status(box).state == RUNNING
