"""Removing folders: never through a mount or a symlink."""

from __future__ import annotations

import os
from pathlib import Path

from harness.keeper import ladder
from harness.linux import syscalls


def test_a_symlink_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / "doomed" / "deep").mkdir(parents=True)
    (tmp_path / "doomed" / "link").symlink_to(tmp_path / "precious")
    assert ladder.remove_tree(str(tmp_path / "doomed")) == []
    assert not (tmp_path / "doomed").exists()
    assert (tmp_path / "precious" / "file").read_text() == "kept"


def test_a_mount_keeps_its_folder_alive(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    place = tmp_path / "doomed" / "mnt"
    place.mkdir(parents=True)
    pid = os.fork()
    if not pid:
        # A mount namespace of its own: nothing of this can reach the machine.
        status = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount(str(tmp_path / "precious"), str(place), None, syscalls.MS_BIND)
            (complaint,) = ladder.remove_tree(str(tmp_path / "doomed"))
            assert "still mounted" in complaint
            assert (tmp_path / "precious" / "file").exists()
            assert ladder.unmount_below(str(tmp_path / "doomed")) == []
            assert ladder.remove_tree(str(tmp_path / "doomed")) == []
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert not (tmp_path / "doomed").exists()


def test_what_is_gone_is_no_complaint(tmp_path: Path) -> None:
    site = ladder.Site((str(tmp_path / "no-cgroup"),), (str(tmp_path / "no-folder"),))
    assert ladder.climb(site) == []


def test_descendants_are_found_through_generations() -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        if not os.fork():
            os.write(write, str(os.getpid()).encode())
        os.read(read, 0)
        import signal

        signal.pause()
    os.close(write)
    grandchild = int(os.read(read, 32))
    os.close(read)
    try:
        assert {child, grandchild} <= ladder.descendants(os.getpid())
    finally:
        os.kill(grandchild, 9)
        os.kill(child, 9)
        os.waitpid(child, 0)
