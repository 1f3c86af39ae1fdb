"""What the clients ask of a runtime for a container."""

from __future__ import annotations

import json
from pathlib import Path

from cri_api.v1 import api_pb2 as cri
from google.protobuf import json_format

from harness.client.cri_config import container_config, sandbox_config
from harness.client.oci_config import oci_config
from harness.model.container import ContainerSpec, Network

SPEC = ContainerSpec("box-1", "registry/busybox:1", ("/bin/sh", "-c", "exit 3"), env=(("A", "b = c"),))


def test_cri_configs_are_messages_of_the_interface() -> None:
    """The same data serves gRPC and, as JSON, crictl: no key is unknown, and no value of another type."""
    pod = sandbox_config("pod-1", Network.HOST, "/seatrial/pods", Path("/logs"))
    box = container_config(SPEC, Network.HOST)
    assert cri.PodSandboxConfig(**pod) == json_format.Parse(json.dumps(pod), cri.PodSandboxConfig())
    assert cri.ContainerConfig(**box) == json_format.Parse(json.dumps(box), cri.ContainerConfig())


def test_cri_sandbox() -> None:
    host = cri.PodSandboxConfig(**sandbox_config("pod-1", Network.HOST, "/seatrial/pods", Path("/logs")))
    assert host.linux.cgroup_parent == "/seatrial/pods"
    assert host.linux.security_context.namespace_options.network == cri.NODE
    assert host.linux.security_context.namespace_options.pid == cri.CONTAINER
    bridge = cri.PodSandboxConfig(**sandbox_config("pod-1", Network.BRIDGE, "", Path("/logs")))
    assert bridge.linux.cgroup_parent == ""
    assert bridge.linux.security_context.namespace_options.network == cri.POD
    assert (host.hostname, bridge.hostname) == ("", "pod-1")


def test_cri_container() -> None:
    config = cri.ContainerConfig(**container_config(SPEC, Network.BRIDGE))
    assert tuple(config.command) == SPEC.argv
    assert not config.args
    assert {pair.key: pair.value for pair in config.envs} == {"A": "b = c", "SEATRIAL_ID": "box-1"}
    assert config.log_path == "box-1.log"


def test_oci_config() -> None:
    config = oci_config(SPEC, Path("/images/busybox"), "/seatrial/pods")
    assert config["process"]["args"] == list(SPEC.argv)
    assert {"A=b = c", "SEATRIAL_ID=box-1"} <= set(config["process"]["env"])
    assert config["root"] == {"path": "/images/busybox", "readonly": True}
    assert config["linux"]["cgroupsPath"] == "/seatrial/pods/box-1"
    kinds = {namespace["type"] for namespace in config["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount"}, "the network is the runtime's own"
    assert not {"rlimits", "oomScoreAdj"} & set(config["process"]), "these need a privilege that root may lack"


def test_oci_config_of_a_root_of_its_own() -> None:
    config = oci_config(SPEC, Path("/snapshots/1"), "", readonly=False)
    assert config["root"]["readonly"] is False
    assert "cgroupsPath" not in config["linux"]
