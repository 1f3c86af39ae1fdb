"""`open_client`: from the word for a client to a client at work."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from harness.client.verbs import Client, Site
from harness.errors import UsageError
from harness.model.subject import Subject

CLIENTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "grpc": ("harness.client.cri_grpc", "CriGrpc"),
        "crictl": ("harness.client.crictl", "Crictl"),
        "ctr": ("harness.client.ctr", "Ctr"),
        "sdk": ("harness.client.docker_sdk", "DockerSdk"),
        "cli": ("harness.client.podman_cli", "PodmanCli"),
        "oci": ("harness.client.oci", "Oci"),
    }
)
"""Module and class by `Subject.client`. A module is imported when its client is opened: some bring heavy libraries."""


@contextlib.contextmanager
def open_client(subject: Subject, site: Site) -> Iterator[Client]:
    """The client of `subject`, at work at `site`; closed afterwards.

    Raises `Unreachable` where the engine does not answer, `MachineError` where a tool is not installed, `UsageError` for
    a client that nobody has written.
    """
    if subject.client not in CLIENTS:
        raise UsageError(f"{subject.name}: no client is called {subject.client!r}; there are {', '.join(CLIENTS)}")
    module, name = CLIENTS[subject.client]
    client: Client = getattr(importlib.import_module(module), name)(site)
    try:
        yield client
    finally:
        client.close()
