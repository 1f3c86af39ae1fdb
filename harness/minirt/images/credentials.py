"""Who we are to a registry: from a call's AuthConfig, else from Docker's config.json and the helper programs that it names.

The file is ``--registry-config FILE``, else ``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json`` of the daemon's
own user; it is read at each pull, and need not be there. Secrets are never part of a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.minirt.errors import Denied, InvalidArgument, WrongState
from harness.minirt.images.reference import DEFAULT_DOMAIN

HELPER_TIMEOUT_S = 15.0
_HELPER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HUB = frozenset({DEFAULT_DOMAIN, "index.docker.io", "registry-1.docker.io"})
_HUB_KEY = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"
"""a helper's word for: the secret is an identity token"""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What CRI's AuthConfig may hold; all empty is nobody."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""
    """the only host that they are for; nothing: the host in the image's name"""

    @property
    def basic(self) -> str:
        """The value of an Authorization header, or nothing."""
        if not self.username and not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)


NOBODY = Credentials()


def parse_auth(auth: str) -> tuple[str, str]:
    """User and password of base64's ``user:password``, as AuthConfig and config.json hold it. Raises `InvalidArgument`."""
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        user, colon, password = "", "", ""
    if not colon:
        raise InvalidArgument("the field auth of the credentials is not base64 of user:password")
    return user, password.rstrip("\0")


def same_host(one: str, other: str) -> bool:
    """Whether two names of hosts (with ports, with or without ``https://`` and a path) mean one registry."""
    one, other = _host(one), _host(other)
    return one == other or {one, other} <= _HUB


def config_file(option: str = "") -> Path:
    """The config.json to read."""
    if option:
        return Path(option)
    folder = os.environ.get("DOCKER_CONFIG")
    return Path(folder or Path("~/.docker").expanduser()) / "config.json"


def find_credentials(path: Path, host: str, repository: str, timeout_s: float = HELPER_TIMEOUT_S) -> Credentials:
    """What the config.json at `path` knows for `repository` (a path) on `host`.

    Raises `WrongState` for a file that is broken, `Denied` where a helper fails.
    """
    try:
        content = json.loads(path.read_bytes())
        helpers, store, rows = _parse_config(content)
    except (FileNotFoundError, NotADirectoryError):
        return NOBODY
    except (OSError, ValueError, InvalidArgument) as error:
        raise WrongState(f"{path}: it cannot be used for credentials: {error}") from error
    key = _HUB_KEY if host in _HUB else host
    for helper in (next((name for listed, name in helpers.items() if same_host(listed, host)), ""), store):
        if helper and (found := _ask_helper(helper, key, timeout_s)):
            return found
    best = ""
    for listed in rows:
        folder = _path(listed)
        inside = not folder or f"{repository}/".startswith(f"{folder}/")
        if same_host(listed, host) and inside and (not best or len(folder) > len(_path(best))):
            best = listed
    if not best:
        return NOBODY
    try:
        return _credentials(rows[best])
    except InvalidArgument as error:
        raise WrongState(f"{path}: {best}: {error}") from error


def _parse_config(content: Any) -> tuple[dict[str, str], str, dict[str, Mapping[str, Any]]]:
    if not isinstance(content, dict):
        raise InvalidArgument("it is not a JSON object")
    helpers, store, rows = content.get("credHelpers") or {}, content.get("credsStore") or "", content.get("auths") or {}
    if not isinstance(helpers, dict) or not isinstance(rows, dict):
        raise InvalidArgument("credHelpers and auths must be objects")
    for name in (*helpers.values(), *([store] if store else [])):
        if not isinstance(name, str) or not _HELPER.fullmatch(name):
            raise InvalidArgument(f"{name!r} is not the name of a credential helper")
    return helpers, store, {key: row for key, row in rows.items() if isinstance(row, dict)}


def _credentials(row: Mapping[str, Any]) -> Credentials:
    facts = {key: row.get(key) or "" for key in ("username", "password", "auth", "identitytoken", "registrytoken")}
    if not all(isinstance(value, str) for value in facts.values()):
        raise InvalidArgument("its values must be strings")
    user, password = facts["username"], facts["password"]
    if facts["auth"] and not user:
        user, password = parse_auth(facts["auth"])
    return Credentials(user, password, facts["identitytoken"], facts["registrytoken"])


def _ask_helper(name: str, key: str, timeout_s: float) -> Credentials:
    """Run ``docker-credential-NAME get``; nobody where it knows nothing of `key`."""
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise Denied(f"{program} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Denied(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = b" ".join((done.stdout + b" " + done.stderr).split()).decode(errors="replace")
        if "credentials not found" in said:
            return NOBODY
        raise Denied(f"{program} failed with exit status {done.returncode}: {said[:200]}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise Denied(f"{program} answered something else than user and secret") from None
    return Credentials(identity_token=secret) if user == _TOKEN_USER else Credentials(user, secret)


def _host(name: str) -> str:
    return urlsplit(name if "://" in name else f"//{name}").netloc.lower()


def _path(name: str) -> str:
    """The part of a repository's path that a key of ``auths`` is limited to: none for Docker's ``https://host/v1/``."""
    return "" if "://" in name else urlsplit(f"//{name}").path.strip("/")
