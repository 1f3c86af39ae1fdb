"""Where a registry's repositories are asked for: containerd's ``certs.d`` folders, so that users reuse theirs.

::

    <hosts-dir>/<host>_<port>_/hosts.toml    or <host>:<port>/, or <host>/, or _default/: the first that is there
    <hosts-dir>/<host>/*.crt *.cert *.key    without a hosts.toml: authorities, client certificates and their keys

A hosts.toml lists mirrors, which are asked in the order of the file, and then the server. It is read at each pull. Keys:
``server`` and ``[host."URL"]``; in both ``capabilities`` (pull, resolve; push and referrers are for others), ``ca``,
``client``, ``skip_verify``, ``override_path``, ``header``, ``dial_timeout``. Anything else is an error with the file's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.minirt.errors import InvalidArgument
from harness.minirt.images.reference import DEFAULT_DOMAIN

_KEYS = {"capabilities", "ca", "client", "skip_verify", "override_path", "header", "dial_timeout"}
_CAPABILITIES = {"pull", "resolve", "push", "referrers"}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves a host's repositories. `base` ends before the repository's name."""

    base: str
    pulls: bool = True
    resolves: bool = True
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    """client certificates and their keys ("": in the same file)"""
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    connect_s: float = CONNECT_S
    namespace: str = ""
    """the host that was asked for, told to a mirror"""

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base).netloc


def is_loopback(host: str) -> bool:
    """Whether `host` (with or without a port) is this machine itself: such registries speak plain http."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def default_endpoint(host: str) -> Endpoint:
    """Where `host` is asked when nothing else was configured."""
    if host == DEFAULT_DOMAIN:
        return Endpoint("https://registry-1.docker.io/v2")
    return Endpoint(f"{'http' if is_loopback(host) and not host.endswith(':443') else 'https'}://{host}/v2")


def endpoints_of(host: str, hosts_dir: Path | None) -> list[Endpoint]:
    """The endpoints of `host` in the order to try them. Raises `InvalidArgument`, with the file, for a malformed one."""
    if hosts_dir is None:
        return [default_endpoint(host)]
    name, colon, port = host.rpartition(":")
    names = (f"{name}_{port}_",) if colon and not port.endswith("]") else ()
    for folder in (hosts_dir / name for name in (*names, host, "_default")):
        if folder.is_dir():
            path = folder / "hosts.toml"
            try:
                text = path.read_text()
            except FileNotFoundError:
                return [_with_certificates(default_endpoint(host), folder)]
            except (OSError, ValueError) as error:
                raise InvalidArgument(f"{path} cannot be read: {error}") from error
            return parse_hosts(text, host, path)
    return [default_endpoint(host)]


def parse_hosts(text: str, host: str, path: Path) -> list[Endpoint]:
    """The endpoints that a hosts.toml describes; `path` is its place, to which its certificates are relative."""
    import tomllib

    try:
        content = tomllib.loads(text)
        endpoints = [_endpoint(url, row, host, path) for url, row in _table(content, "host").items()]
        rest = {key: value for key, value in content.items() if key not in ("server", "host")}
        server = _text(content, "server")
        last = _endpoint(server or default_endpoint(host).base, rest, host, path)
    except (tomllib.TOMLDecodeError, InvalidArgument, RecursionError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    if not server or last.host == default_endpoint(host).host:
        last = replace(last, namespace="")
    return [endpoint for endpoint in (*endpoints, last) if endpoint.pulls]


def _endpoint(url: str, row: Any, host: str, path: Path) -> Endpoint:
    if not isinstance(row, dict):
        raise InvalidArgument(f"{url}: a table is needed")
    if unknown := sorted(set(row) - _KEYS):
        raise InvalidArgument(f"{url}: there is no key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    capabilities = _texts(row, "capabilities") or ("pull", "resolve")
    if unknown := sorted({name.lower() for name in capabilities} - _CAPABILITIES):
        raise InvalidArgument(f"{url}: there is no capability {unknown[0]!r}")
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query:
        raise InvalidArgument(f"{url!r} is not the URL of a registry")
    base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    if not _flag(row, "override_path") and not base.endswith("/v2"):
        base += "/v2"
    return Endpoint(
        base,
        pulls="pull" in capabilities,
        resolves="resolve" in capabilities,
        ca=tuple(str(path.parent / name) for name in _texts(row, "ca")),
        client=_client(row.get("client"), path.parent),
        skip_verify=_flag(row, "skip_verify"),
        headers=tuple((name, ", ".join(_texts(_table(row, "header"), name))) for name in _table(row, "header")),
        connect_s=_seconds(_text(row, "dial_timeout")),
        namespace=host if parts.netloc != host else "",
    )


def _client(value: Any, folder: Path) -> tuple[tuple[str, str], ...]:
    """A file, a list of files, or a list of pairs of a certificate's and a key's file."""
    pairs: list[tuple[str, str]] = []
    for item in [value] if isinstance(value, str) else value or []:
        if isinstance(item, str):
            pairs.append((str(folder / item), ""))
        elif isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            pairs.append((str(folder / item[0]), str(folder / item[1])))
        else:
            raise InvalidArgument(f"client: {item!r} is neither a file nor a pair of files")
    return tuple(pairs)


def _with_certificates(endpoint: Endpoint, folder: Path) -> Endpoint:
    """Docker's layout of the folder: certificates by their names' ends alone."""
    pairs = []
    for path in sorted(folder.glob("*.cert")):
        key = path.with_suffix(".key")
        pairs.append((str(path), str(key) if key.exists() else ""))
    return replace(endpoint, ca=tuple(str(path) for path in sorted(folder.glob("*.crt"))), client=tuple(pairs))


def _table(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = row.get(key, {})
    if not isinstance(value, dict):
        raise InvalidArgument(f"{key}: a table is needed, not {value!r}")
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        raise InvalidArgument(f"{key}: a string is needed, not {value!r}")
    return value


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidArgument(f"{key}: a string or a list of strings is needed, not {value!r}")
    return tuple(value)


def _flag(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{key}: true or false is needed, not {value!r}")
    return value


def _seconds(text: str) -> float:
    """A duration as Go writes it."""
    if not text:
        return CONNECT_S
    if not _DURATION.fullmatch(text):
        raise InvalidArgument(f"dial_timeout: {text!r} is not a duration such as 3s or 500ms")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
