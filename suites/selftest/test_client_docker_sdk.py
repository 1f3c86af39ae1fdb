"""The Engine API's multiplexed streams."""

from __future__ import annotations

import struct

import pytest

from harness.client.docker_sdk import parse_docker_log, parse_frames
from harness.model.container import LogLine, Stream

AT = "2026-11-23T14:04:32.989560466Z"
AT_NS = 1795442672989560466


def _frame(number: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", number, len(data)) + data


def test_frames() -> None:
    output = _frame(1, b"out\n") + _frame(2, b"err\n") + _frame(1, b"")
    assert list(parse_frames(output)) == [
        (Stream.STDOUT, b"out\n"),
        (Stream.STDERR, b"err\n"),
        (Stream.STDOUT, b""),
    ]
    assert list(parse_frames(b"")) == []


@pytest.mark.parametrize("output", [b"\1\0\0", _frame(1, b"whole")[:-1], _frame(7, b"x"), b"no frames, just text"])
def test_what_is_no_frame_is_an_error(output: bytes) -> None:
    with pytest.raises(ValueError, match="frame"):
        list(parse_frames(output))


def test_log() -> None:
    output = _frame(1, f"{AT} ready\n".encode()) + _frame(2, f"{AT} two words \n".encode())
    assert list(parse_docker_log(output)) == [
        LogLine(Stream.STDOUT, "ready", AT_NS),
        LogLine(Stream.STDERR, "two words ", AT_NS),
    ]


def test_log_joins_the_parts_of_a_long_line() -> None:
    later = AT.replace("32", "33")
    output = (
        _frame(1, f"{AT} {'x' * 16384}".encode())
        + _frame(2, f"{later} between\n".encode())
        + _frame(1, f"{later} {'y' * 5}\n".encode())
        + _frame(1, f"{later} unfinished".encode())
    )
    lines = list(parse_docker_log(output))
    assert [(line.stream, len(line.text)) for line in lines] == [
        (Stream.STDERR, 7),
        (Stream.STDOUT, 16389),
        (Stream.STDOUT, 10),
    ]
    assert lines[1].at_ns == AT_NS
