"""Layers: tar archives whose bytes depend on nothing but what is in them."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_ZSTD_BLOCK_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer: a folder, a file (`data`), a hard link (`link`) or a symbolic link (`symlink`)."""

    path: str
    mode: int = 0o755
    data: bytes | None = None
    link: str = ""
    symlink: str = ""


@dataclass(frozen=True, slots=True)
class Blob:
    """Content and its media type."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return f"sha256:{sha256(self.data).hexdigest()}"

    def descriptor(self) -> dict[str, object]:
        """image-spec, "OCI Content Descriptors"."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


@dataclass(frozen=True, slots=True)
class Layer:
    """A compressed layer, and the digest of the archive inside (image-spec: DiffID)."""

    blob: Blob
    diff_id: str


def build_layer(entries: Iterable[Entry], packing: str = "gzip") -> Layer:
    """Pack `entries` in the order given: root's, from 1970, in the ustar format; `packing`: gzip, zstd or plain.

    Nothing is compressed: what a compressor makes of the same bytes changes from one version to the next.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.mode = entry.mode
            content = None
            if entry.data is not None:
                info.size, content = len(entry.data), io.BytesIO(entry.data)
            elif entry.link:
                info.type, info.linkname = tarfile.LNKTYPE, entry.link
            elif entry.symlink:
                info.type, info.linkname = tarfile.SYMTYPE, entry.symlink
            else:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, content)
    plain = archive.getvalue()
    kind = LAYER_TYPE if packing == "gzip" else LAYER_TYPE.replace("+gzip", "+zstd" if packing == "zstd" else "")
    packed = _gzip(plain) if packing == "gzip" else _zstd(plain) if packing == "zstd" else plain
    return Layer(Blob(packed, kind), f"sha256:{sha256(plain).hexdigest()}")


def _gzip(plain: bytes) -> bytes:
    packed = gzip.compress(plain, compresslevel=0, mtime=0)
    # RFC 1952: the byte OS tells the machine that wrote it; 255 is "unknown".
    return packed[:9] + b"\xff" + packed[10:]


def _zstd(plain: bytes) -> bytes:
    """A frame of raw blocks (RFC 8878, 3.1.1): a window of 128 KB, no checksum, no size."""
    size = _ZSTD_BLOCK_BYTES
    pieces = [plain[at : at + size] for at in range(0, len(plain), size)] or [b""]
    last = len(pieces) - 1
    blocks = ((len(piece) << 3 | (at == last)).to_bytes(3, "little") + piece for at, piece in enumerate(pieces))
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks)
