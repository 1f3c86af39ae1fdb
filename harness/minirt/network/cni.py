"""CNI: which configuration new pods get, and running its plugins in order for each (CNI specification, sections 2 and 4)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.minirt.errors import Unavailable
from harness.minirt.network.configuration import Network, parse_network
from harness.minirt.network.plugin import NetworkError, run_plugin

INTERFACE = "eth0"
_SUFFIXES = (".conflist", ".conf", ".json")


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What a pod asks of its network. `arguments`: CNI_ARGS; `capabilities`: ``runtimeConfig`` by capability."""

    pod_id: str
    netns: str
    arguments: Mapping[str, str]
    capabilities: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod that was attached, or is being so (`result` is empty then): what DEL has to be told, and the addresses it got."""

    network: Network
    pod: PodNetwork
    result: Mapping[str, Any]

    @property
    def ips(self) -> tuple[str, ...]:
        """The pod's addresses, IPv4 first, without their prefix lengths."""
        rows = [row.get("address", "") for row in self.result.get("ips", [])]
        rows += [self.result.get(key, {}).get("ip", "") for key in ("ip4", "ip6")]  # as results were before 0.3.0
        found = [str(row).partition("/")[0] for row in rows if row]
        return tuple(sorted(dict.fromkeys(found), key=lambda address: ":" in address))

    def to_json(self) -> dict[str, Any]:
        network, pod = self.network, self.pod
        return {
            "network": {
                "name": network.name,
                "cniVersion": network.version,
                "plugins": [dict(p) for p in network.plugins],
            },
            "pod": {
                "id": pod.pod_id,
                "netns": pod.netns,
                "arguments": dict(pod.arguments),
                "capabilities": dict(pod.capabilities),
            },
            "result": dict(self.result),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Attachment:
        """Raises `KeyError` for what `to_json` did not make."""
        network, pod = row["network"], row["pod"]
        return cls(
            Network(network["name"], network["cniVersion"], tuple(network["plugins"])),
            PodNetwork(pod["id"], pod["netns"], pod["arguments"], pod["capabilities"]),
            row["result"],
        )


class Networks:
    """The configurations in a folder, read again when something in it changed. Safe for threads."""

    def __init__(self, conf_dir: Path, bin_dirs: Sequence[Path]) -> None:
        self._conf_dir = conf_dir
        self._bin_dirs = tuple(bin_dirs)
        self._lock = threading.Lock()
        self._seen: tuple[tuple[str, int, int, int], ...] | None = None
        self._network: Network | None = None
        self._problem = ""

    def _look(self) -> tuple[tuple[str, int, int, int], ...]:
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._conf_dir) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIXES):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((entry.name, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(sorted(found))

    def current(self) -> tuple[Network | None, str]:
        """The network that new pods join, else None and the reason.

        The first file in the order of names decides. One that is broken is not passed over: pods would silently join
        another network than was meant.
        """
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                self._network, self._problem = self._load(seen[0][0] if seen else "")
            network, problem = self._network, self._problem
        if network is not None:
            for plugin in network.plugins:
                if self._find(plugin["type"]) is None:
                    return None, f"{network.path}: there is no plugin {plugin['type']!r} in {self._places}"
        return network, problem

    def _load(self, name: str) -> tuple[Network | None, str]:
        if not name:
            return None, f"there is no network configuration in {self._conf_dir} (*{', *'.join(_SUFFIXES)})"
        path = self._conf_dir / name
        try:
            return parse_network(path.read_text(), str(path)), ""
        except (OSError, ValueError) as error:
            return None, f"{path}: {error}"

    @property
    def _places(self) -> str:
        return ":".join(map(str, self._bin_dirs))

    def _find(self, plugin: str) -> Path | None:
        return next((path for folder in self._bin_dirs if os.access(path := folder / plugin, os.X_OK)), None)

    def plan(self, pod: PodNetwork) -> Attachment:
        """What `attach` will do for a pod, by the current network. Raises `Unavailable` without one."""
        network, problem = self.current()
        if network is None:
            raise Unavailable(f"the network is not ready: {problem}")
        return Attachment(network, pod, {})

    def attach(self, planned: Attachment) -> Attachment:
        """Attach a pod as planned. Raises `NetworkError`; what was done is then for `detach` of the plan to undo."""
        result: Mapping[str, Any] = {}
        for plugin in planned.network.plugins:
            result = self._run("ADD", planned, plugin, result) or result
        return Attachment(planned.network, planned.pod, result)

    def detach(self, attachment: Attachment) -> None:
        """Undo `attach`, also by halves; may be done again. Raises the first `NetworkError`, after every plugin had its turn."""
        first: NetworkError | None = None
        # The specification has it so since 0.4.0; older plugins may not know the field.
        previous = attachment.result if attachment.network.speaks("0.4.0") else {}
        for plugin in reversed(attachment.network.plugins):
            try:
                self._run("DEL", attachment, plugin, previous)
            except NetworkError as error:
                first = first or error
        if first is not None:
            raise first

    def _run(
        self, command: str, attachment: Attachment, plugin: Mapping[str, Any], previous: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        kind, network, pod = str(plugin["type"]), attachment.network, attachment.pod
        program = self._find(kind)
        if program is None:
            raise NetworkError(kind, f"is not in {self._places}")
        content = {**plugin, "name": network.name, "cniVersion": network.version}
        offered = plugin.get("capabilities") or {}
        wanted = {name: pod.capabilities[name] for name, on in offered.items() if on and name in pod.capabilities}
        if wanted:
            content["runtimeConfig"] = wanted
        if previous:
            content["prevResult"] = previous
        environment = {
            **os.environ,
            "CNI_CONTAINERID": pod.pod_id,
            # A namespace that is gone is told by an empty path: the plugin then frees what it holds outside of it.
            "CNI_NETNS": pod.netns if command != "DEL" or os.path.exists(pod.netns) else "",
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.arguments.items()),
            "CNI_PATH": self._places,
        }
        return run_plugin(program, command, content, environment)
