"""Bring an image in: manifest, configuration, layers, record, in this order, so that a record is never ahead of its data."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.minirt.errors import InvalidArgument, MinirtError, NotFound, TimedOut
from harness.minirt.images.credentials import NOBODY, Credentials, config_file, find_credentials, same_host
from harness.minirt.images.hosts import default_endpoint, endpoints_of
from harness.minirt.images.manifest import (
    Content,
    Descriptor,
    candidates,
    diff_ids,
    is_index,
    parse_config,
    parse_manifest,
    parse_object,
)
from harness.minirt.images.patience import Patience
from harness.minirt.images.reference import Reference, parse_reference
from harness.minirt.images.snapshot import Snapshots, chain_ids
from harness.minirt.images.store import Image, ImageStore, Used

if TYPE_CHECKING:
    from harness.minirt.images.compression import Source
    from harness.minirt.images.download import Download
    from harness.minirt.images.registry import Manifest, Repository

_PARALLEL_LAYERS = 3
_DEEPEST_INDEX = 3
_MOST_MANIFESTS = 16
_PROGRESS_S = 10.0
_POLL_S = 0.1

_T = TypeVar("_T")
Cancelled = Callable[[], bool]
Note = Callable[..., None]
"""``(message, **facts)``: where progress is told"""


@dataclass(slots=True)
class _Job:
    """A pull that is under way in a thread of its own, and how many wait for it. `over`: nobody waits any more."""

    done: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    received: int = 0
    image: Image | None = None
    error: BaseException | None = None

    def check(self) -> None:
        """Raises `TimedOut` once nobody waits."""
        if self.over.is_set():
            raise TimedOut("the pull was cancelled")


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer to bring in. `below`: the chain id of the one below it, if any."""

    blob: Descriptor
    diff_id: str
    chain_id: str
    lower: tuple[str, ...]


class Puller:
    """Pulls images into a store. Whoever asks for the same image at the same time shares one pull, of the same layer one
    download.

    `registry_config` is the file of `harness.minirt.images.credentials`; `used` tells the layers that containers need.
    """

    def __init__(
        self,
        store: ImageStore,
        snapshots: Snapshots,
        hosts_dir: Path | None,
        registry_config: str = "",
        used: Used = frozenset,
        *,
        patience: Patience = Patience(),  # noqa: B008
        note: Note = lambda message, **facts: None,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._hosts_dir = hosts_dir
        self._registry_config = registry_config
        self._used = used
        self._patience = patience
        self._note = note
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, Credentials], _Job] = {}

    def pull(self, name: str, credentials: Credentials, cancelled: Cancelled) -> Image:
        """Pull `name`. `cancelled` is asked now and then; once it is true for all who wait, nothing is left behind.

        Raises `InvalidArgument`, `NotFound`, `Denied`, `Unavailable`, `Exhausted`, `TimedOut` (cancelled).
        """
        reference = parse_reference(name)
        key = (str(reference), credentials)
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job()
                # A daemon thread: a registry that has stalled must not keep the process from ending.
                threading.Thread(target=self._run, args=(job, key, reference), name="pull", daemon=True).start()
            job.waiting += 1
        try:
            while not job.done.wait(_POLL_S):
                if cancelled():
                    raise TimedOut(f"the pull of {reference} was cancelled")
        finally:
            with self._lock:
                job.waiting -= 1
                if not job.waiting:
                    job.over.set()
                    if self._jobs.get(key) is job:
                        del self._jobs[key]
        if job.error is not None:
            raise job.error
        assert job.image is not None
        return job.image

    def _run(self, job: _Job, key: tuple[str, Credentials], reference: Reference) -> None:
        began = time.monotonic()
        self._note("pulling", image=reference)
        try:
            job.image = self._pull(job, reference, key[1])
        except Exception as error:
            job.error = error
            self._note("not pulled", image=reference, error=error)
            with contextlib.suppress(OSError):
                self._store.collect(self._used)
        else:
            seconds = round(time.monotonic() - began, 3)
            self._note("pulled", image=reference, id=job.image.id, received_bytes=job.received, seconds=seconds)
        finally:
            with self._lock:
                if self._jobs.get(key) is job:
                    del self._jobs[key]
            job.done.set()

    def _pull(self, job: _Job, reference: Reference, credentials: Credentials) -> Image:
        from harness.minirt.images.registry import Repository  # urllib3 weighs 5 MB: only who pulls pays

        def credentials_for(host: str) -> Credentials:
            if credentials:
                theirs = credentials.server or reference.domain
                mine = same_host(host, theirs) or (
                    same_host(theirs, reference.domain) and host == default_endpoint(reference.domain).host
                )
                return credentials if mine else NOBODY
            return find_credentials(config_file(self._registry_config), host, reference.path)

        endpoints = endpoints_of(reference.domain, self._hosts_dir)
        patience = replace(self._patience, sleep=self._sleeper(job))
        with Repository(reference, endpoints, credentials_for, patience) as repository:
            manifests, content = _resolve(repository, reference)
            identity = content.config.digest
            with self._store.hold([identity, *(part.digest for part in manifests)]):
                config_raw = self._config(repository, content.config, str(reference))
                wanted = diff_ids(parse_config(config_raw, str(reference)))
                if len(wanted) != len(content.layers):
                    raise InvalidArgument(
                        f"{reference}: the manifest has {len(content.layers)} layers, the configuration {len(wanted)}"
                    )
                chain = chain_ids(wanted)
                with self._store.hold(chain):
                    rows = zip(content.layers, wanted, chain, strict=True)
                    layers = [
                        _Layer(blob, diff_id, chain_id, chain[:index])
                        for index, (blob, diff_id, chain_id) in enumerate(rows)
                    ]
                    self._bring(job, repository, reference, layers)
                    job.check()
                    return self._store.add(
                        Image(
                            id=identity,
                            tags=(str(reference),) if reference.tag else (),
                            digests=(reference.with_digest(manifests[0].digest),),
                            size_bytes=content.config.size + sum(layer.size for layer in content.layers),
                            chain=chain,
                            blobs=tuple(dict.fromkeys((*(part.digest for part in manifests), identity))),
                        ),
                        [*(part.raw for part in manifests), config_raw],
                    )

    @staticmethod
    def _sleeper(job: _Job) -> Callable[[float], None]:
        def sleep(seconds: float) -> None:
            job.over.wait(seconds)
            job.check()

        return sleep

    def _config(self, repository: Repository, descriptor: Descriptor, what: str) -> bytes:
        from harness.minirt.images.download import Download

        try:
            return self._store.read_blob(descriptor.digest)
        except NotFound:
            with Download(repository, descriptor) as blob:
                return b"".join(iter(blob.read, b""))

    def _bring(self, job: _Job, repository: Repository, reference: Reference, layers: Sequence[_Layer]) -> None:
        """Have all `layers`; those that are missing are brought in side by side. Raises what failed first."""
        missing = deque(layer for layer in layers if not self._snapshots.has(layer.chain_id))
        if not missing:
            return
        self._snapshots.room().check(sum(layer.blob.size for layer in missing))
        total = sum(layer.blob.size for layer in missing)
        failed = threading.Event()
        errors: list[BaseException] = []

        def check() -> None:
            job.check()
            if failed.is_set():
                raise TimedOut("another layer failed")

        def work() -> None:
            with contextlib.suppress(IndexError):
                while not failed.is_set():
                    layer = missing.popleft()
                    try:
                        self._layer(job, repository, layer, check)
                    except BaseException as error:
                        errors.append(error)
                        failed.set()

        # Lowest first, so that whoever waits for a lower layer waits for somebody who works on it.
        count = min(_PARALLEL_LAYERS, len(missing))
        threads = [threading.Thread(target=work, name="layer", daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PROGRESS_S)
            while thread.is_alive():
                self._note("still pulling", image=reference, received_bytes=job.received, of_bytes=total)
                thread.join(_PROGRESS_S)
        # One failed; the others were then told to give up, which is not the reason to report.
        for error in sorted(errors, key=lambda error: isinstance(error, TimedOut)):
            raise error

    def _layer(self, job: _Job, repository: Repository, layer: _Layer, check: Callable[[], None]) -> None:
        from harness.minirt.images.layers import Entangled, adopt, apply, unpack

        room = self._snapshots.room().take

        def fetch(use: Callable[[Source], _T]) -> _T:
            return self._fetch(job, repository, layer, check, use)

        with self._snapshots.claim(layer.chain_id, check):
            if self._snapshots.has(layer.chain_id):
                return  # another pull has brought it
            if layer.lower:
                try:
                    with self._snapshots.stage() as staged:
                        made = fetch(lambda plain: unpack(plain, staged, room))
                        if made.assumed or made.whiteouts:
                            self._snapshots.wait_for(layer.lower, check)
                            with self._snapshots.view(layer.lower) as below:
                                adopt(staged, made, below)
                        self._snapshots.commit(staged, layer.chain_id)
                        return
                except Entangled as error:
                    self._note("unpacking again, on the layers below", layer=layer.blob.digest, reason=error)
                self._snapshots.wait_for(layer.lower, check)
            with self._snapshots.stage() as staged:
                with self._snapshots.view(layer.lower, staged) as root:
                    fetch(lambda plain: apply(plain, root, room))
                self._snapshots.commit(staged, layer.chain_id)

    @staticmethod
    def _fetch(
        job: _Job,
        repository: Repository,
        layer: _Layer,
        check: Callable[[], None],
        use: Callable[[Source], _T],
    ) -> _T:
        """What `use` makes of the layer's plain archive, which has then been what the configuration promises."""
        from harness.minirt.images.compression import Inflater
        from harness.minirt.images.download import Download

        with Download(repository, layer.blob) as blob:
            plain = _Plain(Inflater(_Watched(blob, job, check)), layer.diff_id)
            try:
                made = use(plain)
                while blob.read():  # behind the end of the compressed stream; reaching the end checks the digest
                    pass
                plain.check()
            except MinirtError as error:
                raise type(error)(f"layer {layer.blob.digest}: {error}") from error
            return made


class _Watched:
    """A blob whose reading is counted, and ends once nobody waits for it."""

    def __init__(self, blob: Download, job: _Job, check: Callable[[], None]) -> None:
        self._blob = blob
        self._job = job
        self._check = check

    def read(self, size: int, /) -> bytes:
        self._check()
        part = self._blob.read(size)
        self._job.received += len(part)
        return part


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
            raise InvalidArgument(f"the configuration promises {self._diff_id}, unpacked it is {found}")


def _resolve(repository: Repository, reference: Reference) -> tuple[list[Manifest], Content]:
    """The indexes that lead to the image for this machine, and its manifest, last; and what that manifest says."""
    fetched: set[str] = set()

    def walk(target: str, depth: int) -> Iterator[tuple[list[Manifest], Content]]:
        """Every image that fits, the best first."""
        if target in fetched:
            return
        if depth > _DEEPEST_INDEX or len(fetched) >= _MOST_MANIFESTS:
            raise InvalidArgument(f"{reference}: its indexes are nested too deep, or are too many")
        fetched.add(target)
        manifest = repository.fetch_manifest(target)
        content = parse_object(manifest.raw, f"{reference}: manifest {manifest.digest}")
        if not is_index(content, manifest.media_type):
            yield [manifest], parse_manifest(content, str(reference), manifest.media_type)
            return
        missing: NotFound | None = None
        for descriptor in candidates(content, str(reference)):
            try:
                for chain, found in walk(descriptor.digest, depth + 1):
                    yield [manifest, *chain], found
            except NotFound as error:  # an index inside the index that has nothing for us
                missing = missing or error
        if missing is not None:
            raise missing

    for found in walk(reference.target, 0):
        return found
    raise NotFound(f"{reference}: its index leads to no image")
