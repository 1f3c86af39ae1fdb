"""Layers are unpacked as overlayfs wants them, and nothing that they hold is written outside of their folder."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minirt_registry import entry, tar_of

from harness.minirt.errors import InvalidArgument
from harness.minirt.images import layers
from harness.minirt.images.layers import OPAQUE, adopt, unpack
from harness.minirt.images.view import stacked

DIR, SYM, LNK, CHR, FIFO = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE


def apply(raw: bytes, folder: Path, whole: bool = False) -> int:
    folder.mkdir()
    if not whole:
        return unpack(io.BytesIO(raw), folder).written_bytes
    with stacked(str(folder), []) as root:
        return layers.apply(io.BytesIO(raw), root)


both_ways = pytest.mark.parametrize("whole", [False, True], ids=["alone", "on a tree"])


@both_ways
def test_what_an_ordinary_layer_holds(tmp_path: Path, whole: bool) -> None:
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
    assert apply(raw, tmp_path / "fs", whole) == 2 + 5 + 1
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


@both_ways
@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "/../escaped", "a/b/../../../escaped"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, whole: bool, name: str) -> None:
    with pytest.raises(InvalidArgument, match="outside its root"):
        apply(tar_of((name, b"x")), tmp_path / "fs", whole)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["fs"]


def test_an_absolute_name_is_below_the_root(tmp_path: Path) -> None:
    apply(tar_of(("/minirt-escaped", b"x")), tmp_path / "fs")
    assert (tmp_path / "fs/minirt-escaped").exists()
    assert not Path("/minirt-escaped").exists()


@both_ways
@pytest.mark.parametrize("target", ["..", "../..", "{outside}", "/"])
def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path, whole: bool, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    raw = tar_of(entry("way", SYM, linkname=target.format(outside=outside)), ("way/escaped", b"x"))
    try:
        apply(raw, tmp_path / "fs", whole)
    except InvalidArgument:
        pass
    else:
        assert list((tmp_path / "fs").rglob("escaped"))
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/escaped").exists()
    assert not list(outside.iterdir())


@both_ways
def test_a_file_does_not_replace_what_a_link_points_to(tmp_path: Path, whole: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    apply(tar_of(entry("way", SYM, linkname=str(victim)), ("way", b"x")), tmp_path / "fs", whole)
    assert victim.read_text() == "whole"
    assert (tmp_path / "fs/way").read_bytes() == b"x"


@both_ways
@pytest.mark.parametrize("target", ["../victim", "/etc/passwd", "way/victim", "not there"])
def test_a_hard_link_to_outside_is_refused(tmp_path: Path, whole: bool, target: str) -> None:
    (tmp_path / "victim").write_text("whole")
    raw = tar_of(entry("way", SYM, linkname=str(tmp_path)), entry("mine", LNK, linkname=target))
    with pytest.raises(InvalidArgument):
        apply(raw, tmp_path / "fs", whole)
    assert (tmp_path / "victim").stat().st_nlink == 1


@both_ways
@pytest.mark.parametrize("name", [".wh..", ".wh...", ".wh.", "a/.wh.."])
def test_a_whiteout_of_nothing_is_refused(tmp_path: Path, whole: bool, name: str) -> None:
    with pytest.raises(InvalidArgument):
        apply(tar_of((name, b"")), tmp_path / "fs", whole)


def test_what_is_not_a_tar(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not a tar archive"):
        apply(b"no tar at all" * 100, tmp_path / "fs")


def test_a_tar_that_is_cut_off(tmp_path: Path) -> None:
    raw = tar_of(("file", b"x" * 5000))
    with pytest.raises(InvalidArgument):
        apply(raw[:2000], tmp_path / "fs")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=64), st.integers(0, 3000))
def test_damage_never_gets_out(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    whole = tar_of(("a/", b""), ("a/file", b"x" * 600), entry("a/link", SYM, linkname="file"))
    raw = bytearray(whole)
    raw[at : at + len(noise)] = noise
    top = tmp_path_factory.mktemp("layer")
    with contextlib.suppress(InvalidArgument, OSError):
        apply(bytes(raw), top / "fs")
    assert [path.name for path in top.iterdir()] == ["fs"]


# -- what only somebody hostile, or a broken tool, writes ----------------------------------------------------------------


def header(name: str, size: int = 0, **facts: object) -> bytes:
    """A header alone, with a checksum that is right."""
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in facts.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def resealed(block: bytes) -> bytes:
    """A header whose fields were changed, with its checksum set right."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


@both_ways
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (header("a", size=1 << 62), "cut off"),
        (header("a", size=100) + b"short", "cut off"),
        (resealed(header("a")[:124] + b"\xff" * 12 + header("a")[136:]), "of -1 bytes"),
        (header("x", size=1 << 40, type=tarfile.XHDTYPE), "a header of"),
        (header("././@LongLink", size=1 << 33, type=tarfile.GNUTYPE_LONGNAME), "a header of"),
        (b"".join(header("x", type=tarfile.XHDTYPE) for _ in range(5000)), "can be read|a header"),
        (header("a") + b"garbage " * 64, "can be read"),
        (header("a", mode=0o644) + header("b") + b"\1" * 512, "can be read"),
        (tar_of(entry("a", SYM, linkname="a"), ("a/b", b"x")), "cannot be made"),
        (tar_of(("n" * 300, b"x")), "cannot be made"),
        (tar_of(entry("d", b"9")), "no known type"),
        (tar_of(entry("a", LNK, linkname="a")), "no file in the layer"),
        (tar_of(("d/", b""), entry("e", LNK, linkname="d")), "no file in the layer"),
        (header("a", uid=-1), "of user -1"),
        (header("a", gid=(1 << 32) - 1), "of user"),
        (header("a", uid=1 << 40), "of user"),
    ],
    ids=lambda value: str(value)[:24] if not isinstance(value, bytes) else "",
)
def test_broken_archives(tmp_path: Path, whole: bool, raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        apply(raw, tmp_path / "fs", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["fs"]


def test_an_archive_may_be_empty_or_lack_its_end(tmp_path: Path) -> None:
    assert apply(b"", tmp_path / "nothing") == 0
    assert apply(bytes(1024), tmp_path / "empty") == 0
    raw = tar_of(("file", b"x" * 512))
    assert apply(raw[: raw.rstrip(b"\0").__len__()], tmp_path / "endless") == 512
    assert (tmp_path / "endless/file").read_bytes() == b"x" * 512


@both_ways
def test_holes_stay_holes(tmp_path: Path, whole: bool) -> None:
    """A file of GNU tar's sparse format 1.0, whose map stands before its content."""
    content = b"1\n1048576\n512\n".ljust(512, b"\0") + b"x" * 512
    info = tarfile.TarInfo("GNUSparseFile.0/hole")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "hole",
        "GNU.sparse.realsize": str(4 << 20),
    }
    apply(tar_of((info, content), ("after", b"1")), tmp_path / "fs", whole)
    hole = tmp_path / "fs/hole"
    assert hole.stat().st_size == 4 << 20
    assert hole.stat().st_blocks * 512 < 1 << 20
    assert hole.read_bytes() == bytes(1 << 20) + b"x" * 512 + bytes((3 << 20) - 512)
    assert (tmp_path / "fs/after").read_bytes() == b"1"


@pytest.mark.parametrize("map", ["2\n512\n512\n0\n512\n", "1\n9999999\n512\n", "1\n-5\n512\n"])
def test_a_map_of_holes_that_makes_no_sense(tmp_path: Path, map: str) -> None:
    info = tarfile.TarInfo("GNUSparseFile.0/hole")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "hole",
        "GNU.sparse.realsize": "4096",
    }
    with pytest.raises(InvalidArgument, match="map of holes"):
        apply(tar_of((info, map.encode().ljust(512, b"\0") + b"x" * 1024)), tmp_path / "fs")


@both_ways
def test_attributes_that_matter_are_kept(tmp_path: Path, whole: bool) -> None:
    # version 2, permitted CAP_NET_RAW (capabilities(7)): bytes that are no text
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    program = tarfile.TarInfo("ping")
    program.uid, program.mode = 5, 0o755
    program.pax_headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.security.capability.evil": "x",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "x",
    }
    folder = tarfile.TarInfo("d")
    folder.type, folder.mode, folder.pax_headers = DIR, 0o755, {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    apply(tar_of((program, b"#!"), (folder, b"")), tmp_path / "fs", whole)
    assert os.getxattr(tmp_path / "fs/ping", "security.capability") == capability
    assert os.listxattr(tmp_path / "fs/ping") == ["security.capability"]
    assert os.listxattr(tmp_path / "fs/d") == []


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "a",
                    "a/b",
                    "/a",
                    "a/../b",
                    "../a",
                    "./a/./b",
                    "a/b/c",
                    ".wh.a",
                    "a/.wh..wh..opq",
                    ".wh...",
                    "b",
                    "..",
                    ".",
                ]
            ),
            st.sampled_from([tarfile.REGTYPE, DIR, SYM, LNK, FIFO, CHR]),
            st.sampled_from(["a", "..", "/", "/etc/passwd", "a/b", "../../..", "", "b"]),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_no_order_of_entries_leads_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bytes, str]], whole: bool
) -> None:
    top = tmp_path_factory.mktemp("layer")
    (top / "a").write_text("outside")
    entries = [entry(name, kind, linkname=target, mode=0o755) for name, kind, target in rows]
    with contextlib.suppress(InvalidArgument):
        apply(tar_of(*entries), top / "fs", whole)
    assert sorted(path.name for path in top.iterdir()) == ["a", "fs"]
    assert (top / "a").read_text() == "outside"
    assert (top / "a").stat().st_nlink == 1


# -- folders that a layer does not speak of -------------------------------------------------------------------------------


def test_implied_folders_look_as_they_do_below(tmp_path: Path) -> None:
    lower, middle, upper = (tmp_path / name for name in ("lower", "middle", "upper"))
    apply(tar_of(entry("tmp", DIR, mode=0o1777, mtime=5), entry("var", DIR, mode=0o700, uid=7)), lower)
    apply(tar_of(entry("var", DIR, mode=0o750, gid=8), ("other", b"")), middle)
    upper.mkdir()
    raw = tar_of(("tmp/file", b"x"), ("var/lib/file", b"x"), ("other/file", b"x"), entry("own", DIR, mode=0o711))
    made = unpack(io.BytesIO(raw), upper)
    assert made.implied == ("other", "tmp", "var", "var/lib")
    with stacked(str(tmp_path), ["middle", "lower"]) as below:
        adopt(upper, made, below)
    tmp, var = (upper / "tmp").stat(), (upper / "var").stat()
    assert (stat.S_IMODE(tmp.st_mode), tmp.st_mtime) == (0o1777, 5)
    assert (stat.S_IMODE(var.st_mode), var.st_uid, var.st_gid) == (0o750, 0, 8)
    assert stat.S_IMODE((upper / "var/lib").stat().st_mode) == 0o755
    assert stat.S_IMODE((upper / "other").stat().st_mode) == 0o755
