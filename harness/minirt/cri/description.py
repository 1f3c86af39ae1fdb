"""Pods and containers in CRI's words: as lists have them, as statuses have them, and with everything that is known."""

from __future__ import annotations

import json
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.containers import Containers
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import Container, Pod
from harness.minirt.cri.resources import describe_resources
from harness.minirt.cri.stopping import signal_of_number
from harness.minirt.images.store import Image, ImageStore


def pod_state(pod: Pod) -> Any:
    return api.PodSandboxState.SANDBOX_READY if pod.ready else api.PodSandboxState.SANDBOX_NOTREADY


def pod_status(pod: Pod) -> Any:
    config = pod.config
    status = api.PodSandboxStatus(
        id=pod.id,
        metadata=config.metadata,
        state=pod_state(pod),
        created_at=pod.created_ns,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=pod.handler,
    )
    if pod.ips:
        status.network.ip = pod.ips[0]
        status.network.additional_ips.extend(api.PodIP(ip=ip) for ip in pod.ips[1:])
    else:
        status.network.SetInParent()
    status.linux.namespaces.options.CopyFrom(config.linux.security_context.namespace_options)
    return status


def container_state(container: Container) -> Any:
    return container.state  # records count them as CRI does


def container_status(container: Container, image: Image | None) -> Any:
    """`image`: the container's; None where it was removed meanwhile."""
    config = container.config
    image_ref, spec = container.image_id, api.ImageSpec()
    spec.CopyFrom(config.image)
    if image is not None:
        image_ref = image.digests[0] if image.digests else image_ref
        spec.image = image.tags[0] if image.tags else spec.image
    status = api.ContainerStatus(
        id=container.id,
        metadata=config.metadata,
        state=container_state(container),
        created_at=container.created_ns,
        started_at=container.started_ns,
        finished_at=container.finished_ns,
        exit_code=container.exit_code,
        image=spec,
        image_ref=image_ref,
        image_id=container.image_id,
        reason=container.reason,
        message=container.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=container.log_path,
        stop_signal=signal_of_number(container.stop_signal),
    )
    limits = container.resources
    if limits:
        status.resources.linux.CopyFrom(describe_resources(limits["resources"], limits["oom_score"]))
    uid, gid, groups = container.user
    status.user.linux.uid, status.user.linux.gid = uid, gid
    status.user.linux.supplemental_groups.extend(groups)
    return status


class Descriptions:
    """Statuses of what is here, for the calls and the events that carry them."""

    def __init__(self, pods: Pods, containers: Containers, images: ImageStore) -> None:
        self._pods = pods
        self._containers = containers
        self._images = images

    def container(self, container: Container) -> Any:
        return container_status(container, self._images.find(container.image_id))

    def containers(self, pod_id: str) -> list[Any]:
        """The statuses of a pod's containers."""
        return [self.container(container) for container in self._containers.list(pod_id)]

    def pod_info(self, pod: Pod) -> dict[str, str]:
        """Everything else about a pod, as ``crictl inspectp`` shows it."""
        first = next((row.pid for row in self._containers.list(pod.id) if row.pid), 0)
        facts = {
            # A pod has no process of its own here: the one of a container lets a person look into its namespaces.
            "pid": first,
            "netns": self._pods.netns(pod),
            "cgroupParent": pod.cgroup_parent,
            "hostname": pod.hostname,
            "runtimeHandler": pod.handler,
            "config": _as_dict(pod.config),
            # Where scripts that look for a pod's network have learnt to find it.
            "runtimeSpec": {
                "hostname": pod.hostname,
                "linux": {"cgroupsPath": pod.cgroup_parent, "namespaces": self._pods.namespaces(pod)},
            },
        }
        return {"info": json.dumps(facts)}

    def container_info(self, container: Container) -> dict[str, str]:
        """Everything else about a container, as ``crictl inspect`` shows it."""
        upper = self._containers.upper(container)
        facts = {
            "sandboxID": container.pod_id,
            "pid": container.pid,
            "removing": False,
            "snapshotKey": container.id,
            "snapshotter": "overlayfs",
            "snapshot": {"chain": list(container.chain), "upper": str(upper)},
            "cgroup": container.cgroup,
            "runtimeType": "minirt",
            "config": _as_dict(container.config),
            "runtimeSpec": self._containers.spec(container),
        }
        return {"info": json.dumps(facts)}


def _as_dict(message: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict  # only who asks for everything pays for it

    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found
