"""Layers are unpacked as overlayfs wants them, and nothing that they hold is written outside of their folder."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minirt_registry import entry, tar_of

from harness.minirt.errors import InvalidArgument
from harness.minirt.images.compression import Inflater
from harness.minirt.images.layers import OPAQUE, unpack

DIR, SYM, LNK, CHR, FIFO = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE


def apply(raw: bytes, folder: Path) -> int:
    folder.mkdir()
    return unpack(io.BytesIO(raw), folder).written_bytes


def test_what_an_ordinary_layer_holds(tmp_path: Path) -> None:
    program = tarfile.TarInfo("usr/bin/tool")
    program.mode, program.uid, program.gid, program.mtime = 0o4755, 3, 4, 1_000_000
    xattr = tarfile.TarInfo("data")
    xattr.pax_headers = {"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    raw = tar_of(
        entry("usr", DIR, mode=0o700, mtime=5),
        ("usr/bin/", b""),
        (program, b"#!"),
        entry("usr/bin/other", LNK, linkname="usr/bin/tool"),
        entry("usr/bin/short", SYM, linkname="/usr/bin/tool"),
        entry("pipe", FIFO, mode=0o640),
        entry("null", CHR, devmajor=1, devminor=3, mode=0o666),
        (xattr, b"12345"),
        ("deep/er/file", b"x"),
    )
    assert apply(raw, tmp_path / "fs") == 2 + 5 + 1
    root = tmp_path / "fs"
    tool = (root / "usr/bin/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_uid, tool.st_gid, tool.st_mtime) == (0o4755, 3, 4, 1_000_000)
    assert (root / "usr/bin/other").stat().st_ino == tool.st_ino
    assert (root / "usr/bin/short").readlink() == Path("/usr/bin/tool")
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert os.getxattr(root / "data", "user.colour") == b"blue"
    assert os.listxattr(root / "data") == ["user.colour"]
    assert stat.S_IMODE((root / "usr").stat().st_mode) == 0o700
    assert (root / "usr").stat().st_mtime == 5
    assert (root / "deep/er/file").read_bytes() == b"x"


def test_whiteouts(tmp_path: Path) -> None:
    raw = tar_of(
        ("a/", b""),
        ("a/.wh.gone", b""),
        ("b/.wh..wh..opq", b""),
        ("b/new", b"1"),
        ("kept/", b""),
        ("kept/file", b"1"),
        (".wh.kept", b""),
        (".wh.again", b""),
        ("again/", b""),
    )
    apply(raw, tmp_path / "fs")
    root = tmp_path / "fs"
    gone = (root / "a/gone").stat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(root / "b", OPAQUE) == b"y"
    assert (root / "b/new").read_bytes() == b"1"
    assert (root / "kept/file").read_bytes() == b"1"
    assert os.getxattr(root / "kept", OPAQUE) == b"y"
    assert os.getxattr(root / "again", OPAQUE) == b"y"


def test_the_later_entry_wins(tmp_path: Path) -> None:
    raw = tar_of(
        ("a", b"file"), ("b/", b""), ("b/c", b"1"), ("b", b"now a file"), ("d/", b""), ("d/e", b"1"), ("d/", b"")
    )
    apply(raw, tmp_path / "fs")
    assert (tmp_path / "fs/b").read_bytes() == b"now a file"
    assert (tmp_path / "fs/d/e").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/../escaped", "a/b/../../../escaped"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="outside its root"):
        apply(tar_of((name, b"x")), tmp_path / "fs")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["fs"]


def test_an_absolute_name_is_below_the_root(tmp_path: Path) -> None:
    apply(tar_of(("/minirt-escaped", b"x")), tmp_path / "fs")
    assert (tmp_path / "fs/minirt-escaped").exists()
    assert not Path("/minirt-escaped").exists()


@pytest.mark.parametrize("target", ["..", "../..", "{outside}", "/"])
def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    raw = tar_of(entry("way", SYM, linkname=target.format(outside=outside)), ("way/escaped", b"x"))
    try:
        apply(raw, tmp_path / "fs")
    except InvalidArgument:
        pass
    else:
        assert (tmp_path / "fs/escaped").exists()
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/escaped").exists()
    assert not list(outside.iterdir())


def test_a_file_does_not_replace_what_a_link_points_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    apply(tar_of(entry("way", SYM, linkname=str(victim)), ("way", b"x")), tmp_path / "fs")
    assert victim.read_text() == "whole"
    assert (tmp_path / "fs/way").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["../victim", "/etc/passwd", "way/victim", "not there"])
def test_a_hard_link_to_outside_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "victim").write_text("whole")
    raw = tar_of(entry("way", SYM, linkname=str(tmp_path)), entry("mine", LNK, linkname=target))
    with pytest.raises(InvalidArgument):
        apply(raw, tmp_path / "fs")
    assert (tmp_path / "victim").stat().st_nlink == 1


@pytest.mark.parametrize("name", [".wh..", ".wh...", ".wh.", "a/.wh.."])
def test_a_whiteout_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument):
        apply(tar_of((name, b"")), tmp_path / "fs")


def test_what_is_not_a_tar(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not a tar archive"):
        apply(b"no tar at all" * 100, tmp_path / "fs")


def test_a_tar_that_is_cut_off(tmp_path: Path) -> None:
    raw = tar_of(("file", b"x" * 5000))
    with pytest.raises(InvalidArgument):
        apply(raw[:2000], tmp_path / "fs")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=64), st.integers(0, 3000))
def test_damage_never_gets_out(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    whole = tar_of(("a/", b""), ("a/file", b"x" * 600), entry("a/link", SYM, linkname="file"))
    raw = bytearray(whole)
    raw[at : at + len(noise)] = noise
    top = tmp_path_factory.mktemp("layer")
    with contextlib.suppress(InvalidArgument, OSError):
        apply(bytes(raw), top / "fs")
    assert [path.name for path in top.iterdir()] == ["fs"]


class Trickle:
    """A source that gives its bytes in small pieces."""

    def __init__(self, raw: bytes, piece: int) -> None:
        self._stream, self._piece = io.BytesIO(raw), piece

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._piece))


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_inflating(piece: int) -> None:
    plain = os.urandom(5000) + b"\0" * 200_000
    two_members = gzip.compress(plain[:100_000]) + gzip.compress(plain[100_000:]) + b"\0" * 64
    for raw in (gzip.compress(plain), two_members, b"\1" + plain):
        stream = Inflater(Trickle(raw, piece))
        found = b""
        while part := stream.read(30_000):
            found += part
        assert found == (plain if raw[0] == 0x1F else b"\1" + plain)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-20], lambda raw: raw[:300] + b"damage" + raw[306:], lambda raw: raw + b"junk"]
)
def test_a_damaged_gzip_stream_is_refused(damage: object) -> None:
    raw = damage(gzip.compress(os.urandom(2000)))  # type: ignore[operator]
    with pytest.raises(InvalidArgument, match="gzip"):
        stream = Inflater(io.BytesIO(raw))
        while stream.read(1000):
            pass


def test_a_gzip_bomb_does_not_fill_the_memory() -> None:
    stream = Inflater(io.BytesIO(gzip.compress(b"\0" * (64 << 20))))
    assert len(stream.read(1000)) == 1000
