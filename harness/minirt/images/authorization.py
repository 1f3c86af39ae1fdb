"""Answers to a registry's 401: bearer tokens and basic authorisation (distribution-spec; Docker's token specification)."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from harness.minirt.errors import Denied, Unavailable
from harness.minirt.images.credentials import Credentials

_CHALLENGE = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9_-]*)\s+(?=[A-Za-z_]+\s*=)")
_FACT = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_EARLY_S = 5.0
"""how long before its end a token is not used any more"""
_LARGEST_ANSWER_BYTES = 1 << 20
CLIENT = "minirt"

Send = Callable[[str, Mapping[str, str], Mapping[str, str] | None], tuple[int, bytes]]
"""``(url, headers, form)``: GET, or POST where there is a form; status and body"""


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    ends: float


class Authorization:
    """The Authorization headers of one endpoint and repository. Safe for threads: a token is fetched once, for all."""

    def __init__(
        self,
        base: str,
        repository: str,
        credentials: Callable[[], Credentials],
        send: Send,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self._repository = repository
        self._find = credentials
        self._send = send
        self._now = now
        self._lock = threading.Lock()
        self._token = _Token("", 0.0)
        self._known: Credentials | None = None

    def header(self) -> str:
        """What to send along unasked; nothing before the first challenge, and once the token has expired."""
        with self._lock:
            if self._token.header and self._now() < self._token.ends:
                return self._token.header
            credentials = self._credentials()
            return f"Bearer {credentials.registry_token}" if credentials.registry_token else ""

    def answer(self, challenge: str, refused: str) -> str:
        """The header that answers `challenge`, which came to a request with the header `refused`; nothing: we have no answer.

        Raises `Denied` or `Unavailable` where no token is given.
        """
        with self._lock:
            if self._token.header != refused and self._now() < self._token.ends:
                return self._token.header  # another thread has asked meanwhile
            challenges = parse_challenges(challenge)
            if "bearer" in challenges:
                header, lasts_s = self._fetch(challenges["bearer"])
            elif "basic" in challenges:
                header, lasts_s = self._credentials().basic, float("inf")
                if header == refused:
                    header = ""
            else:
                header, lasts_s = "", 0.0
            self._token = _Token(header, self._now() + lasts_s)
            return header

    def _credentials(self) -> Credentials:
        if self._known is None:
            self._known = self._find()
        return self._known

    def _fetch(self, facts: Mapping[str, str]) -> tuple[str, float]:
        realm = facts.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Denied(f"{self._base} sends us for a token to {realm!r}, which is no URL")
        credentials = self._credentials()
        if credentials and parts.scheme == "http" and self._base.startswith("https:"):
            raise Denied(
                f"{self._base} sends us for a token to {realm}, where our credentials would be sent in the clear"
            )
        asked = {
            "service": facts.get("service", ""),
            "scope": facts.get("scope", "") or f"repository:{self._repository}:pull",
        }
        if credentials.identity_token:
            form = {**asked, "grant_type": "refresh_token", "client_id": CLIENT}
            form["refresh_token"] = credentials.identity_token
            status, raw = self._send(realm, {}, form)
        else:
            query = urlencode({key: value for key, value in asked.items() if value})
            headers = {"Authorization": credentials.basic} if credentials.basic else {}
            status, raw = self._send(f"{realm}{'&' if parts.query else '?'}{query}", headers, None)
        place = f"{parts.scheme}://{parts.netloc}{parts.path}"
        if status != 200:
            kind = Unavailable if status >= 500 or status == 429 else Denied
            raise kind(f"no token for {self._repository} from {place}: {status} {message_of(raw)}")
        return _parse_token(raw, place)


def _parse_token(raw: bytes, place: str) -> tuple[str, float]:
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        answer = json.loads(raw[:_LARGEST_ANSWER_BYTES])
        token = answer.get("token") or answer.get("access_token")
        lasts = answer.get("expires_in") or 0
        if isinstance(token, str) and token.isprintable() and token.isascii() and isinstance(lasts, (int, float)):
            return f"Bearer {token}", lasts - _EARLY_S if lasts > 0 else float("inf")
    raise Denied(f"{place} answered without a token")


def parse_challenges(text: str) -> dict[str, dict[str, str]]:
    """The challenges of a WWW-Authenticate header by scheme, in small letters (RFC 9110, section 11.6.1)."""
    found: dict[str, dict[str, str]] = {}
    marks = list(_CHALLENGE.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends[: len(marks)], strict=True):
        part = text[mark.end() : end]
        facts = {key.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain for key, quoted, plain in _FACT.findall(part)}
        found.setdefault(mark[1].lower(), facts)
    return found


def message_of(raw: bytes) -> str:
    """What a registry's error body says, on one line."""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
        first = json.loads(raw)["errors"][0]
        return " ".join(f"{first.get('code', '')} {first.get('message', '')}".split())[:300]
    return " ".join(raw.decode(errors="replace").split())[:200]
