"""The short way to minirt's modules: taken, given up where it would be the wrong one, and the same modules in the end."""

from __future__ import annotations

import os
import posixpath
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.linux import lean

PACKAGE = Path(harness.__file__ or "").parent
TELL = """
import sys
from harness.minirt import loading
by = {name: type(module.__spec__.loader).__name__ for name, module in sys.modules.items()
      if name.startswith("harness.") and module.__spec__ is not None}
sys.stderr.write(repr(sorted(name for name, loader in by.items() if loader != "Finder")))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An installation of minirt alone, without any bytecode: a folder with bin/minirt."""
    library = tmp_path / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for name in ("linux", "minirt"):
        ignored = shutil.ignore_patterns("__pycache__", "cri", "images", "network", "streaming")
        shutil.copytree(PACKAGE / name, library / "harness" / name, ignore=ignored)
    shutil.copy(PACKAGE / "__init__.py", library / "harness")
    (tmp_path / "bin").mkdir()
    shutil.copy(PACKAGE / "minirt/minirt", tmp_path / "bin")
    (tmp_path / "bin/python3").symlink_to(sys.executable)
    return tmp_path


def library(place: Path) -> Path:
    (found,) = place.glob("lib/*/site-packages")
    return found


def packs(place: Path) -> list[str]:
    return sorted(path.name.split(".cpython")[0] for path in library(place).rglob("*.pack*"))


def state(place: Path) -> str:
    """What a command says on its standard error; it fails, in order, for want of a container."""
    argv = [str(place / "bin/minirt"), "--root", str(place / "states"), "state", "box"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr


MISSING = 'minirt: container "box" does not exist\n'
PACKS = ["harness.minirt.oci.command", "harness.minirt.oci.lifecycle"]


def test_bytecode_then_packs_come_of_themselves(place: Path) -> None:
    assert state(place) == MISSING
    assert packs(place) == []
    assert state(place) == MISSING
    assert packs(place) == PACKS
    written = {path: path.stat().st_mtime_ns for path in library(place).rglob("*.pack")}
    assert state(place) == MISSING
    assert {path: path.stat().st_mtime_ns for path in library(place).rglob("*.pack")} == written


def test_all_modules_come_by_the_short_way(place: Path) -> None:
    for _ in range(2):
        state(place)
    source = library(place) / "harness/minirt/oci/lifecycle.py"
    source.write_text(source.read_text() + TELL)
    told = [state(place).partition("]")[0] for _ in range(4)]
    assert "harness.minirt.oci.lifecycle" in told[0]  # has no bytecode yet
    assert told[1:] == ["["] * 3


@pytest.mark.parametrize("name", ["loading", "errors", "oci/command", "oci/lifecycle", "container/state"])
def test_a_source_that_changes_counts_at_once(place: Path, name: str) -> None:
    for _ in range(3):
        state(place)
    source = library(place) / f"harness/minirt/{name}.py"
    for word in ("one", "other"):
        said = f"\nimport sys\nsys.stderr.write('{word} ')\n"
        head, mark, rest = source.read_text().rpartition(
            '\nif __name__ == "__main__":'
        )  # what follows ends the process
        source.write_text(f"{head}{said}{mark}{rest}" if mark else f"{rest}{said}")
        for _ in range(3):
            assert f"{word} " in state(place)
    assert packs(place) == PACKS


@pytest.mark.parametrize("broken", [b"", b"(", b"nonsense", b"\0" * 100])
def test_a_broken_pack_is_replaced(place: Path, broken: bytes) -> None:
    for _ in range(2):
        state(place)
    pack = next(library(place).rglob("*lifecycle*.pack"))
    good = pack.read_bytes()
    pack.write_bytes(broken)
    assert state(place) == MISSING
    assert pack.read_bytes() == good


def test_what_cannot_be_written_is_done_without(place: Path) -> None:
    state(place)
    for name in PACKS:
        (library(place) / f"harness/minirt/__pycache__/{name}.{sys.implementation.cache_tag}.pack").mkdir()
    for _ in range(2):
        assert state(place) == MISSING
    assert [path for path in library(place).rglob("*.pack*") if path.is_file()] == []


def test_a_package_without_bytecode_and_without_leave_to_write_it(place: Path) -> None:
    for folder in [path for path in library(place).rglob("*") if path.is_dir()]:
        (folder / "__pycache__").write_text("no folder")
    for _ in range(2):
        assert state(place) == MISSING


PATHS = st.text("ab./", max_size=12)


@given(PATHS)
def test_paths_are_those_of_os(path: str) -> None:
    for name in ("dirname", "basename"):
        assert getattr(lean.path, name)(path) == getattr(posixpath, name)(path)
    one = "/" + path.lstrip("/") if path.startswith("/") else path  # to Linux, two slashes at the beginning are one
    assert lean.path.normpath(path) == posixpath.normpath(one)
    assert lean.path.abspath(path) == posixpath.abspath(one)


def test_what_paths_lead_to_is_that_of_os(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "lost").symlink_to("nowhere")
    for name in ("folder", "folder/file", "link", "link/file", "lost", "nowhere", "file/x"):
        path = str(tmp_path / name)
        for ask in ("exists", "lexists", "isdir", "islink"):
            assert getattr(lean.path, ask)(path) == getattr(os.path, ask)(path), (ask, name)
        if name != "lost":
            assert lean.path.realpath(path) == os.path.realpath(path)
    lean.makedirs(f"{tmp_path}/one/two/three/", 0o700)
    assert (tmp_path / "one/two/three").stat().st_mode & 0o777 == 0o700
    lean.makedirs(f"{tmp_path}/one/two", exist_ok=True)
    with pytest.raises(FileExistsError):
        lean.makedirs(f"{tmp_path}/one/two")
    with pytest.raises(FileExistsError):
        lean.makedirs(f"{tmp_path}/folder/file", exist_ok=True)


@given(st.binary(max_size=20).filter(lambda name: b"\0" not in name))
def test_names_that_are_no_text_come_back(name: bytes) -> None:
    assert lean.fsencode(lean.fsdecode(name)) == name
    assert lean.fsdecode(name) == os.fsdecode(name)


def test_the_environment_is_that_of_os(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEATRIAL_TEST_LEAN", "ü")
    assert lean.environ["SEATRIAL_TEST_LEAN"] == "ü"
    code = "from harness.linux import lean; import sys; assert 'os' not in sys.modules; print(lean.environ['COLOUR'])"
    argv = [sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, env={"COLOUR": "blue", "LC_ALL": "C.UTF-8"})
    assert done.stdout == "blue\n", done.stderr
