"""Bring an image in: manifest, configuration, layers, record, in this order, so that a record is never ahead of its data."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.minirt.errors import InvalidArgument, NotFound, TimedOut
from harness.minirt.images.reference import Reference, is_digest, parse_reference
from harness.minirt.images.snapshot import Snapshots, chain_ids
from harness.minirt.images.store import Image, ImageStore

if TYPE_CHECKING:
    from harness.minirt.images.registry import Blob, Credentials, Manifest, Repository

_PARALLEL_LAYERS = 3
_LARGEST_CONFIG_BYTES = 8 << 20
_DEEPEST_INDEX = 3
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}

Cancelled = Callable[[], bool]


@dataclass(slots=True)
class _Job:
    """A pull that is under way, and who waits for it."""

    done: threading.Event = field(default_factory=threading.Event)
    waiting: list[Cancelled] = field(default_factory=list)
    image: Image | None = None
    error: BaseException | None = None

    def abandoned(self) -> bool:
        return all(cancelled() for cancelled in self.waiting)


class Puller:
    """Pulls images into a store. Whoever asks for the same image at the same time shares one pull."""

    def __init__(self, store: ImageStore, snapshots: Snapshots, hosts_dir: Path | None) -> None:
        self._store = store
        self._snapshots = snapshots
        self._hosts_dir = hosts_dir
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, Credentials], _Job] = {}

    def pull(self, name: str, credentials: Credentials, cancelled: Cancelled) -> Image:
        """Pull `name`. `cancelled` is asked now and then; true from everybody who waits ends it with nothing left behind.

        Raises `InvalidArgument`, `NotFound`, `Denied`, `Unavailable`, `TimedOut` (cancelled).
        """
        reference = parse_reference(name)
        key = (str(reference), credentials)
        with self._lock:
            job = self._jobs.get(key)
            if leads := job is None:
                job = self._jobs[key] = _Job()
            job.waiting.append(cancelled)
        if leads:
            try:
                job.image = self._pull(reference, credentials, job.abandoned)
            except BaseException as error:
                job.error = error
                raise
            finally:
                with self._lock:
                    del self._jobs[key]
                job.done.set()
            return job.image
        while not job.done.wait(0.2):
            if cancelled():
                raise TimedOut(f"the pull of {reference} was cancelled")
        if job.error is not None:
            raise job.error
        assert job.image is not None
        return job.image

    def _pull(self, reference: Reference, credentials: Credentials, abandoned: Cancelled) -> Image:
        from harness.minirt.images.registry import Repository  # urllib3 weighs 5 MB: only who pulls pays

        with Repository(reference, credentials, self._hosts_dir) as repository:
            manifests = _resolve(repository, reference)
            top, manifest = manifests[0], manifests[-1]
            content = manifest.parse()
            layers = [_descriptor(row) for row in content.get("layers", [])]
            config_digest, config_size = _descriptor(content.get("config"))
            if not config_digest.startswith("sha256:"):
                raise InvalidArgument(f"{reference}: the image's identity {config_digest!r} is not a sha256 digest")
            with self._store.hold([config_digest, *(part.digest for part in manifests)]):
                config_raw = self._config(repository, config_digest, config_size)
                diff_ids = _diff_ids(config_raw)
                if len(diff_ids) != len(layers):
                    raise InvalidArgument(
                        f"{reference}: the manifest has {len(layers)} layers, the configuration {len(diff_ids)}"
                    )
                chain = chain_ids(diff_ids)
                with self._store.hold(chain):
                    self._layers(repository, list(zip(layers, diff_ids, chain, strict=True)), abandoned)
                    for part in manifests:
                        self._store.write_blob(part.raw)
                    self._store.write_blob(config_raw)
                    return self._store.add(
                        Image(
                            id=config_digest,
                            tags=(str(reference),) if reference.tag else (),
                            digests=(reference.with_digest(top.digest),),
                            size_bytes=config_size + sum(size for _, size in layers),
                            chain=chain,
                            blobs=tuple(dict.fromkeys((*(part.digest for part in manifests), config_digest))),
                        )
                    )

    def _config(self, repository: Repository, digest: str, size: int) -> bytes:
        try:
            return self._store.read_blob(digest)
        except NotFound:
            if size > _LARGEST_CONFIG_BYTES:
                raise InvalidArgument(f"configuration {digest} is said to have {size} bytes") from None
            with repository.open_blob(digest, size) as blob:
                return _read_all(blob)

    def _layers(
        self, repository: Repository, rows: list[tuple[tuple[str, int], str, str]], abandoned: Cancelled
    ) -> None:
        wanted = [row for row in rows if not self._snapshots.has(row[2])]
        if len(wanted) < 2:
            for row in wanted:
                self._layer(repository, row, abandoned)
            return
        failed = threading.Event()

        def fetch(row: tuple[tuple[str, int], str, str]) -> None:
            try:
                self._layer(repository, row, lambda: failed.is_set() or abandoned())
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(_PARALLEL_LAYERS, "layer") as pool:
            futures = [pool.submit(fetch, row) for row in wanted]
        errors = [error for future in futures if (error := future.exception())]
        # One failed; the others were then told to give up, which is not the reason to report.
        for error in sorted(errors, key=lambda error: isinstance(error, TimedOut)):
            raise error

    def _layer(self, repository: Repository, row: tuple[tuple[str, int], str, str], abandoned: Cancelled) -> None:
        from harness.minirt.images.layers import Inflater, unpack

        (digest, size), diff_id, chain_id = row
        with self._snapshots.stage() as staged, repository.open_blob(digest, size) as blob:
            plain = _Plain(Inflater(_Interruptible(blob, abandoned)), diff_id)
            unpack(plain, staged)
            while blob.read():  # behind the end of the compressed stream; reaching the end checks the digest
                pass
            plain.check()
            self._snapshots.commit(staged, chain_id)


class _Interruptible:
    """A blob whose reading ends with `TimedOut` once nobody waits for it."""

    def __init__(self, blob: Blob, abandoned: Cancelled) -> None:
        self._blob = blob
        self._abandoned = abandoned

    def read(self, size: int, /) -> bytes:
        if self._abandoned():
            raise TimedOut("the pull was cancelled")
        return self._blob.read(size)


class _Plain:
    """An uncompressed layer that is hashed while it is read."""

    def __init__(self, source: Any, diff_id: str) -> None:
        self._source = source
        self._diff_id = diff_id
        self._hash = hashlib.new(diff_id.partition(":")[0])

    def read(self, size: int, /) -> bytes:
        part: bytes = self._source.read(size)
        self._hash.update(part)
        return part

    def check(self) -> None:
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self._diff_id:
            raise InvalidArgument(f"the configuration promises layer {self._diff_id}, unpacked it is {found}")


def _resolve(repository: Repository, reference: Reference) -> list[Manifest]:
    """The manifest of the image for this machine, last; before it the indexes that led there."""
    chain = [repository.fetch_manifest(reference.target)]
    while "manifests" in (content := chain[-1].parse()):
        if len(chain) > _DEEPEST_INDEX:
            raise InvalidArgument(f"{reference}: indexes are nested more than {_DEEPEST_INDEX} deep")
        chain.append(repository.fetch_manifest(choose_platform(content["manifests"], str(reference))))
    if not isinstance(content.get("layers"), list):
        raise InvalidArgument(f"{reference}: {chain[-1].media_type or 'what came'} is not an image manifest")
    return chain


def choose_platform(rows: list[Mapping[str, Any]], name: str, machine: str = "") -> str:
    """The digest of the entry of an index that fits this machine (or `machine`, as uname tells it).

    Raises `NotFound` where none does, `InvalidArgument` for a malformed index.
    """
    machine = machine or os.uname().machine
    architecture = _ARCHITECTURES.get(machine, machine)
    offered = []
    try:
        for row in rows:
            platform = row.get("platform") or {}
            found = f"{platform.get('os', 'linux')}/{platform.get('architecture', architecture)}"
            if found == f"linux/{architecture}" and is_digest(row["digest"]):
                return str(row["digest"])
            offered.append(found)
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{name}: its index is malformed: {error!r}") from error
    raise NotFound(f"{name}: no image for linux/{architecture}, only for {', '.join(offered) or 'nothing'}")


def _descriptor(row: Any) -> tuple[str, int]:
    if isinstance(row, dict):
        digest, size = row.get("digest"), row.get("size")
        if isinstance(digest, str) and is_digest(digest) and isinstance(size, int) and size >= 0:
            return digest, size
    raise InvalidArgument(f"the manifest holds a malformed descriptor: {row!r:.200}")


def _diff_ids(raw: bytes) -> list[str]:
    import json

    try:
        found = json.loads(raw)["rootfs"]["diff_ids"]
        if isinstance(found, list) and all(isinstance(item, str) and is_digest(item) for item in found):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise InvalidArgument("the image's configuration has no list of its layers")


def _read_all(blob: Blob) -> bytes:
    parts = []
    while part := blob.read():
        parts.append(part)
    return b"".join(parts)
