"""Streams as compressors write them, and as somebody does who wants a disk or a memory to overflow."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.minirt.errors import InvalidArgument
from harness.minirt.images import compression
from harness.minirt.images.compression import Inflater

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compress = Callable[[bytes], bytes]
BOTH = pytest.mark.parametrize(
    "compress",
    [gzip.compress, lambda raw: zstd.compress(raw, options={zstd.CompressionParameter.checksum_flag: 1})],
    ids=["gzip", "zstd"],
)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"


class Trickle:
    """A source that gives its bytes in small pieces."""

    def __init__(self, raw: bytes, piece: int) -> None:
        self._stream, self._piece = io.BytesIO(raw), piece

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._piece))


def inflate(raw: bytes, piece: int = 1 << 20, size: int = 30_000) -> bytes:
    stream = Inflater(Trickle(raw, piece))
    found = b""
    while part := stream.read(size):
        assert len(part) <= size
        found += part
    assert stream.read(size) == b""
    return found


@BOTH
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_one_stream_and_several(compress: Compress, piece: int) -> None:
    plain = os.urandom(5000) + b"\0" * 200_000
    assert inflate(compress(plain), piece) == plain
    two = compress(plain[:100_000]) + compress(plain[100_000:])
    assert inflate(two, piece) == plain
    assert inflate(two + b"\0" * 64, piece) == plain
    assert inflate(compress(b"") + compress(plain) + compress(b""), piece) == plain


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_what_is_not_compressed_comes_as_it_is(piece: int) -> None:
    for plain in (b"", b"\1", b"\1" + os.urandom(70_000), b"\x1f", b"\x28\xb5"):
        assert inflate(plain, piece) == plain


@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_skippable_frames(piece: int) -> None:
    plain = b"x" * 1000
    for raw in (SKIPPABLE + zstd.compress(plain), zstd.compress(plain) + SKIPPABLE):
        assert inflate(raw, piece) == plain


@BOTH
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-20],
        lambda raw: raw[:300] + b"damage" + raw[306:],
        lambda raw: raw + b"junk",
        lambda raw: raw + raw[:5],
        lambda raw: raw[:5],
    ],
    ids=["cut", "changed", "junk behind", "half a second one", "hardly begun"],
)
def test_a_damaged_stream_is_refused(compress: Compress, damage: Compress) -> None:
    with pytest.raises(InvalidArgument, match=r"gzip|zstd"):
        inflate(damage(compress(os.urandom(2000))))


@BOTH
def test_a_bomb_fills_neither_memory_nor_disk(compress: Compress, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = compress(b"\0" * (64 << 20))
    stream = Inflater(io.BytesIO(bomb))
    assert len(stream.read(1000)) <= 1000
    # Small ones are none of ours; beyond the limit the ratio counts.
    monkeypatch.setattr(compression, "LARGEST_UNCHECKED_BYTES", 8 << 20)
    read = 0
    with pytest.raises(InvalidArgument, match="bomb"):
        while part := stream.read(1 << 20):
            read += len(part)
    assert 7 << 20 <= read < 32 << 20
    noise = compress(os.urandom(1 << 20)) * 12
    assert len(inflate(noise, size=1 << 20)) == 12 << 20


@BOTH
@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=8))
def test_damage_is_an_error_or_harmless(compress: Compress, plain: bytes, at: int, noise: bytes) -> None:
    raw = bytearray(compress(plain))
    raw[at : at + len(noise)] = noise
    try:
        found = inflate(bytes(raw), 16)
    except InvalidArgument:
        return
    assert len(found) <= 1 << 20
