"""The distribution API, as a client: manifests and blobs from the hosts that serve a repository.

A host's endpoints come from ``<hosts-dir>/<host>/hosts.toml`` in containerd's layout, so that mirrors configured for it
serve us too; without one it is asked directly, over plain http where it is on loopback.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from harness.minirt.errors import Denied, InvalidArgument, NotFound, Unavailable
from harness.minirt.images.reference import DEFAULT_DOMAIN, Reference

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LARGEST_MANIFEST_BYTES = 8 << 20
_CHUNK = 1 << 18
_TIMEOUT = urllib3.Timeout(connect=10.0, read=60.0)
_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Credentials:
    """What CRI's AuthConfig may hold; all empty is nobody."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    @property
    def basic(self) -> str:
        """The value of an Authorization header, or nothing."""
        if not self.username and not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves a host's repositories. `base` ends before the repository's name."""

    base: str
    resolves: bool = True
    ca: str = ""
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    """the host that was asked for, told to a mirror"""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's or an index's own bytes, whose digest has been checked."""

    digest: str
    media_type: str
    raw: bytes

    def parse(self) -> dict[str, Any]:
        """Raises `InvalidArgument` where it is not a JSON object."""
        try:
            content = json.loads(self.raw)
        except ValueError as error:
            raise InvalidArgument(f"manifest {self.digest} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InvalidArgument(f"manifest {self.digest} is not an object")
        return content


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
    return Endpoint(f"{'http' if is_loopback(host) else 'https'}://{host}/v2")


def endpoints_of(host: str, hosts_dir: Path | None) -> list[Endpoint]:
    """The endpoints of `host` in the order to try them. Raises `InvalidArgument`, with the file, for a malformed one."""
    if hosts_dir is None:
        return [default_endpoint(host)]
    for name in (host, host.replace(":", "_") + "_", "_default"):
        path = hosts_dir / name / "hosts.toml"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return parse_hosts(path.read_text(), host, path)
    return [default_endpoint(host)]


def parse_hosts(text: str, host: str, path: Path) -> list[Endpoint]:
    """The endpoints that a hosts.toml describes; `path` is its place, to which its ``ca`` is relative."""
    import tomllib

    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: {error}") from error
    endpoints = [_endpoint(url, row, host, path) for url, row in content.get("host", {}).items()]
    if server := content.get("server"):
        endpoints.append(_endpoint(server, content, "", path))
    else:
        endpoints.append(default_endpoint(host))
    return [endpoint for endpoint in endpoints if endpoint.base]


def _endpoint(url: str, row: Mapping[str, Any], host: str, path: Path) -> Endpoint:
    capabilities = row.get("capabilities", ["pull", "resolve"])
    if "pull" not in capabilities:
        return Endpoint("")
    if "://" not in url:
        url = f"{'http' if is_loopback(url) else 'https'}://{url}"
    base = url.rstrip("/")
    if not row.get("override_path") and not base.endswith("/v2"):
        base += "/v2"
    ca = row.get("ca", "")
    ca = ca[0] if isinstance(ca, list) and ca else ca
    return Endpoint(
        base,
        resolves="resolve" in capabilities,
        ca=str(path.parent / ca) if ca else "",
        skip_verify=bool(row.get("skip_verify", False)),
        headers=tuple(
            (key, ",".join(value) if isinstance(value, list) else str(value))
            for key, value in row.get("header", {}).items()
        ),
        namespace=host if host and urlsplit(base).netloc != host else "",
    )


class Blob:
    """A blob on its way: `read` gives its bytes and checks, at the end, that they are what was asked for."""

    def __init__(self, response: urllib3.BaseHTTPResponse, digest: str, size: int) -> None:
        self._response = response
        self._digest = digest
        self._size = size
        self._hash = hashlib.new(digest.partition(":")[0])
        self._read = 0

    def read(self, size: int = _CHUNK, /) -> bytes:
        """Up to `size` bytes, b"" at the end. Raises `InvalidArgument` where size or digest are not as promised."""
        try:
            part: bytes = self._response.read(min(size, _CHUNK))
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"the transfer of {self._digest} broke off after {self._read} bytes: {error}") from error
        self._read += len(part)
        if self._read > self._size:
            raise InvalidArgument(f"{self._digest} is longer than the {self._size} bytes that its manifest says")
        if part:
            self._hash.update(part)
            return part
        if self._read != self._size:
            raise InvalidArgument(f"{self._digest} has {self._read} bytes, its manifest says {self._size}")
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self._digest:
            raise InvalidArgument(f"{self._digest} was asked for, what came has the digest {found}")
        return b""


class Repository:
    """One repository, at whichever of its endpoints answers. A context manager: it holds connections."""

    def __init__(self, reference: Reference, credentials: Credentials, hosts_dir: Path | None) -> None:
        self._reference = reference
        self._credentials = credentials
        self._endpoints = endpoints_of(reference.domain, hosts_dir)
        self._pools: dict[Endpoint, urllib3.PoolManager] = {}
        self._tokens: dict[str, str] = {}

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.clear()

    def fetch_manifest(self, target: str) -> Manifest:
        """The manifest called `target` (a tag or a digest).

        Raises `NotFound`, `Unavailable` (no endpoint answers; names them), `Denied`, `InvalidArgument` (not what its digest says).
        """
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        with self._request(f"manifests/{target}", headers, resolving=":" not in target) as response:
            raw: bytes = response.read(LARGEST_MANIFEST_BYTES + 1)
        if len(raw) > LARGEST_MANIFEST_BYTES:
            raise InvalidArgument(f"the manifest of {self._reference} is longer than {LARGEST_MANIFEST_BYTES} bytes")
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        if target.startswith("sha512:"):
            digest = "sha512:" + hashlib.sha512(raw).hexdigest()
        if ":" in target and digest != target:
            raise InvalidArgument(f"{target} was asked for, what came has the digest {digest}")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Manifest(digest, media_type, raw)

    @contextlib.contextmanager
    def open_blob(self, digest: str, size: int) -> Iterator[Blob]:
        """A blob of `size` bytes, to be read to its end. Raises as `fetch_manifest`, and so does reading."""
        with self._request(f"blobs/{digest}", {}) as response:
            yield Blob(response, digest, size)

    @contextlib.contextmanager
    def _request(
        self, tail: str, headers: Mapping[str, str], *, resolving: bool = False
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        failures: list[str] = []
        absent = False
        for endpoint in self._endpoints:
            if resolving and not endpoint.resolves:
                continue
            url = f"{endpoint.base}/{self._reference.path}/{tail}"
            if endpoint.namespace:
                url += "?" + urlencode({"ns": endpoint.namespace})
            try:
                response = self._get(endpoint, url, headers)
            except urllib3.exceptions.HTTPError as error:
                failures.append(f"{urlsplit(url).netloc}: {_reason(error)}")
                continue
            if response.status == 200:
                try:
                    yield response
                finally:
                    response.close()
                return
            status, text = response.status, response.read(2048)
            response.close()
            if status in (401, 403) and len(self._endpoints) == 1:
                raise Denied(f"{url}: {status} {_message(text)}")
            absent = absent or status == 404
            failures.append(f"{url}: {status} {_message(text)}")
        if absent:
            raise NotFound(f"{self._reference}: {'; '.join(failures)}")
        raise Unavailable(f"{self._reference}: no registry answers: {'; '.join(failures)}")

    def _get(self, endpoint: Endpoint, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """GET with authorisation; redirects are followed without it where they lead to another host."""
        host = urlsplit(url).netloc
        sent = {**dict(endpoint.headers), **headers}
        if token := self._tokens.get(endpoint.base):
            sent["Authorization"] = token
        elif self._credentials.registry_token:
            sent["Authorization"] = "Bearer " + self._credentials.registry_token
        response = self._send(endpoint, url, sent)
        if response.status == 401 and endpoint.base not in self._tokens:
            challenge = response.headers.get("WWW-Authenticate", "")
            response.read(2048)
            response.close()
            if authorization := self._authorize(endpoint, challenge):
                self._tokens[endpoint.base] = authorization
                response = self._send(endpoint, url, {**sent, "Authorization": authorization})
            else:
                response = self._send(endpoint, url, sent)
        for _ in range(_REDIRECTS):
            location = response.headers.get("Location", "")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                break
            response.close()
            url = urljoin(url, location)
            if urlsplit(url).netloc != host:
                sent = {key: value for key, value in headers.items() if key != "Authorization"}
            elif endpoint.base in self._tokens:
                sent["Authorization"] = self._tokens[endpoint.base]
            response = self._send(endpoint, url, sent)
        return response

    def _send(
        self, endpoint: Endpoint, url: str, headers: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        pool = self._pools.get(endpoint)
        if pool is None:
            tls: dict[str, Any] = {}
            if endpoint.skip_verify:
                tls = {"cert_reqs": "CERT_NONE"}
                urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            elif endpoint.ca:
                tls = {"ca_certs": endpoint.ca}
            pool = self._pools[endpoint] = urllib3.PoolManager(timeout=_TIMEOUT, retries=False, **tls)
        if fields is None:
            return pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False, decode_content=False
            )
        return pool.request("POST", url, headers=headers, body=urlencode(fields), preload_content=False, redirect=False)

    def _authorize(self, endpoint: Endpoint, challenge: str) -> str:
        """The Authorization header that answers a WWW-Authenticate challenge; nothing where we have no answer."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return self._credentials.basic
        if scheme.lower() != "bearer":
            return ""
        facts = dict(re.findall(r'([A-Za-z]+)="([^"]*)"', rest))
        realm = facts.get("realm", "")
        if urlsplit(realm).scheme not in ("http", "https"):
            return ""
        asked = {"service": facts.get("service", ""), "scope": facts.get("scope", "")}
        asked["scope"] = asked["scope"] or f"repository:{self._reference.path}:pull"
        if self._credentials.identity_token:
            form = {**asked, "grant_type": "refresh_token", "client_id": "minirt"}
            form["refresh_token"] = self._credentials.identity_token
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._send(endpoint, realm, headers, form)
        else:
            headers = {"Authorization": self._credentials.basic} if self._credentials.basic else {}
            query = urlencode({key: value for key, value in asked.items() if value})
            response = self._send(endpoint, f"{realm}{'&' if '?' in realm else '?'}{query}", headers)
        raw = response.read(1 << 20)
        response.close()
        if response.status != 200:
            raise Denied(f"{realm}: {response.status} {_message(raw)}")
        with contextlib.suppress(ValueError, AttributeError):
            answer = json.loads(raw)
            if token := answer.get("token") or answer.get("access_token"):
                return f"Bearer {token}"
        raise Denied(f"{realm} answered without a token")


def _reason(error: BaseException) -> str:
    """The innermost reason: urllib3 wraps what the kernel said several times."""
    while (inner := error.__cause__ or getattr(error, "reason", None)) and isinstance(inner, BaseException):
        error = inner
    return str(error)


def _message(raw: bytes) -> str:
    """What a registry's error body says, on one line."""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        first = json.loads(raw)["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()
    return " ".join(raw.decode(errors="replace").split())[:200]
