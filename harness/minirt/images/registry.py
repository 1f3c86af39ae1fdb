"""The read side of a registry (OCI distribution-spec v1.1, "Pull"): mirrors, authorisation, redirects, retries.

Credentials go to the host that they are for and to the token server that it names, and never along with a redirect to
another host.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from harness.minirt.errors import Denied, InvalidArgument, NotFound, Unavailable
from harness.minirt.images.authorization import Authorization, message_of
from harness.minirt.images.credentials import Credentials
from harness.minirt.images.hosts import Endpoint
from harness.minirt.images.manifest import INDEX_TYPES, MANIFEST_TYPES
from harness.minirt.images.patience import TRANSIENT, Patience, retry_after
from harness.minirt.images.reference import Reference

LARGEST_MANIFEST_BYTES = 4 << 20
"""what registries must accept (distribution-spec, "Pushing Manifests"), hence all that there should be"""
_LARGEST_MESSAGE_BYTES = 1 << 20
_REDIRECTS = 5
_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's or an index's own bytes, whose digest has been checked."""

    digest: str
    media_type: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why an endpoint gave nothing. `status` is 0 where it did not answer at all."""

    text: str
    status: int = 0
    wait_s: float = 0.0

    @property
    def passing(self) -> bool:
        """Whether trying again may help."""
        return self.status in TRANSIENT


class Repository:
    """One repository, at whichever of its endpoints answers. A context manager: it holds connections. Safe for threads.

    `credentials` tells whose host is asked with which.
    """

    def __init__(
        self,
        reference: Reference,
        endpoints: Sequence[Endpoint],
        credentials: Callable[[str], Credentials],
        patience: Patience = Patience(),  # noqa: B008
    ) -> None:
        self._reference = reference
        self._endpoints = list(endpoints)
        self._credentials = credentials
        self.patience = patience
        self._lock = threading.Lock()
        self._pools: dict[tuple[Endpoint, bool], urllib3.PoolManager] = {}
        self._authorizations: dict[Endpoint, Authorization] = {}
        self._silent: set[Endpoint] = set()

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.clear()

    def fetch_manifest(self, target: str) -> Manifest:
        """The manifest called `target` (a tag or a digest).

        Raises `NotFound`, `Unavailable` (no endpoint answers; names them), `Denied`, `InvalidArgument` (not what its digest says).
        """
        headers = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
        for attempt in range(1, self.patience.tries + 1):
            try:
                with self.request(f"manifests/{target}", headers, resolving=":" not in target) as response:
                    raw: bytes = response.read(LARGEST_MANIFEST_BYTES + 1)
                break
            except urllib3.exceptions.HTTPError as error:  # it broke off in the middle
                if attempt == self.patience.tries:
                    raise Unavailable(f"{self._reference}: {reason_of(error)}") from error
                self.patience.wait(attempt)
        if len(raw) > LARGEST_MANIFEST_BYTES:
            raise InvalidArgument(f"the manifest of {self._reference} is longer than {LARGEST_MANIFEST_BYTES} bytes")
        algorithm = target.partition(":")[0] if ":" in target else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
        if ":" in target and digest != target:
            raise InvalidArgument(f"{target} was asked for, what came has the digest {digest}")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Manifest(digest, media_type, raw)

    @contextlib.contextmanager
    def request(
        self, tail: str, headers: Mapping[str, str], *, resolving: bool = False, urls: Sequence[str] = ()
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer (200 or 206) of the first endpoint that has it; `urls` are asked last, without credentials.

        Raises `NotFound`, `Denied`, `Unavailable`. What goes wrong while the body is read is urllib3's `HTTPError`.
        """
        found = self._find(tail, headers, resolving)
        if isinstance(found, list):
            for url in urls:
                response = self._foreign(url, headers)
                if response is not None:
                    found = response
                    break
            else:
                raise self._error(found)
        try:
            yield found
        finally:
            found.close()

    def _find(self, tail: str, headers: Mapping[str, str], resolving: bool) -> Any:
        """A response, or the refusals of all endpoints. Only the last endpoint is worth waiting for: others have a next."""
        refusals: list[_Refusal] = []
        usable = [endpoint for endpoint in self._endpoints if endpoint.resolves or not resolving]
        alive = [endpoint for endpoint in usable if endpoint not in self._silent] or usable[-1:]
        for endpoint in alive:
            tries = self.patience.tries if endpoint is alive[-1] else 1
            for attempt in range(1, tries + 1):
                found = self._ask(endpoint, tail, headers)
                if not isinstance(found, _Refusal):
                    return found
                if not found.passing or attempt == tries:
                    refusals.append(found)
                    break
                self.patience.wait(attempt, found.wait_s)
        return refusals or [_Refusal("its hosts.toml names no host that resolves tags")]

    def _ask(self, endpoint: Endpoint, tail: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse | _Refusal:
        url = f"{endpoint.base}/{self._reference.path}/{tail}"
        if endpoint.namespace:
            url += "?" + urlencode({"ns": endpoint.namespace})
        try:
            response = self._get(endpoint, url, headers)
        except Denied as error:
            return _Refusal(str(error), 401)
        except Unavailable as error:
            return _Refusal(str(error), 503)
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            with self._lock:
                self._silent.add(endpoint)
            return _Refusal(f"{endpoint.host}: {reason_of(error)}")
        except urllib3.exceptions.SSLError as error:
            return _Refusal(f"{endpoint.host}: {reason_of(error)}")
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            return _Refusal(f"{endpoint.host}: {reason_of(error)}", 503)
        if response.status in (200, 206):
            return response
        text = b""
        with response, contextlib.suppress(urllib3.exceptions.HTTPError):
            text = response.read(2048)
        wait_s = retry_after(response.headers.get("Retry-After", ""))
        return _Refusal(f"{url}: {response.status} {message_of(text)}", response.status, wait_s)

    def _error(self, refusals: Sequence[_Refusal]) -> Exception:
        text = f"{self._reference}: {'; '.join(refusal.text for refusal in refusals)}"
        statuses = {refusal.status for refusal in refusals}
        if statuses & {401, 403}:
            return Denied(f"{text} (it may not exist, or other credentials are needed)")
        if 404 in statuses:
            return NotFound(text)
        if 429 in statuses:
            return Unavailable(f"{text} (too many requests: wait, or log in)")
        return Unavailable(f"no registry answers: {text}")

    def _get(self, endpoint: Endpoint, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """GET with authorisation; redirects are followed without it where they lead to another host."""
        authorization = self._authorization(endpoint)
        secret = authorization.header()
        response = self._open(endpoint, url, headers, secret)
        for _ in range(2):  # a token may have expired between two requests, and its successor be needed
            if response.status != 401:
                break
            challenge = ", ".join(response.headers.getlist("WWW-Authenticate"))
            answer = authorization.answer(challenge, secret)
            if not answer:
                break
            response.close()
            secret = answer
            response = self._open(endpoint, url, headers, secret)
        return response

    def _open(self, endpoint: Endpoint, url: str, headers: Mapping[str, str], secret: str) -> urllib3.BaseHTTPResponse:
        origin = _origin(url)
        own = {**dict(endpoint.headers), **headers, **({"Authorization": secret} if secret else {})}
        response = self._send(endpoint, url, own)
        for _ in range(_REDIRECTS):
            location = response.headers.get("Location", "")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                break
            response.close()
            url = urljoin(url, location)
            if urlsplit(url).scheme not in ("http", "https"):
                raise Unavailable(f"{endpoint.host} redirects to {url!r:.200}")
            same = _origin(url) == origin
            response = self._send(endpoint, url, own if same else headers, abroad=not same)
        return response

    def _foreign(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse | None:
        if urlsplit(url).scheme not in ("http", "https"):
            return None
        with contextlib.suppress(urllib3.exceptions.HTTPError, Unavailable, ValueError):
            response = self._open(Endpoint(url), url, headers, "")
            if response.status in (200, 206):
                return response
            response.close()
        return None

    def _authorization(self, endpoint: Endpoint) -> Authorization:
        def send(url: str, headers: Mapping[str, str], form: Mapping[str, str] | None) -> tuple[int, bytes]:
            abroad = _origin(url) != _origin(endpoint.base)
            with self._send(endpoint, url, headers, form, abroad=abroad) as response:
                return response.status, response.read(_LARGEST_MESSAGE_BYTES)

        with self._lock:
            if endpoint not in self._authorizations:
                self._authorizations[endpoint] = Authorization(
                    endpoint.base, self._reference.path, lambda: self._credentials(endpoint.host), send
                )
            return self._authorizations[endpoint]

    def _send(
        self,
        endpoint: Endpoint,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
        *,
        abroad: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        with self._lock:
            pool = self._pools.get((endpoint, abroad))
            if pool is None:
                pool = self._pools[endpoint, abroad] = self._make_pool(endpoint, abroad)
        facts: dict[str, Any] = {"preload_content": False, "redirect": False, "decode_content": False}
        if form is None:
            return pool.request("GET", url, headers=headers, **facts)
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return pool.request("POST", url, headers={**headers, **kind}, body=urlencode(form), **facts)

    def _make_pool(self, endpoint: Endpoint, abroad: bool) -> urllib3.PoolManager:
        tls: dict[str, Any] = {}
        # A registry on plain http may still send us to a token server, or to a store, with TLS.
        if endpoint.base.startswith("https:") or abroad:
            tls = {"ssl_context": _tls(endpoint, abroad)}
        timeout = urllib3.Timeout(connect=endpoint.connect_s, read=self.patience.stall_s)
        return urllib3.PoolManager(timeout=timeout, retries=False, maxsize=_CONNECTIONS, **tls)


def _tls(endpoint: Endpoint, abroad: bool) -> ssl.SSLContext:
    """Who is trusted. To another host than the endpoint itself no client certificate is shown."""
    context = ssl.create_default_context()
    path = ""
    try:
        for path in endpoint.ca:
            context.load_verify_locations(path)
        for path, key in () if abroad else endpoint.client:
            context.load_cert_chain(path, key or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(f"the certificate {path} for {endpoint.host} cannot be used: {error}") from error
    if endpoint.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return context


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def reason_of(error: BaseException) -> str:
    """The innermost reason: urllib3 wraps what the kernel said several times."""
    while (inner := error.__cause__ or getattr(error, "reason", None)) and isinstance(inner, BaseException):
        error = inner
    return str(error) or type(error).__name__
