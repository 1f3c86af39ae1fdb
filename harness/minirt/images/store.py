"""What images there are: their records, manifests and configurations.

::

    <root>/images/index.json            every record, replaced as a whole by rename
    <root>/images/blobs/sha256/<hex>    manifests, indexes and configurations; layers live on unpacked (`snapshot`)

An image's identity is the digest of its configuration, as in every CRI runtime; several names can point to one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.minirt.errors import InvalidArgument, NotFound
from harness.minirt.images.reference import is_image_id, parse_reference
from harness.minirt.images.snapshot import Snapshots

_SHORTEST_PREFIX = 3


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
    """The records below `root`/images. Safe for threads."""

    def __init__(self, root: Path, snapshots: Snapshots) -> None:
        self._folder = root / "images"
        self._blobs = self._folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._snapshots = snapshots
        self._lock = threading.RLock()
        self._held: Counter[str] = Counter()
        self._configs: dict[str, dict[str, Any]] = {}
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self.damage = self._load()

    def _load(self) -> str:
        """Read the index; what is wrong with it, in words, where it cannot be read (it is kept aside then)."""
        path = self._folder / "index.json"
        try:
            rows = json.loads(path.read_bytes())["images"]
            images = [
                Image(**{**row, **{k: tuple(row[k]) for k in ("tags", "digests", "chain", "blobs")}}) for row in rows
            ]
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, TypeError) as error:
            os.rename(path, path.with_name("index.json.damaged"))
            return f"{path} could not be read and was put aside: {error}"
        for image in images:
            if all(self._snapshots.has(chain_id) for chain_id in image.chain):
                self._put(image)
        return ""

    def _put(self, image: Image) -> None:
        self._images[image.id] = image
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
        """The image called `text`: a name, a digest, an identity or the start of one. None where there is none.

        Raises `InvalidArgument` for what cannot be a name.
        """
        with self._lock:
            if is_image_id(text):
                return self._images.get(text if ":" in text else f"sha256:{text}")
            with contextlib.suppress(InvalidArgument):
                if identity := self._names.get(str(parse_reference(text))):
                    return self._images[identity]
            if len(text) >= _SHORTEST_PREFIX and not set(text.removeprefix("sha256:")) - set("0123456789abcdef"):
                wanted = "sha256:" + text.removeprefix("sha256:")
                found = [image for identity, image in self._images.items() if identity.startswith(wanted)]
                return found[0] if len(found) == 1 else None
        parse_reference(text)
        return None

    def get(self, text: str) -> Image:
        """As `find`, but raises `NotFound`."""
        image = self.find(text)
        if image is None:
            raise NotFound(f"image {text!r} is not here")
        return image

    def config(self, image: Image) -> Mapping[str, Any]:
        """The image's configuration (OCI image-spec, config.md). Raises `NotFound` where its blob is gone or damaged."""
        config = self._configs.get(image.id)
        if config is None:
            raw = self.read_blob(image.id)
            try:
                config = json.loads(raw)
            except ValueError as error:
                raise NotFound(f"the configuration of image {image.id} is damaged: {error}") from error
            self._configs[image.id] = config
        return config

    def add(self, image: Image) -> Image:
        """Record `image`; its names move here from any other image that had them. The record as it now is."""
        with self._lock:
            old = self._images.get(image.id)
            if old is not None:
                image = replace(
                    image,
                    tags=tuple(dict.fromkeys((*old.tags, *image.tags))),
                    digests=tuple(dict.fromkeys((*old.digests, *image.digests))),
                    blobs=tuple(dict.fromkeys((*old.blobs, *image.blobs))),
                    pinned=old.pinned or image.pinned,
                )
            for name in (*image.tags, *image.digests):
                other = self._images.get(self._names.get(name, ""))
                if other is not None and other.id != image.id:
                    self._images[other.id] = replace(
                        other,
                        tags=tuple(tag for tag in other.tags if tag != name),
                        digests=tuple(digest for digest in other.digests if digest != name),
                    )
            self._put(image)
            self._save()
            return image

    def remove(self, text: str, used: Iterable[str] = ()) -> None:
        """Forget the image with all its names; nothing happens where it is gone. Its layers go too, unless in `used`."""
        with self._lock:
            image = self.find(text)
            if image is None:
                return
            del self._images[image.id]
            self._configs.pop(image.id, None)
            for name in (*image.tags, *image.digests):
                if self._names.get(name) == image.id:
                    del self._names[name]
            self._save()
            self.collect(used)

    def collect(self, used: Iterable[str] = ()) -> None:
        """Remove layers and blobs that no image, no holder and nobody in `used` (chain ids) needs."""
        with self._lock:
            keep = {chain_id for image in self._images.values() for chain_id in image.chain}
            self._snapshots.collect(keep.union(used, (name for name, count in self._held.items() if count)))
            blobs = {digest for image in self._images.values() for digest in image.blobs}
            blobs.update(name for name, count in self._held.items() if count)
            for path in self._blobs.iterdir():
                if f"sha256:{path.name}" not in blobs:
                    path.unlink(missing_ok=True)

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
        """Keep `raw` under its digest, which is returned."""
        digest = hashlib.sha256(raw).hexdigest()
        path = self._blobs / digest
        if not path.exists():
            write_atomically(path, raw)
        return f"sha256:{digest}"

    def read_blob(self, digest: str) -> bytes:
        """What is kept under `digest`. Raises `NotFound` where it is gone, or no longer what it was."""
        try:
            raw = (self._blobs / digest.partition(":")[2]).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not here") from None
        if "sha256:" + hashlib.sha256(raw).hexdigest() != digest:
            raise NotFound(f"blob {digest} is damaged")
        return raw
