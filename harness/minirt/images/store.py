"""What images there are: their records, manifests and configurations.

::

    <root>/images/index.json            every record, replaced as a whole by rename
    <root>/images/blobs/sha256/<hex>    manifests, indexes and configurations; layers live on unpacked (`snapshot`)

An image's identity is the digest of its configuration, as in every CRI runtime; several names can point to one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.minirt.errors import InvalidArgument, NotFound
from harness.minirt.images.manifest import parse_config
from harness.minirt.images.reference import is_image_id, parse_reference
from harness.minirt.images.snapshot import Snapshots

_SHORTEST_PREFIX = 3

Used = Callable[[], AbstractSet[str]]
"""the layers (chain ids) that containers are stacked on"""


@dataclass(frozen=True, slots=True)
class Image:
    """One image. `size_bytes` is what had to be transferred for it: configuration and layers as the registry has them."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    chain: tuple[str, ...]
    blobs: tuple[str, ...]
    """digests of its manifest, of the index that led there, and of its configuration"""
    pinned: bool = False


def _parse_image(row: Mapping[str, Any]) -> Image:
    return Image(**{**row, **{key: tuple(row[key]) for key in ("tags", "digests", "chain", "blobs")}})


def write_atomically(path: Path, raw: bytes) -> None:
    """Replace `path` by rename: whoever reads sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(raw)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class ImageStore:
    """The records below `root`/images. Safe for threads. `pinned`: names of images that are to be kept."""

    def __init__(self, root: Path, snapshots: Snapshots, pinned: Iterable[str] = ()) -> None:
        self._folder = root / "images"
        self._blobs = self._folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._snapshots = snapshots
        self._pinned = {str(parse_reference(name)) for name in pinned if name}
        self._lock = threading.RLock()
        self._held: Counter[str] = Counter()
        self._configs: dict[str, dict[str, Any]] = {}
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self.damage = self._load()

    def _load(self) -> str:
        """Read the index; what is wrong, in words, where it or what it speaks of cannot be read.

        An unreadable index is kept aside. Damaged images are forgotten: the next pull brings them again.
        """
        path = self._folder / "index.json"
        for half in self._folder.glob(".index.json.*"):
            half.unlink(missing_ok=True)
        try:
            images = [_parse_image(row) for row in json.loads(path.read_bytes())["images"]]
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            os.rename(path, path.with_name("index.json.damaged"))
            return f"{path} could not be read and was put aside: {error}"
        damaged = []
        for image in images:
            if problem := self._problem(image):
                damaged.append(f"image {' '.join(image.tags or image.digests) or image.id} is forgotten: {problem}")
            else:
                self._put(image)
        return "; ".join(damaged)

    def _problem(self, image: Image) -> str:
        """What is wrong with an image's data; nothing where all is there."""
        for chain_id in image.chain:
            if not self._snapshots.has(chain_id):
                return f"its layer {chain_id} is gone or damaged: pull it again"
        try:
            for digest in image.blobs:
                self.read_blob(digest)
        except NotFound as error:
            return f"{error}: pull it again"
        return ""

    def _put(self, image: Image) -> None:
        self._images[image.id] = replace(image, pinned=not self._pinned.isdisjoint((*image.tags, *image.digests)))
        for name in (*image.tags, *image.digests):
            self._names[name] = image.id

    def _save(self) -> None:
        rows = [asdict(image) for image in self._images.values()]
        write_atomically(self._folder / "index.json", json.dumps({"images": rows}).encode())

    def list(self) -> list[Image]:
        """Every image."""
        with self._lock:
            return list(self._images.values())

    def find(self, text: str) -> Image | None:
        """The image called `text`: a name, a digest, an identity or the start of one. None where there is none, or can be none."""
        with self._lock:
            if is_image_id(text):
                return self._images.get(text if ":" in text else f"sha256:{text}")
            with contextlib.suppress(InvalidArgument):
                if identity := self._names.get(str(parse_reference(text))):
                    return self._images[identity]
            if len(text) >= _SHORTEST_PREFIX and not set(text.removeprefix("sha256:")) - set("0123456789abcdef"):
                wanted = "sha256:" + text.removeprefix("sha256:")
                found = [image for identity, image in self._images.items() if identity.startswith(wanted)]
                if len(found) == 1:
                    return found[0]
        return None

    def get(self, text: str) -> Image:
        """As `find`, but raises `NotFound`, also where layers have gone missing: such an image is forgotten."""
        with self._lock:
            image = self.find(text)
            if image is None:
                raise NotFound(f"image {text!r} is not here")
            for chain_id in image.chain:
                if not self._snapshots.has(chain_id):
                    self._forget_damaged(image)
                    raise NotFound(f"image {text!r}: its layer {chain_id} is gone or damaged: pull it again")
            return image

    def config(self, image: Image) -> Mapping[str, Any]:
        """The image's configuration (OCI image-spec, config.md).

        Raises `NotFound` where its blob is gone or damaged: the image is then forgotten.
        """
        config = self._configs.get(image.id)
        if config is None:
            try:
                config = parse_config(self.read_blob(image.id), image.id)
            except (NotFound, InvalidArgument) as error:
                self._forget_damaged(image)
                raise NotFound(f"image {image.id}: {error}: pull it again") from error
            self._configs[image.id] = config
        return config

    def add(self, image: Image, blobs: Iterable[bytes] = ()) -> Image:
        """Record `image`, of which `blobs` are manifests and configuration; its names move here from any other image that
        had them. The record as it now is.
        """
        with self._lock:
            for raw in blobs:
                self.write_blob(raw)
            self._configs.pop(image.id, None)
            old = self._images.get(image.id)
            if old is not None:
                image = replace(
                    image,
                    tags=tuple(dict.fromkeys((*old.tags, *image.tags))),
                    digests=tuple(dict.fromkeys((*old.digests, *image.digests))),
                    blobs=tuple(dict.fromkeys((*old.blobs, *image.blobs))),
                )
            before = self._images.copy(), self._names.copy()
            for name in (*image.tags, *image.digests):
                other = self._images.get(self._names.get(name, ""))
                if other is not None and other.id != image.id:
                    self._put(
                        replace(
                            other,
                            tags=tuple(tag for tag in other.tags if tag != name),
                            digests=tuple(digest for digest in other.digests if digest != name),
                        )
                    )
            self._put(image)
            try:
                self._save()
            except OSError:
                self._images, self._names = before
                raise
            return self._images[image.id]

    def remove(self, text: str, used: Used = frozenset) -> None:
        """Forget the image with all its names; nothing happens where it is gone. Its layers go too, unless in `used`."""
        with self._lock:
            image = self.find(text)
            if image is None:
                return
            self._forget(image)
            try:
                self._save()
                saved = True
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    self._put(image)
                    raise
                saved = False  # a full disk must not keep anybody from making room
        self.collect(used)
        if not saved:
            with self._lock:
                self._save()

    def _forget(self, image: Image) -> None:
        del self._images[image.id]
        self._configs.pop(image.id, None)
        for name in (*image.tags, *image.digests):
            if self._names.get(name) == image.id:
                del self._names[name]

    def _forget_damaged(self, image: Image) -> None:
        with self._lock, contextlib.suppress(OSError):  # what is not saved is found damaged once more
            if image.id in self._images:
                self._forget(self._images[image.id])
                self._save()

    def collect(self, used: Used = frozenset) -> None:
        """Remove layers and blobs that no image, no holder and nobody in `used` (which tells chain ids) needs."""
        with self._lock:
            # Asked in here: a container that is just being made is either a holder, or told of.
            keep = {chain_id for image in self._images.values() for chain_id in image.chain}
            held = [name for name, count in self._held.items() if count]
            doomed = self._snapshots.detach(keep.union(used(), held))
            blobs = {digest for image in self._images.values() for digest in image.blobs}
            for path in self._blobs.iterdir():
                if f"sha256:{path.name}" not in blobs.union(held):
                    path.unlink(missing_ok=True)
        self._snapshots.destroy(doomed)

    @contextlib.contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """Keep layers (chain ids) and blobs (digests) from `collect` for as long as the context lasts."""
        kept = list(names)
        with self._lock:
            self._held.update(kept)
        try:
            yield
        finally:
            with self._lock:
                self._held.subtract(kept)
                self._held += Counter()

    def write_blob(self, raw: bytes) -> str:
        """Keep `raw` under its digest, which is returned. What is damaged is mended."""
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        try:
            self.read_blob(digest)
        except NotFound:
            write_atomically(self._blobs / digest.partition(":")[2], raw)
        return digest

    def read_blob(self, digest: str) -> bytes:
        """What is kept under `digest`. Raises `NotFound` where it is gone, or no longer what it was."""
        try:
            raw = (self._blobs / digest.partition(":")[2]).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not here") from None
        if "sha256:" + hashlib.sha256(raw).hexdigest() != digest:
            raise NotFound(f"blob {digest} is damaged")
        return raw
