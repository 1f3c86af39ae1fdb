"""Proportional set sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.meter.processes import (
    Pss,
    parse_mapped_files,
    parse_smaps_rollup,
    read_file_alone,
    read_pss,
    read_total_pss,
)

CAPTURED = (Path(__file__).parent / "captured/smaps_rollup").read_text()


def test_captured() -> None:
    assert parse_smaps_rollup(CAPTURED) == Pss(anon=729 * 1024, file=292 * 1024)


def test_a_process_without_memory() -> None:
    assert parse_smaps_rollup("") is None


def test_another_unit() -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_smaps_rollup("Pss_Anon: 3 MB\n")


def test_the_vanished_are_left_out(tmp_path: Path) -> None:
    for pid in (1, 2):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "smaps_rollup").write_text(CAPTURED)
    assert read_total_pss([1, 2, 3], tmp_path) == Pss(anon=2 * 729 * 1024, file=2 * 292 * 1024)
    assert read_total_pss([3], tmp_path) is None
    assert read_total_pss([], tmp_path) is None


def test_this_process() -> None:
    own = read_pss(os.getpid())
    assert own is not None
    assert own.anon > 1 << 20


SMAPS = """\
55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 1234                       /usr/bin/engine
Size:               1024 kB
Rss:                 800 kB
Pss:                 400 kB
Anonymous:             8 kB
55d0c0100000-55d0c0200000 rw-p 00100000 fe:00 1234                       /usr/bin/engine
Rss:                 100 kB
Anonymous:           100 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0 [heap]
Rss:                 500 kB
Anonymous:           500 kB
7f1000000000-7f1000100000 r--p 00000000 fe:00 77                         /usr/lib/x86_64-linux-gnu/libc.so.6 (deleted)
Rss:                  60 kB
Anonymous:             0 kB
"""


def test_mapped_files_count_once_and_without_what_was_copied(tmp_path: Path) -> None:
    assert parse_mapped_files(SMAPS) == {"fe:00 1234": 792 * 1024, "fe:00 77": 60 * 1024}
    for pid, text in ((1, SMAPS), (2, SMAPS.replace("800 kB", "900 kB")), (3, "")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "smaps").write_text(text)
    assert read_file_alone([1, 2, 3, 4], tmp_path) == (892 + 60) * 1024
    assert read_file_alone([4], tmp_path) is None


def test_files_alone_are_no_less_than_their_proportional_share() -> None:
    own = read_pss(os.getpid())
    alone = read_file_alone([os.getpid()])
    assert own is not None and alone is not None
    assert alone >= own.file * 0.9
