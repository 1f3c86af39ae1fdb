"""SPDY/3.1 frames: what is written can be read, and whatever comes is read or refused, within bounds."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.minirt.streaming.dictionary import DICTIONARY
from harness.minirt.streaming.frames import (
    LARGEST_CONTROL_BYTES,
    LARGEST_DATA_BYTES,
    Data,
    Frame,
    GoAway,
    Headers,
    Ping,
    ProtocolError,
    Reader,
    Reset,
    SynReply,
    SynStream,
    Writer,
    parse_headers,
)
from harness.minirt.streaming.spdy import MOST_STREAMS, Connection, HalfClosed, Opened, Piece, SpdyChannels

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=100)
HEADERS = st.dictionaries(NAMES, VALUES, max_size=8)
NUMBERS = st.integers(1, 0x7FFFFFFF)


def frames_of(data: bytes) -> list[Frame]:
    return list(Reader().feed(data))


def test_the_dictionary_is_the_one_of_the_specification() -> None:
    """Its checksum stands in every zlib stream that uses it."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(st.tuples(NUMBERS, HEADERS, st.booleans()), max_size=5), st.integers(1, 50))
def test_headers_come_back_in_whatever_pieces(rows: list[tuple[int, dict[str, str], bool]], size: int) -> None:
    """Through one compression that goes on from frame to frame."""
    writer, reader = Writer(), Reader()
    kinds = (
        (writer.syn_stream, SynStream),
        (writer.syn_reply, SynReply),
        (writer.headers, Headers),
    )
    sent = b"".join(kinds[at % 3][0](*row) for at, row in enumerate(rows))
    found = [frame for at in range(0, len(sent), size) for frame in reader.feed(sent[at : at + size])]
    assert found == [kinds[at % 3][1](*row) for at, row in enumerate(rows)]
    assert reader.buffered_bytes == 0


@given(st.binary(max_size=3 * LARGEST_DATA_BYTES), st.booleans(), st.integers(1000, 1 << 17))
@settings(max_examples=40)
def test_data_comes_back_in_whatever_pieces(data: bytes, fin: bool, size: int) -> None:
    reader, sent = Reader(), Writer().data(7, data, fin)
    found = [frame for at in range(0, len(sent), size) for frame in reader.feed(sent[at : at + size])]
    assert all(isinstance(frame, Data) and frame.stream == 7 for frame in found)
    assert b"".join(frame.data for frame in found if isinstance(frame, Data)) == data
    assert [frame.fin for frame in found if isinstance(frame, Data)] == [False] * (len(found) - 1) + [fin] * bool(found)


def test_small_frames_are_read() -> None:
    writer = Writer()
    sent = writer.ping(5) + writer.reset(3, 1) + writer.go_away(9, 2)
    assert frames_of(sent) == [Ping(5), Reset(3, 1), GoAway(9, 2)]


def test_what_asks_nothing_of_us_is_passed_over() -> None:
    settings_frame = struct.pack(">HHII", 0x8003, 4, 4, 0)
    window_update = struct.pack(">HHIII", 0x8003, 9, 8, 1, 65536)
    assert frames_of(settings_frame + window_update + Writer().ping(1)) == [Ping(1)]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_whatever_comes_is_read_or_refused(pieces: list[bytes]) -> None:
    reader = Reader()
    try:
        for piece in pieces:
            for _ in reader.feed(piece):
                pass
            assert reader.buffered_bytes <= LARGEST_CONTROL_BYTES + 8
    except ProtocolError:
        pass


@given(st.integers(0, 12), st.integers(0, 255), st.binary(max_size=300), st.sampled_from([2, 3]))
def test_whatever_a_frame_holds_is_read_or_refused(kind: int, flags: int, body: bytes, version: int) -> None:
    head = struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(body))
    connection = Connection()
    try:
        list(connection.receive(head + body))
    except ProtocolError:
        return
    assert version == 3


@given(st.binary(max_size=300))
def test_whatever_a_header_block_holds_is_read_or_refused(block: bytes) -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    packed = deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)
    sent = struct.pack(">HHIIIH", 0x8003, 1, 10 + len(packed), 1, 0, 0) + packed
    try:
        (frame,) = frames_of(sent)
    except ProtocolError:
        return
    assert isinstance(frame, SynStream)


def test_a_header_bomb_is_refused() -> None:
    deflate = zlib.compressobj(9, zdict=DICTIONARY)
    packed = deflate.compress(bytes(1 << 24)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(packed) < LARGEST_CONTROL_BYTES
    with pytest.raises(ProtocolError, match="too long"):
        frames_of(struct.pack(">HHIIIH", 0x8003, 1, 10 + len(packed), 1, 0, 0) + packed)


def test_a_huge_control_frame_is_refused_before_it_comes() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        frames_of(struct.pack(">HHI", 0x8003, 1, 0xFFFFFF))


def test_a_huge_data_frame_is_handed_on_as_it_comes() -> None:
    reader = Reader()
    assert list(reader.feed(struct.pack(">II", 1, 0xFFFFFF))) == []
    for _ in range(255):
        (frame,) = reader.feed(bytes(1 << 16))
        assert isinstance(frame, Data) and not frame.fin
        assert reader.buffered_bytes == 0


@pytest.mark.parametrize(
    "block",
    [b"", b"\0\0\0\1", b"\0\0\0\1\0\0\0\0\0\0\0\0", b"\0\0\0\0more", b"\xff\xff\xff\xff", b"\0\0\0\1\0\0\0\xffa"],
)
def test_a_malformed_header_block_is_refused(block: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_headers(block)


def test_a_connection_accepts_streams_and_answers_pings() -> None:
    client, server = Writer(), Connection()
    sent = client.syn_stream(1, {"a": "b"}) + client.data(1, b"hello", fin=True) + client.ping(7) + client.ping(8)
    assert list(server.receive(sent)) == [Opened(1, {"a": "b"}), Piece(1, b"hello"), HalfClosed(1)]
    server.send(1, b"answer")
    server.end(1)
    server.send(1, b"too late")
    answers = frames_of(bytes(server.outgoing))
    assert answers == [SynReply(1, {}), Ping(7), Data(1, b"answer"), Data(1, b"", True)]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_client_cannot_open_a_servers_stream(number: int) -> None:
    with pytest.raises(ProtocolError):
        list(Connection().receive(Writer().syn_stream(number, {})))


def test_a_stream_is_opened_once_and_in_order() -> None:
    server, client = Connection(), Writer()
    list(server.receive(client.syn_stream(5, {})))
    with pytest.raises(ProtocolError):
        list(server.receive(client.syn_stream(3, {})))


def test_data_for_a_stream_that_never_was_is_refused() -> None:
    with pytest.raises(ProtocolError):
        list(Connection().receive(Writer().data(1, b"x")))


def test_too_many_streams_are_refused_one_by_one() -> None:
    server, client = Connection(), Writer()
    opened = list(server.receive(b"".join(client.syn_stream(1 + 2 * at, {}) for at in range(MOST_STREAMS + 2))))
    assert len(opened) == MOST_STREAMS
    refused = [frame for frame in frames_of(bytes(server.outgoing)) if isinstance(frame, Reset)]
    assert [frame.stream for frame in refused] == [1 + 2 * MOST_STREAMS, 3 + 2 * MOST_STREAMS]


def test_channels_that_nobody_asked_for_are_reset() -> None:
    server, client = SpdyChannels({"stdin"}.__contains__), Writer()
    sent = [client.syn_stream(at, {"streamType": name}) for at, name in ((1, "stdin"), (3, "stdin"), (5, "stdout"))]
    assert list(server.receive(b"".join(sent))) == []
    assert server.opened == {"stdin"}
    assert [f.stream for f in frames_of(bytes(server.outgoing)) if isinstance(f, Reset)] == [3, 5]
