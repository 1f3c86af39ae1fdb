"""Layers that are unpacked side by side are the tree that they are when each is applied to the result of those before it."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minirt_images import Bench, bench_on
from minirt_registry import entry, tar_of

from harness.minirt.container.stacking import mount_overlay
from harness.minirt.errors import InvalidArgument

DIR, SYM, LNK, CHR = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
AGAIN = "unpacking again, on the layers below"

Tree = dict[str, tuple[Any, ...]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_on(tmp_path_factory.mktemp("stack")) as bench:
        yield bench
        assert bench.left() == []


def tree_of(top: str) -> Tree:
    """Everything below `top`: kind, mode, owner, content. Of folders no times: what is in them may have changed those."""
    found: Tree = {}
    for where, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(where, name)
            status = path.lstat()
            content: Any = b""
            if stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            mtime = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime
            rows = [
                (row, os.getxattr(path, row))
                for row in os.listxattr(path, follow_symlinks=False)
                if "overlay" not in row
            ]
            owner = (status.st_uid, status.st_gid)
            found[os.path.relpath(path, top)] = (status.st_mode, *owner, status.st_rdev, mtime, content, rows)
    return found


def pulled(bench: Bench, layers: Sequence[bytes]) -> Tree:
    """What a container would see of an image of `layers`; all is gone again afterwards."""
    bench.notes.clear()
    bench.registry.add_image("a", "1", layers, compress=False)
    try:
        image = bench.store.get(bench.pull("a:1"))
        with bench.snapshots.view(image.chain) as root:
            return tree_of(f"/proc/self/fd/{root}/.")
    finally:
        bench.store.remove(f"{bench.registry.address}/a:1")


def went_again(bench: Bench) -> int:
    """How many layers were unpacked a second time."""
    return sum(message == AGAIN for message, _ in bench.notes)


# -- one case at a time --------------------------------------------------------------------------------------------------

MERGED = tar_of(
    ("usr/lib/", b""),
    ("usr/lib/old", b"1"),
    entry("lib", SYM, linkname="usr/lib"),
    entry("abs", SYM, linkname="/usr/lib"),
)


def test_folders_that_are_only_implied_follow_the_links_of_lower_layers(bench: Bench) -> None:
    upper = tar_of(("lib/new", b"2"), ("abs/deep/er", b"3"), ("lib/.wh.old", b""))
    tree = pulled(bench, [MERGED, upper])
    assert sorted(tree) == ["abs", "lib", "usr", "usr/lib", "usr/lib/deep", "usr/lib/deep/er", "usr/lib/new"]
    assert stat.S_ISLNK(tree["lib"][0])
    assert went_again(bench) == 1


def test_a_folder_that_is_spoken_of_replaces_a_link(bench: Bench) -> None:
    tree = pulled(bench, [MERGED, tar_of(("lib/", b""), ("lib/new", b"2"))])
    assert stat.S_ISDIR(tree["lib"][0])
    assert "lib/new" in tree
    assert "usr/lib/new" not in tree
    assert went_again(bench) == 0


@pytest.mark.parametrize("target", ["../../../out", "/out", "../../proc/self/cwd/out"])
def test_no_link_of_a_lower_layer_leads_out(bench: Bench, target: str) -> None:
    before = sorted(bench.root.rglob("out"))
    tree = pulled(bench, [tar_of(entry("way", SYM, linkname=target)), tar_of(("way/escaped", b"x"))])
    (name,) = (name for name in tree if name.endswith("/escaped"))
    assert name == target.replace("../", "").strip("/") + "/escaped"
    assert sorted(bench.root.rglob("out")) == before
    assert not Path("/out").exists()


def test_links_that_go_round_are_refused(bench: Bench) -> None:
    lower = tar_of(entry("a", SYM, linkname="b"), entry("b", SYM, linkname="a"))
    with pytest.raises(InvalidArgument, match="cannot be made"):
        pulled(bench, [lower, tar_of(("a/x", b""))])


def test_a_hard_link_to_a_file_of_a_lower_layer(bench: Bench) -> None:
    tool = tarfile.TarInfo("bin/tool")
    tool.mode, tool.uid, tool.gid, tool.mtime = 0o4755, 3, 4, 1_000_000
    tool.pax_headers = {"SCHILY.xattr.user.colour": "blue"}
    bench.registry.add_image(
        "b",
        "1",
        [
            tar_of((tool, b"#!")),
            tar_of(entry("other", LNK, linkname="bin/tool"), entry("third", LNK, linkname="other")),
        ],
    )
    image = bench.store.get(bench.pull("b:1"))
    with bench.snapshots.view(image.chain) as root:
        tree = tree_of(f"/proc/self/fd/{root}/.")
    assert tree["other"] == tree["third"] == tree["bin/tool"]
    assert tree["other"][:3] == (stat.S_IFREG | 0o4755, 3, 4)
    assert tree["other"][-2:] == (b"#!", [("user.colour", b"blue")])
    upper = Path(bench.snapshots.layers(image.chain)[0])
    assert {(upper / name).stat().st_ino for name in ("other", "third", "bin/tool")} == {
        (upper / "other").stat().st_ino
    }
    bench.store.remove(image.id)


@pytest.mark.parametrize("target", ["none", "lib/none", "usr/lib", "../../etc/passwd", "gone"])
def test_a_hard_link_to_what_is_nowhere(bench: Bench, target: str) -> None:
    upper = tar_of((".wh.gone", b""), entry("mine", LNK, linkname=target))
    with pytest.raises(InvalidArgument, match=r"hard link|outside its root"):
        pulled(bench, [MERGED, tar_of(("gone", b"")), upper])


def test_one_layer_above_different_parents(bench: Bench) -> None:
    upper = tar_of(("lib/new", b"2"), ("lib/.wh.old", b""))
    plain = tar_of(entry("lib", DIR, mode=0o700, uid=7), ("lib/old", b"1"), ("lib/kept", b"1"))
    bench.registry.add_image("b", "1", [plain, upper])
    image = bench.store.get(bench.pull("b:1"))
    assert "usr/lib/new" in pulled(bench, [MERGED, upper])
    assert went_again(bench) == 1
    with bench.snapshots.view(image.chain) as root:
        tree = tree_of(f"/proc/self/fd/{root}/.")
    assert sorted(tree) == ["lib", "lib/kept", "lib/new"]
    assert tree["lib"][:2] == (stat.S_IFDIR | 0o700, 7)
    bench.store.remove(image.id)


def test_whiteouts_of_nothing_are_not_seen(bench: Bench) -> None:
    layers = [
        tar_of(("a/", b""), ("a/.wh.x", b"")),
        tar_of(("b/", b""), ("b/.wh.x", b""), ("a/.wh.y", b""), ("c/.wh.z", b"")),
        tar_of(("a/.wh..wh..opq", b""), ("a/.wh.x", b""), entry("a/d", CHR)),
    ]
    assert sorted(pulled(bench, layers)) == ["a", "b", "c"]


def test_as_many_layers_as_engines_allow(bench: Bench) -> None:
    layers = [tar_of((f"f{number}", b"%d" % number)) for number in range(127)]
    assert len(pulled(bench, [*layers, tar_of(("new/x", b""), (".wh.f5", b""))])) == 128


def test_more_layers_than_one_mount_can_stack(bench: Bench, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidArgument, match="more than one mount"),
        bench.snapshots.view([f"sha256:{n:064}" for n in range(300)]),
    ):
        pass
    lower = ":".join(f"{tmp_path}/{number}/fs" for number in range(1000))
    with pytest.raises(OSError, match="more layers") as caught:
        mount_overlay("overlay", str(tmp_path), 0, f"lowerdir={lower},ro")
    assert caught.value.errno == errno.E2BIG


# -- any case -------------------------------------------------------------------------------------------------------------

Row = tuple[str, str, str]
PLACES = ["d", "e", "s", "d/x", "d/e", "d/e/y", "s/x", "s/e", "s/e/y", "x", "e/s/x"]
ROWS = st.one_of(
    st.tuples(st.just("file"), st.sampled_from(PLACES), st.sampled_from(["1", "22"])),
    st.tuples(st.just("folder"), st.sampled_from(PLACES), st.sampled_from(["700", "1777"])),
    st.tuples(
        st.just("symlink"),
        st.sampled_from(["s", "e", "d/e", "e/s"]),
        st.sampled_from(["d", "/d/e", "../d", "e", "s", "no/where"]),
    ),
    st.tuples(
        st.just("hard link"),
        st.sampled_from(["x", "d/x", "s/h", "h"]),
        st.sampled_from(["x", "d/x", "s/x", "d/e/y", "s"]),
    ),
    st.tuples(st.just("whiteout"), st.sampled_from(PLACES), st.just("")),
    st.tuples(st.just("opaque"), st.sampled_from(["d", "s", "d/e", "."]), st.just("")),
)


def tar_of_rows(rows: Sequence[Row]) -> bytes:
    members: list[tuple[tarfile.TarInfo | str, bytes]] = []
    for number, (kind, place, fact) in enumerate(rows):
        folder, base = os.path.split(place)
        if kind == "file":
            info = tarfile.TarInfo(place)
            info.uid, info.mtime = number, number
            members.append((info, fact.encode()))
        elif kind == "folder":
            members.append(entry(place, DIR, mode=int(fact, 8), gid=number))
        elif kind == "whiteout":
            members.append((f"{folder}/.wh.{base}", b""))
        elif kind == "opaque":
            members.append((f"{place}/.wh..wh..opq", b""))
        else:
            members.append(entry(place, SYM if kind == "symlink" else LNK, linkname=fact, mtime=number))
    return tar_of(*members)


class Refused(Exception):
    """The reference cannot make an entry."""


class Reference:
    """The plainest way: every entry of every layer into one folder, in order."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.brought: set[str] = set()

    def apply(self, raw: bytes) -> None:
        self.brought = set()
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            for member in tar:
                self.add(tar, member)

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        folder, base = os.path.split(member.name)
        parent = self.find(folder, make=True)
        if base == ".wh..wh..opq":
            self.empty(parent)
            return
        path = parent / base.removeprefix(".wh.")
        if base.startswith(".wh."):
            self.hide(path)
            return
        if not (member.isdir() and path.is_dir() and not path.is_symlink()):
            self.remove(path)
        self.bring(path)
        if member.isdir():
            path.mkdir(exist_ok=True)
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.islnk():
            try:
                where, name = os.path.split(member.linkname)
                target = self.find(where) / name
                os.link(target, path, follow_symlinks=False)
            except OSError as error:
                raise Refused from error
            return
        else:
            content = tar.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            path.chmod(member.mode)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)

    def find(self, name: str, make: bool = False) -> Path:
        """Where `name` is, every link followed inside of the top."""
        at, rest, links = self.top, name.split("/"), 0
        while rest:
            part = rest.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                at = at if at == self.top else at.parent
                continue
            if (at / part).is_symlink():
                links += 1
                target = str((at / part).readlink())
                rest = target.split("/") + rest
                at = self.top if target.startswith("/") else at
                if links > 40:
                    raise Refused
                continue
            at /= part
            if make and not at.is_dir() and str(at) not in self.brought:
                at.unlink(missing_ok=True)
                at.mkdir()
                self.bring(at)
            if not at.is_dir():
                raise Refused
        return at

    def bring(self, path: Path) -> None:
        while path != self.top:
            self.brought.add(str(path))
            path = path.parent

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def hide(self, path: Path) -> None:
        if str(path) not in self.brought:
            self.remove(path)
        elif path.is_dir() and not path.is_symlink():
            self.empty(path)

    def empty(self, folder: Path) -> None:
        for path in list(folder.iterdir()):
            self.hide(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=5), min_size=2, max_size=4))
def test_any_stack(bench: Bench, tmp_path_factory: pytest.TempPathFactory, layers: list[list[Row]]) -> None:
    raws = [tar_of_rows(rows) for rows in layers]
    top = tmp_path_factory.mktemp("reference")
    reference = Reference(top)
    try:
        for raw in raws:
            reference.apply(raw)
    except Refused:
        with pytest.raises(InvalidArgument):
            pulled(bench, raws)
    else:
        assert pulled(bench, raws) == tree_of(str(top))
    finally:
        shutil.rmtree(top)
