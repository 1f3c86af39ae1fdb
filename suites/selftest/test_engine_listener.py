"""harness.engine.listener: who listens at a socket, by itself or in the place of init."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engine import listener
from harness.engine.listener import INIT, find_listener, holders, inodes

TABLE = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000017a58c66: 00000002 00000000 00010000 0001 01   952 /run/docker.sock
000000001f2e4a00: 00000003 00000000 00000000 0001 03  3750 /run/docker.sock
000000001f2e4b00: 00000002 00000000 00010000 0001 01   953 /run/with a space.sock
000000001f2e4c00: 00000002 00000000 00010000 0001 01   954 @abstract
000000001f2e4d00: 00000003 00000000 00000000 0002 01   955
"""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        yield path


def proc_of(folder: Path, sockets: dict[int, list[int]], table: str = TABLE) -> Path:
    """A /proc in which each process has these inodes open, and began the later the smaller its number is."""
    for pid, open_ones in sockets.items():
        (folder / f"{pid}/fd").mkdir(parents=True)
        (folder / f"{pid}/stat").write_text(f"{pid} (a (b) c) S " + "0 " * 18 + f"{1000 - pid} 0 0\n")
        (folder / f"{pid}/fd/0").symlink_to("/dev/null")
        for number, inode in enumerate(open_ones, 3):
            (folder / f"{pid}/fd/{number}").symlink_to(f"socket:[{inode}]")
    (folder / "net").mkdir()
    (folder / "net/unix").write_text(table)
    return folder


def test_inodes_of_what_listens() -> None:
    assert inodes(Path("/run/docker.sock"), TABLE) == {"952"}
    assert inodes(Path("/run/with a space.sock"), TABLE) == {"953"}
    assert inodes(Path("/run/none.sock"), TABLE) == set()


def test_a_socket_is_found_by_another_path_to_it(tmp_path: Path, door: Path) -> None:
    (tmp_path / "there").symlink_to(tmp_path)
    table = Path("/proc/net/unix").read_text()
    assert inodes(door, table)
    assert inodes(tmp_path / "there/door.sock", table) == inodes(door, table)


def test_holders(tmp_path: Path) -> None:
    assert holders(["952"], proc_of(tmp_path, {1: [952], 7: [5, 952], 8: [9520]})) == {1, 7}


def test_who_made_a_socket_is_who_listens(door: Path) -> None:
    assert find_listener(door) == os.getpid()


def test_a_socket_that_init_made_is_its_other_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that began first: the others have it from that one."""
    monkeypatch.setattr(listener, "peer", lambda path: INIT)
    proc = proc_of(tmp_path, {1: [952], 70: [952], 60: [952], 80: []})
    assert find_listener(Path("/run/docker.sock"), proc) == 70


def test_a_socket_that_nobody_took_over_is_inits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "peer", lambda path: INIT)
    assert find_listener(Path("/run/docker.sock"), proc_of(tmp_path, {1: [952], 70: [3750]})) == INIT


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_listener(tmp_path / "none.sock")
