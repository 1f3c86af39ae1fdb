"""A network's configuration as a file has it: one list of plugins, checked (CNI specification 0.3.1 to 1.1.0, section 1)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""of the specification, that plugins may be spoken to in; oldest first"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Network:
    """One network configuration list, as it goes to the plugins and into the cache. `version`: the newest that it offers."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    path: str = ""

    def speaks(self, version: str) -> bool:
        """Whether its version is at least `version`."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


def parse_network(text: str, path: str) -> Network:
    """A ``.conflist``, or a ``.conf`` of a single plugin. Raises `ValueError` with what is wrong with it."""
    content = json.loads(text)
    _need(isinstance(content, dict), "it is not a JSON object")
    plugins = content.get("plugins", [content] if "type" in content else [])
    _need(isinstance(plugins, list) and plugins, "it lists no plugins")
    for index, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        _need(isinstance(kind, str) and kind, f"plugins[{index}] has no type")
        _need("/" not in str(kind), f"plugins[{index}]: the type {kind!r} is a file name, without a path")
        _need(isinstance(plugin.get("capabilities", {}), dict), f"plugins[{index}]: its capabilities are not an object")
    name = content.get("name")
    _need(name, "it has no name")
    _need(_NAME.fullmatch(str(name)), f"its name {name!r} is not one of letters, digits, '_', '.' and '-'")
    offered = content.get("cniVersions") or [content.get("cniVersion") or VERSIONS[0]]
    _need(isinstance(offered, list), "its cniVersions is not a list")
    known = [version for version in VERSIONS if version in offered]
    _need(known, f"its cniVersion {', '.join(map(str, offered))} is not known; known are {', '.join(VERSIONS)}")
    return Network(str(name), known[-1], tuple(plugins), path)


def _need(condition: object, text: str) -> None:
    if not condition:
        raise ValueError(text)
