"""harness.linux.leases: who has a file open, as the kernel sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.linux.leases import is_open_for_writing

ASKS_WHILE_IT_IS_OPENED = """
import pathlib, sys, threading
from harness.linux.leases import is_open_for_writing
path = pathlib.Path(sys.argv[1])
def ask():
    for _ in range(2000):
        is_open_for_writing(path)
thread = threading.Thread(target=ask)
thread.start()
while thread.is_alive():
    path.open("a").close()
path.open("a").close()
"""


def test_who_can_write_counts_who_can_read_does_not(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert not is_open_for_writing(path)
    with path.open("a"), path.open():
        assert is_open_for_writing(path)
    with path.open():
        assert not is_open_for_writing(path)


def test_a_writer_of_another_process_counts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("a") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as holder:
        file.close()
        assert is_open_for_writing(path)
        holder.communicate()
    assert not is_open_for_writing(path)


def test_who_opens_it_meanwhile_does_so_and_harms_nobody(tmp_path: Path) -> None:
    """The kernel tells the holder of a lease by a signal, which by default ends a process."""
    argv = [sys.executable, "-c", ASKS_WHILE_IT_IS_OPENED, str(tmp_path / "log")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
