"""The CRI log format: whole lines, parts, timestamps, rotation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.linux import syscalls
from harness.minirt.supervisor.log import LONGEST_LINE_BYTES, LogFile, Stream, timestamp

NOW = 1_700_000_000_123_456_789


def test_timestamp() -> None:
    assert timestamp(NOW) == b"2023-11-14T22:13:20.123456789Z"
    assert timestamp(1_000_000_001) == b"1970-01-01T00:00:01.000000001Z"


def test_lines_and_the_rest_of_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path))
    stream = Stream(log, "stderr")
    stream.feed(b"one\ntw", NOW)
    assert path.read_bytes() == timestamp(NOW) + b" stderr F one\n"
    stream.feed(b"o\n\n", NOW)
    stream.feed(b"no end", NOW)
    stream.finish(NOW)
    stream.finish(NOW)
    log.close()
    found = [line.split(b" ", 2)[2] for line in path.read_bytes().splitlines()]
    assert found == [b"F one", b"F two", b"F ", b"P no end"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"\n", b"b" * 5000, b"c" * 17_000]), max_size=12), st.integers(1, 40_000))
def test_nothing_is_lost_or_made_up(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], piece: int) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = LogFile(str(path))
    stream = Stream(log, "stdout")
    whole = b"".join(parts)
    for at in range(0, len(whole), piece):
        stream.feed(whole[at : at + piece], NOW)
    stream.finish(NOW)
    log.close()
    found = b""
    for line in path.read_bytes().split(b"\n")[:-1]:
        _, _, tag, text = line.split(b" ", 3)
        assert len(text) <= LONGEST_LINE_BYTES
        found += text + (b"\n" if tag == b"F" else b"")
    assert found == whole


def test_reopening(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path))
    log.write(b"old\n")
    path.rename(tmp_path / "log.1")
    log.write(b"still old\n")
    log.reopen()
    log.write(b"new\n")
    log.close()
    assert (tmp_path / "log.1").read_bytes() == b"old\nstill old\n"
    assert path.read_bytes() == b"new\n"


def test_a_log_that_cannot_be_reopened_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log"
    path.parent.mkdir()
    log = LogFile(str(path))
    path.rename(tmp_path / "moved")
    path.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log.write(b"more\n")
    log.close()
    assert (tmp_path / "moved").read_bytes() == b"more\n"


def test_what_a_full_disk_loses_is_counted() -> None:
    log = LogFile("/dev/full")
    log.write(b"12345")
    assert log.lost_bytes == 5
    log.close()


def test_no_log_is_wanted() -> None:
    log = LogFile("")
    log.write(b"nowhere")
    log.close()


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    syscalls.mount("small", str(folder), "tmpfs", 0, options)
    try:
        yield
    finally:
        syscalls.umount2(str(folder), syscalls.MNT_DETACH)


def test_a_line_is_whole_or_not_there(tmp_path: Path) -> None:
    """A full disk of one page: what has begun is taken back, and writing goes on once there is space."""
    told: list[tuple[str, int]] = []
    with tmpfs(tmp_path, "size=16k"):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(8192))
        log = LogFile(str(tmp_path / "log"), lambda problem, lost_bytes: told.append((problem, lost_bytes)))
        for number in range(20):
            log.write(b"%03d %s\n" % (number, b"x" * 994) * 2)
        first = (tmp_path / "log").read_bytes()
        assert told == [("no space left on device", 0)]
        assert 0 < len(first) < 20 * 2 * 999 and first.endswith(b"x\n")
        ballast.unlink()
        log.write(b"again\n")
        log.close()
        assert told[1:] == [("", 20 * 2 * 999 - len(first))]
        assert (tmp_path / "log").read_bytes() == first + b"again\n"
