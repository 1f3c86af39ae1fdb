"""A heavy test image: many files of mixed content in a few layers, for measuring pulls. Built only when somebody asks."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import IO

from harness.image.build import CONFIG_TYPE, MANIFEST_TYPE, busybox_path, program_architecture
from harness.image.layer import LAYER_TYPE, Blob

HEAVY = "seatrial/heavy:1"
HEAVY_BYTES = 200_000_000
"""of compressed layers, as a client lists an image's size"""
_GROWTH = 1.476
"""what a compressed byte of this mix unpacks to, with zlib at level 1"""
_MEDIAN_BYTES, _SPREAD, _LARGEST_BYTES = 8192, 1.6, 16 << 20
"""files are as in distributions: most are small, most bytes are in large ones (log-normal)"""
_TEXT_SHARE = 0.65
_TEXT_BYTES = 4 << 20
_FILES_A_FOLDER = 64


def heavy_image(
    folder: Path, name: str = HEAVY, *, size_bytes: int = HEAVY_BYTES, layers: int = 5, seed: int = 1
) -> str:
    """Add an image of about `size_bytes` (compressed) in `layers` layers to `folder`; the digest of its manifest.

    `folder` is as `harness.image.build.write_images` leaves it, or new; nothing is done where it has `name` already, so a
    folder that is kept is a cache. What is in the layers follows from the arguments alone, on every machine; the
    compressed bytes, and so their digests, follow from the machine's zlib too. Takes about 10 s for 200 MB. A registry
    that serves the folder already does not notice: build first.
    """
    index = folder / "manifests.json"
    names = json.loads(index.read_text()) if index.exists() else {}
    if name in names:
        return str(names[name]["digest"])
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    share = int(size_bytes * _GROWTH / layers)
    with ThreadPoolExecutor(2) as pool:  # zlib and hashes leave the other core free
        made = list(pool.map(lambda number: _write_layer(blobs, number, share, f"{seed}/{number}"), range(layers)))
    config = _write_json(
        blobs,
        {
            "architecture": program_architecture(busybox_path().read_bytes()),
            "os": "linux",
            "config": {"Cmd": ["/none"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in made]},
        },
        CONFIG_TYPE,
    )
    manifest = _write_json(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(),
            "layers": [descriptor for descriptor, _ in made],
        },
        MANIFEST_TYPE,
    )
    index.write_text(json.dumps({**names, name: {"digest": manifest.digest, "type": MANIFEST_TYPE}}))
    return manifest.digest


def _write_layer(blobs: Path, number: int, content_bytes: int, seed: str) -> tuple[dict[str, object], str]:
    """Write a layer of `content_bytes` of files; its descriptor and DiffID."""
    rough = blobs / f"heavy-{number}"
    with rough.open("wb") as file:
        packed = _Hashed(file)
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=packed, mtime=0) as compressed:
            plain = _Hashed(compressed)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=1 << 20) as tar:  # type: ignore[call-overload]
                for path, data in _files(number, content_bytes, random.Random(seed)):
                    info = tarfile.TarInfo(path)
                    if data is None:
                        info.mode, info.type = 0o755, tarfile.DIRTYPE
                        tar.addfile(info)
                    else:
                        info.mode, info.size = 0o644, len(data)
                        tar.addfile(info, io.BytesIO(data))
    rough.rename(blobs / packed.hash.hexdigest())
    descriptor = {"mediaType": LAYER_TYPE, "digest": f"sha256:{packed.hash.hexdigest()}", "size": packed.size}
    return descriptor, f"sha256:{plain.hash.hexdigest()}"


def _files(number: int, content_bytes: int, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Paths, and contents that add up to `content_bytes`; a folder has none."""
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(4096)]
    text = " ".join(rng.choices(words, k=_TEXT_BYTES // 7)).encode()
    yield "heavy", None
    yield f"heavy/{number}", None
    count = 0
    while content_bytes > 0:
        size = min(int(rng.lognormvariate(0, _SPREAD) * _MEDIAN_BYTES) + 1, _LARGEST_BYTES, content_bytes)
        at = rng.randrange(len(text) // 2)
        data = (
            (text[at:] * (size // (len(text) - at) + 1))[:size] if rng.random() < _TEXT_SHARE else rng.randbytes(size)
        )
        folder = f"heavy/{number}/{count // _FILES_A_FOLDER}"
        if count % _FILES_A_FOLDER == 0:
            yield folder, None
        yield f"{folder}/{count % _FILES_A_FOLDER}", data
        content_bytes -= size
        count += 1


class _Hashed:
    """Bytes on their way into `sink`, counted and hashed."""

    def __init__(self, sink: IO[bytes] | gzip.GzipFile) -> None:
        self._sink = sink
        self.hash = sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()


def _write_json(blobs: Path, value: object, media_type: str) -> Blob:
    blob = Blob(json.dumps(value, sort_keys=True, separators=(",", ":")).encode(), media_type)
    (blobs / blob.digest.removeprefix("sha256:")).write_bytes(blob.data)
    return blob
