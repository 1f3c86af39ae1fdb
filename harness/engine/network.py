"""The network that CNI gives to pods in an arena (CNI specification 0.4.0, network configuration lists)."""

from __future__ import annotations

import json
from pathlib import Path

from harness.arena import Arena
from harness.engine.programs import find_cni, find_program
from harness.paths import fixtures

PLUGINS = ("bridge", "host-local", "loopback")


def write_network(arena: Arena, folder: Path) -> Path:
    """Write the network's configuration into `folder`; the folder of the plugins.

    The bridge, its addresses and rules are inside the arena's network namespace. Without iptables there is no
    masquerading and no host port. Where the plugins are missing nothing is written: pods have only the host network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plugins = find_cni(PLUGINS)
    if plugins is None:
        return Path("/opt/cni/bin")
    network = json.loads((fixtures() / "cni.conflist").read_text())
    bridge, *further = network["plugins"]
    bridge["ipam"]["dataDir"] = str(arena.root / "cni" / "networks")
    if find_program("iptables") is None:
        bridge["ipMasq"] = False
        further = []
    network["plugins"] = [bridge, *(plugin for plugin in further if (plugins / plugin["type"]).exists())]
    (folder / "10-seatrial.conflist").write_text(json.dumps(network, indent=2))
    return plugins
