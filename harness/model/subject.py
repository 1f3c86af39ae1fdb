"""Subjects: the ways to run a container that a trial compares, as rows of a table."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from harness.errors import UnknownSubject, UsageError
from harness.model.capability import Capability

CRI_CAPABILITIES = frozenset(Capability) - {Capability.OCI, Capability.OWN_KERNEL}
DOCKER_CAPABILITIES = CRI_CAPABILITIES - {Capability.SANDBOX, Capability.CRI}
CTR_CAPABILITIES = frozenset(
    {Capability.IMAGES, Capability.EXEC, Capability.PAUSE, Capability.LOGS, Capability.EXIT_CODE}
)
OCI_CAPABILITIES = frozenset({Capability.OCI, Capability.EXEC, Capability.PAUSE, Capability.LOGS})

CAPABILITIES_OF_CLIENT: Mapping[str, frozenset[Capability]] = MappingProxyType(
    {
        "grpc": CRI_CAPABILITIES,
        "crictl": CRI_CAPABILITIES,
        "ctr": CTR_CAPABILITIES,
        "sdk": DOCKER_CAPABILITIES,
        "cli": DOCKER_CAPABILITIES,
        "oci": OCI_CAPABILITIES,
    }
)
"""What each client's interface offers when its engine is complete; a row may declare less."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to run a container: an engine, the client that drives it, and the OCI runtime below it."""

    name: str
    engine: str
    """``minirt``, ``containerd``, ``docker``, ``podman``; ``none`` where an OCI runtime is driven by itself; ``attached`` where
    the engine is somebody else's and only its socket is known"""
    client: str
    """``grpc``, ``crictl``, ``ctr``, ``sdk``, ``cli``, ``oci``"""
    handler: str
    """name or absolute path of the OCI runtime; ``builtin`` where the engine has none below it"""
    capabilities: frozenset[Capability]
    socket: str = ""
    """path of a socket to attach to; empty where the harness starts the engine itself"""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """engine options of the user's ``seatrial.toml``, handed to the engine as they are"""

    @property
    def slug(self) -> str:
        """The name as one path component, of ``[a-z0-9-]``."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def way(self) -> tuple[str, str, str]:
        """Engine, client and handler."""
        return self.engine, self.client, self.handler

    @property
    def words(self) -> str:
        """What names this subject on a command line: its name, with its definition where it is a user's own."""
        if self in BUILT_IN:
            return self.name
        if self.engine == "attached":
            return f"{self.name}={'cri' if self.client == 'grpc' else 'docker'}:unix://{self.socket}"
        if self.socket:
            row = next((row.name for row in BUILT_IN if row.way == self.way), "")
            return (
                f"{self.name} --attach {self.socket}" if row in ("", self.name) else f"{self.name}={row}@{self.socket}"
            )
        engine = "oci" if self.engine == "none" else f"{self.engine}:{self.client}"
        return f"{self.name}={engine}:{self.handler}" if self.handler.startswith("/") else self.name


def _row(engine: str, client: str, handler: str, *more: Capability, without: Capability | None = None) -> Subject:
    named = [part for part in (engine if engine != "none" else "", client, handler) if part and part != "builtin"]
    offered = (CAPABILITIES_OF_CLIENT[client] | frozenset(more)) - {without}
    return Subject(":".join(named), engine, client, handler, offered)


BUILT_IN: tuple[Subject, ...] = (
    _row("minirt", "grpc", "builtin"),
    _row("minirt", "crictl", "builtin"),
    _row("containerd", "grpc", "runc"),
    _row("containerd", "grpc", "crun"),
    _row("containerd", "grpc", "minirt"),
    _row("containerd", "crictl", "runc"),
    _row("containerd", "ctr", "runc"),
    _row("containerd", "ctr", "minirt"),
    _row("docker", "sdk", "runc"),
    _row("docker", "sdk", "crun"),
    _row("docker", "sdk", "minirt"),
    _row("podman", "cli", "crun"),
    _row("podman", "cli", "runc"),
    _row("podman", "cli", "minirt"),
    # Before version 5 its API gives times in whole seconds, which tell no two lines apart.
    _row("podman", "sdk", "crun", without=Capability.LOG_TIMESTAMPS),
    _row("none", "oci", "runc"),
    _row("none", "oci", "crun"),
    _row("none", "oci", "minirt"),
    _row("none", "oci", "runsc", Capability.OWN_KERNEL),
    _row("none", "oci", "youki"),
)
"""The subjects that Seatrial knows by itself, in the order in which reports show them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def parse_subject(text: str, table: Iterable[Subject] = BUILT_IN) -> Subject:
    """Turn one word of a command line into a subject.

    `text` is the name of a row of `table`, or ``name=definition``, where the definition is one of ``oci:/path/to/runtime``,
    ``cri:unix:///run/some.sock``, ``docker:unix:///run/some.sock``, ``engine:client:/path/to/runtime`` with an engine
    and a client of the table, or ``row@/run/some.sock``: a row of the table, attached to an engine that runs already.

    Raises `UnknownSubject`, or `UsageError` where a definition is malformed.
    """
    rows = {row.name: row for row in table}
    name, equals, definition = text.partition("=")
    if not equals:
        if text in rows:
            return rows[text]
        close = difflib.get_close_matches(text, rows, n=1)
        raise UnknownSubject(text, list(rows), close[0] if close else None)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a subject's name: use letters, digits and any of . _ : -")
    if name in rows:
        raise UsageError(f"{name!r} is the name of a built-in subject: choose another for your own")
    return define(name, definition, rows.values())


def define(name: str, definition: str, table: Iterable[Subject] = BUILT_IN) -> Subject:
    """The subject `name` that `definition` describes; see `parse_subject` for its forms. Raises `UsageError`."""
    known, at, path = definition.partition("@")
    if at and "/" not in known:
        return _attach(name, known, path, table)
    kind, _, rest = definition.partition(":")
    if kind in ("cri", "docker") and rest.startswith("unix://"):
        client = "grpc" if kind == "cri" else "sdk"
        path = rest.removeprefix("unix://")
        if not path.startswith("/"):
            raise UsageError(f"{name}: {rest!r} is not the address of a socket: write unix:///absolute/path")
        return Subject(name, "attached", client, "builtin", CAPABILITIES_OF_CLIENT[client], socket=path)
    if kind == "oci" and rest.startswith("/"):
        return Subject(name, "none", "oci", rest, OCI_CAPABILITIES)
    engine, client, handler = [*definition.split(":", 2), "", ""][:3]
    for row in table:
        if (row.engine, row.client) == (engine, client) and row.handler != "builtin" and handler.startswith("/"):
            return Subject(name, engine, client, handler, row.capabilities)
    raise UsageError(
        f"{name}: {definition!r} does not define a subject: write oci:/path/to/runtime, cri:unix:///path/to.sock, "
        "docker:unix:///path/to.sock, containerd:grpc:/path/to/runtime or containerd:grpc:runc@/path/to.sock"
    )


def _attach(name: str, known: str, path: str, table: Iterable[Subject]) -> Subject:
    """The row called `known`, with whatever listens at `path` as its engine. Raises `UsageError`."""
    rows = {row.name: row for row in table if row.engine not in ("none", "attached") and not row.socket}
    if known not in rows:
        close = difflib.get_close_matches(known, rows, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(rows)}"
        raise UsageError(f"{name}: {known!r} is no subject that has an engine to attach to; {hint}")
    if not path.startswith("/"):
        raise UsageError(f"{name}: {path!r} is not the path of a socket: write {known}@/absolute/path")
    if rows[known].handler.startswith("/"):
        raise UsageError(
            f"{name}: {rows[known].handler} cannot be put below an engine that runs already: name a handler that it knows"
        )
    return replace(rows[known], name=name, socket=path, options=MappingProxyType({}))
