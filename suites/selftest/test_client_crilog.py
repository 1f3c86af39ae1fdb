"""The CRI log format, from files that containerd wrote and from the corners of the format."""

from __future__ import annotations

import pytest

from harness.client.crilog import lines_of, parse_cri_log, parse_time_ns
from harness.model.container import LogLine, Stream

OUT, ERR = Stream.STDOUT, Stream.STDERR


def test_streams_are_told_apart_and_keep_their_order() -> None:
    log = (
        "2026-11-23T13:41:56.842325838Z stdout F ready\n"
        "2026-11-23T13:41:56.842575774Z stderr F err\n"
        "2026-11-23T13:41:58.392073428Z stdout F bye\n"
    )
    assert parse_cri_log(log) == [
        LogLine(OUT, "ready", 1795441316842325838),
        LogLine(ERR, "err", 1795441316842575774),
        LogLine(OUT, "bye", 1795441318392073428),
    ]


def test_parts_are_joined_each_stream_for_itself() -> None:
    log = (
        "2026-11-23T00:00:00.1Z stdout P one,\n"
        "2026-11-23T00:00:00.2Z stderr P red,\n"
        "2026-11-23T00:00:00.3Z stdout P two,\n"
        "2026-11-23T00:00:00.4Z stderr F blue\n"
        "2026-11-23T00:00:00.5Z stdout F three\n"
    )
    lines = parse_cri_log(log)
    assert [(line.stream, line.text) for line in lines] == [(ERR, "red,blue"), (OUT, "one,two,three")]
    assert lines[1].at_ns == parse_time_ns("2026-11-23T00:00:00.1Z")


def test_a_last_part_without_an_end_is_a_line() -> None:
    assert [line.text for line in parse_cri_log("2026-11-23T00:00:00Z stdout P unfinished\n")] == ["unfinished"]


def test_a_row_that_is_being_written_is_left_out() -> None:
    log = "2026-11-23T00:00:00Z stdout F whole\n2026-11-23T00:00:00Z stdo"
    assert [line.text for line in parse_cri_log(log)] == ["whole"]
    assert parse_cri_log("") == []


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("2026-11-23T00:00:00Z stdout F ", ""),
        ("2026-11-23T00:00:00Z stdout F", ""),
        ("2026-11-23T00:00:00Z stdout F  two spaces  ", " two spaces  "),
        ("2026-11-23T00:00:00Z stdout F:tag carries\ttabs\r", "carries\ttabs\r"),
    ],
)
def test_text_is_kept_as_it_is(row: str, text: str) -> None:
    assert [line.text for line in parse_cri_log(row + "\n")] == [text]


@pytest.mark.parametrize("row", ["", "no log at all", "2026-11-23T00:00:00Z stdin F x", "yesterday stdout F x"])
def test_other_rows_are_errors(row: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_cri_log(row + "\n")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T00:00:00.5Z", 500_000_000),
        ("1970-01-01T02:00:00.25+02:00", 250_000_000),
        ("1969-12-31T18:30:00-05:30", 0),
        ("2016-10-06T00:17:09.669794202Z", 1475713029669794202),
    ],
)
def test_times_are_exact(text: str, ns: int) -> None:
    assert parse_time_ns(text) == ns


def test_lines_of_output() -> None:
    assert lines_of(b"") == []
    assert lines_of(b"one\n\ntwo") == ["one", "", "two"]
    assert lines_of(b"one\r\x0btwo\n") == ["one\r\x0btwo"]
    assert lines_of(b"\xff\n") == ["\N{REPLACEMENT CHARACTER}"]
