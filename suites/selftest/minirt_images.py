"""A store of images of a test's own, a registry that may misbehave, and a puller between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minirt_registry import Registry, serving_registry, tar_of

from harness.minirt.images.credentials import NOBODY, Credentials
from harness.minirt.images.patience import Patience
from harness.minirt.images.pull import Puller
from harness.minirt.images.snapshot import Snapshots
from harness.minirt.images.store import ImageStore

LAYERS = (tar_of(("one", b"1")), tar_of(("two", b"22")))
HASTY = Patience(tries=3, first_s=0.0, longest_s=0.0, stall_s=10.0)


class Bench:
    """A store below `root`; nothing is waited for between tries. `notes` are what would have been logged."""

    def __init__(
        self, root: Path, registry: Registry, hosts: Path, pinned: Sequence[str] = (), patience: Patience = HASTY
    ) -> None:
        self.root, self.registry, self.hosts = root, registry, hosts
        self.snapshots = Snapshots(root)
        self.store = ImageStore(root, self.snapshots, pinned)
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.config = root.parent / "config.json"
        self.puller = Puller(
            self.store,
            self.snapshots,
            hosts,
            str(self.config),
            patience=patience,
            note=lambda message, **facts: self.notes.append((message, facts)),
        )

    def pull(self, name: str, credentials: Credentials = NOBODY) -> str:
        return self.puller.pull(f"{self.registry.address}/{name}", credentials, lambda: False).id

    def pull_aside(self, name: str) -> tuple[threading.Thread, list[str | Exception]]:
        """Pull in a thread; what came of it stands in the list."""
        found: list[str | Exception] = []

        def run() -> None:
            try:
                found.append(self.pull(name))
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, found

    def left(self) -> list[str]:
        """Every layer and blob on disk."""
        return sorted(
            path.name for folder in ("layers", "images/blobs/sha256") for path in (self.root / folder).iterdir()
        )

    def close(self) -> None:
        """End what would otherwise wait for a better moment."""
        self.snapshots.settle()


@contextmanager
def bench_on(top: Path, **facts: Any) -> Iterator[Bench]:
    """A `Bench` below `top`."""
    with serving_registry() as registry:
        bench = Bench(top / "root", registry, top / "hosts", **facts)
        try:
            yield bench
        finally:
            bench.close()
