"""What minirt says of itself: whether it can run containers and join networks, what it can do, how it was started."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness import __version__
from harness.minirt.cri import log
from harness.minirt.cri.options import Options
from harness.minirt.cri.pod_config import HANDLERS
from harness.minirt.errors import InvalidArgument
from harness.minirt.network.cni import Networks
from harness.minirt.network.configuration import Network


def describe_runtime(
    options: Options, networks: Networks, problem: str, *, user_namespaces: bool, verbose: bool
) -> Any:
    """The answer to Status. `problem`: why containers cannot be run, in words; empty where they can."""
    network, network_problem = networks.current()
    features = api.RuntimeHandlerFeatures(recursive_read_only_mounts=True, user_namespaces=user_namespaces)
    handlers = [api.RuntimeHandler(name=name, features=features) for name in HANDLERS]
    return api.StatusResponse(
        status=api.RuntimeStatus(
            conditions=[
                _condition("RuntimeReady", "SupervisorGone", problem),
                _condition("NetworkReady", "NetworkPluginNotReady", "" if network is not None else network_problem),
            ]
        ),
        info=_info(options, network, network_problem) if verbose else None,
        runtime_handlers=handlers,
        features=api.RuntimeFeatures(supplemental_groups_policy=True),
    )


def _condition(kind: str, reason: str, problem: str) -> Any:
    return api.RuntimeCondition(type=kind, status=not problem, reason=reason if problem else "", message=problem)


def _info(options: Options, network: Network | None, problem: str) -> dict[str, str]:
    versions = {"minirt": __version__, "python": sys.version.split()[0], "kernel": os.uname().release}
    cni: dict[str, Any] = {"confDir": options.cni_conf_dir, "binDirs": [str(folder) for folder in options.bin_dirs]}
    if network is not None:
        plugins = [dict(plugin) for plugin in network.plugins]
        cni |= {"name": network.name, "path": network.path, "cniVersion": network.version, "plugins": plugins}
    return {
        "config": json.dumps(asdict(options)),
        "versions": json.dumps(versions),
        "cniconfig": json.dumps(cni),
        "lastCNILoadStatus": problem or "OK",
    }


def check_pod_cidr(text: str) -> None:
    """Take note of the addresses that a cluster gives this node's pods: one network, or several joined by commas.

    Whoever writes the network configuration uses them; minirt makes none of its own. Raises `InvalidArgument`.
    """
    import ipaddress  # kubelet asks once in the node's life

    for part in text.split(",") if text else ():
        try:
            ipaddress.ip_network(part.strip(), strict=False)
        except ValueError as error:
            raise InvalidArgument(f"pod_cidr: {error}") from None
    if text:
        log.info("the cluster gave pods a network; it is used once a network configuration has it", pod_cidr=text)
