"""Proportional set sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.meter.processes import Pss, parse_smaps_rollup, read_pss, read_total_pss

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
