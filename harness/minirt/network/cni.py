"""CNI: find the network's configuration, run its plugins in order, remember what they said (CNI specification 1.0.0)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.minirt.errors import MinirtError, Unavailable

INTERFACE = "eth0"
_SUFFIXES = (".conflist", ".conf", ".json")
_PLUGIN_TIMEOUT_S = 120.0


class NetworkError(MinirtError):
    """A plugin failed. `plugin` is its type, the text what it said."""

    def __init__(self, plugin: str, text: str) -> None:
        super().__init__(f"network plugin {plugin!r}: {text}")
        self.plugin = plugin


@dataclass(frozen=True, slots=True)
class Network:
    """One network configuration list. `source` is its text, as it goes to the plugins and into the cache."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    path: str = ""


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What a pod asks of its network. `arguments`: CNI_ARGS; `capabilities`: ``runtimeConfig`` by capability."""

    pod_id: str
    netns: str
    arguments: Mapping[str, str]
    capabilities: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod that was attached: what DEL has to be told, and the addresses it got."""

    network: Network
    pod: PodNetwork
    result: Mapping[str, Any]

    @property
    def ips(self) -> tuple[str, ...]:
        """The pod's addresses, IPv4 first, without their prefix lengths."""
        found = [str(row["address"]).partition("/")[0] for row in self.result.get("ips", []) if "address" in row]
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


def parse_network(text: str, path: str) -> Network:
    """A ``.conflist``, or a ``.conf`` of a single plugin. Raises `ValueError` with what is wrong with it."""
    content = json.loads(text)
    plugins = content.get("plugins", [content] if "type" in content else []) if isinstance(content, dict) else None
    if not isinstance(plugins, list) or not plugins or not all(isinstance(p, dict) and p.get("type") for p in plugins):
        raise ValueError("it lists no plugins, or one without a type")
    if any("/" in str(plugin["type"]) for plugin in plugins):
        raise ValueError("a plugin's type is a file name, without a path")
    name = content.get("name")
    if not name:
        raise ValueError("it has no name")
    return Network(str(name), str(content.get("cniVersion", "0.2.0")), tuple(plugins), path)


class Networks:
    """The configurations in a folder, read again when something in it changed. Safe for threads."""

    def __init__(self, conf_dir: Path, bin_dirs: Sequence[Path]) -> None:
        self._conf_dir = conf_dir
        self._bin_dirs = tuple(bin_dirs)
        self._lock = threading.Lock()
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._network: Network | None = None
        self._problem = ""

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._conf_dir) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIXES):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((entry.name, status.st_mtime_ns, status.st_size))
        return tuple(sorted(found))

    def current(self) -> tuple[Network | None, str]:
        """The network that new pods join, the first in the order of file names; else None and the reason."""
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                self._network, self._problem = self._load([name for name, _, _ in seen])
            network, problem = self._network, self._problem
        if network is not None:
            for plugin in network.plugins:
                if self._find(plugin["type"]) is None:
                    where = ":".join(map(str, self._bin_dirs))
                    return None, f"{network.path}: there is no plugin {plugin['type']!r} in {where}"
        return network, problem

    def _load(self, names: Sequence[str]) -> tuple[Network | None, str]:
        problems = []
        for name in names:
            path = self._conf_dir / name
            try:
                return parse_network(path.read_text(), str(path)), ""
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {error}")
        return None, "; ".join(problems) or f"there is no network configuration in {self._conf_dir}"

    def _find(self, plugin: str) -> Path | None:
        return next((path for folder in self._bin_dirs if os.access(path := folder / plugin, os.X_OK)), None)

    def attach(self, pod: PodNetwork) -> Attachment:
        """Attach a pod to the current network. Raises `Unavailable` without one, `NetworkError` after undoing what was done."""
        network, problem = self.current()
        if network is None:
            raise Unavailable(f"the network is not ready: {problem}")
        result: Mapping[str, Any] = {}
        try:
            for plugin in network.plugins:
                result = self._run("ADD", network, plugin, pod, result)
        except NetworkError:
            with contextlib.suppress(NetworkError):
                self.detach(Attachment(network, pod, {}))
            raise
        return Attachment(network, pod, result)

    def detach(self, attachment: Attachment) -> None:
        """Undo `attach`; may be done again. Raises the first `NetworkError`, after every plugin had its turn."""
        first: NetworkError | None = None
        for plugin in reversed(attachment.network.plugins):
            try:
                self._run("DEL", attachment.network, plugin, attachment.pod, attachment.result)
            except NetworkError as error:
                first = first or error
        if first is not None:
            raise first

    def _run(
        self, command: str, network: Network, plugin: Mapping[str, Any], pod: PodNetwork, previous: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        kind = str(plugin["type"])
        program = self._find(kind)
        if program is None:
            raise NetworkError(kind, f"is not in {':'.join(map(str, self._bin_dirs))}")
        content = {**plugin, "name": network.name, "cniVersion": network.version}
        offered = plugin.get("capabilities") or {}
        wanted = {name: pod.capabilities[name] for name, on in offered.items() if on and name in pod.capabilities}
        if wanted:
            content["runtimeConfig"] = wanted
        if previous:
            content["prevResult"] = previous
        environment = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.pod_id,
            # A namespace that is gone is told by an empty path: the plugin then frees what it holds outside of it.
            "CNI_NETNS": pod.netns if command != "DEL" or os.path.exists(pod.netns) else "",
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in pod.arguments.items()),
            "CNI_PATH": ":".join(map(str, self._bin_dirs)),
        }
        try:
            done = subprocess.run(
                [str(program)],
                input=json.dumps(content).encode(),
                capture_output=True,
                env=environment,
                timeout=_PLUGIN_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NetworkError(kind, f"{command} did not end within {_PLUGIN_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise NetworkError(kind, f"cannot be run: {error}") from error
        if done.returncode:
            raise NetworkError(kind, f"{command} failed: {_complaint(done.stdout, done.stderr)}")
        if command == "DEL" or not done.stdout.strip():
            return previous
        try:
            result = json.loads(done.stdout)
        except ValueError as error:
            raise NetworkError(kind, f"its answer is not JSON: {error}") from error
        return result if isinstance(result, dict) else previous


def _complaint(stdout: bytes, stderr: bytes) -> str:
    """What a plugin that failed says: an error object on its stdout, by the specification."""
    with contextlib.suppress(ValueError, AttributeError):
        content = json.loads(stdout)
        text = ": ".join(str(content[key]) for key in ("msg", "details") if content.get(key))
        if text:
            return text
    return (stdout + stderr).decode(errors="replace").strip()[-1000:] or "it did not say why"
