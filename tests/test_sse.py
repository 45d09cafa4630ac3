"""The SSE parser: the standard's own cases, any cut of the bytes, an independent decoder as oracle, and its bounds."""

import codecs
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, pairwise

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import ProtocolViolated
from router.sse import Frame, SseParser


def parse(pieces: Iterable[bytes], *, salvage: bool = False) -> list[Frame]:
    parser = SseParser(salvage=salvage)
    frames = [frame for piece in pieces for frame in parser.feed(piece)]
    return frames + parser.finish()


def feed_all(parser: SseParser, pieces: Iterable[bytes], frames: list[Frame] | None = None) -> None:
    for piece in pieces:
        given_now = parser.feed(piece)
        if frames is not None:
            frames += given_now


def cut(stream: bytes, *places: int) -> list[bytes]:
    bounds = (0, *places, len(stream))
    return [stream[a:b] for a, b in pairwise(bounds)]


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, with empty reads, in two and in three at every place (long streams: in two)."""
    yield [stream]
    yield bytewise(stream)
    yield [piece for byte in bytewise(stream) for piece in (b"", byte)]
    for place in range(len(stream) + 1):
        yield cut(stream, place)
    if len(stream) <= 160:
        for places in combinations(range(len(stream) + 1), 2):
            yield cut(stream, *places)


LONG = "x" * 2048
BOM = "\N{BYTE ORDER MARK}"

# name of the web platform test where there is one → stream, and (data, event, id) of each frame
VECTORS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "one-event": ("data:1\n\n", [("1", "message", "")]),
    "format-bom": (f"{BOM}data:1\n\n{BOM}data:2\n\ndata:3\n\n", [("1", "message", ""), ("3", "message", "")]),
    "format-bom-2": (f"{BOM}{BOM}data:1\n\ndata:2\n\n", [("2", "message", "")]),
    "format-comments": (
        f"data:1\r:\0\n:\r\ndata:2\n:{LONG}\rdata:3\n:data:fail\r:{LONG}\ndata:4\n\n",
        [("1\n2\n3\n4", "message", "")],
    ),
    "format-data-before-final-empty-line": (
        "retry:1000\ndata:test1\n\nid:test\ndata:test2",
        [("test1", "message", "")],
    ),
    "format-field-data": (
        "data:\n\ndata\ndata\n\ndata:test\n\n",
        [("", "message", ""), ("\n", "message", ""), ("test", "message", "")],
    ),
    "event-data": (
        "data:msg\ndata:msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nMessage:msg\ndata\n\ndata:end\n\n",
        [("msg\nmsg", "message", ""), ("", "message", ""), ("end", "message", "")],
    ),
    "format-field-event": (
        "event:test\ndata:x\n\ndata:x\n\n",
        [("x", "test", ""), ("x", "message", "")],
    ),
    "format-field-event-with-spaces": ("event: a\ndata: x\n\ndata: y\n\n", [("x", "a", ""), ("y", "message", "")]),
    "format-field-event-last-wins": ("event:a\nevent:b\ndata:x\n\n", [("x", "b", "")]),
    "format-field-event-empty": ("event: \ndata:data\n\n", [("data", "message", "")]),
    "event-alone-dispatches-nothing": ("event:gone\n\ndata:x\n\n", [("x", "message", "")]),
    "format-field-id": ("id:test\ndata:x\n\n", [("x", "message", "test")]),
    "format-field-id-2": ("id:…\ndata:1\n\ndata:2\n\n", [("1", "message", "…"), ("2", "message", "…")]),
    "format-field-id-3": (
        "id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\ndata: d\n\n",
        [("a", "message", "1"), ("b", "message", "1"), ("c", "message", ""), ("d", "message", "")],
    ),
    "format-field-id-alone-persists": ("id:7\n\ndata:x\n\n", [("x", "message", "7")]),
    "format-field-id-null": ("id: \0\0\ndata: x\n\n", [("x", "message", "")]),
    "format-field-id-null-keeps-the-one-before": ("id:1\nid:2\0\ndata:x\n\n", [("x", "message", "1")]),
    "format-field-parsing": (
        "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
        [("\0\n 2\n1\n3\n\n4", "message", "")],
    ),
    "format-field-unknown": (
        "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacomment\ndata:test\n\n",
        [("test\n\ntest", "message", "")],
    ),
    "format-leading-space": ("data:\ttest\rdata: \ndata:test\n\n", [("\ttest\n\ntest", "message", "")]),
    "format-newlines": ("data:test\r\ndata\ndata:test\r\n\r", [("test\n\ntest", "message", "")]),
    "format-newlines-cr-only": ("data:1\r\rdata:2\r\r", [("1", "message", ""), ("2", "message", "")]),
    "format-newlines-crlf-only": ("data: 1\r\n\r\ndata: 2\r\n\r\n", [("1", "message", ""), ("2", "message", "")]),
    "format-newlines-extra-blank-lines": (
        "\n\n\ndata: 1\n\n\ndata: 2\n\n\n\n\n",
        [("1", "message", ""), ("2", "message", "")],
    ),
    "format-null-character": ("data:\0\n\n\n\n", [("\0", "message", "")]),
    "format-utf-8": ("data:ok…\n\n", [("ok…", "message", "")]),
    "eventsource-from-readable-stream": (
        "event:a\rdata: hel\r\ndata: lo\n\nid: 3\ndata: wor\rdata: ld\r\r",
        [("hel\nlo", "a", ""), ("wor\nld", "message", "3")],
    ),
    # not of the web platform tests: what chat streams bring
    "chat-chunks": (
        'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
        [('{"a":1}', "message", ""), ('{"b":2}', "message", ""), ("[DONE]", "message", "")],
    ),
    "chat-chunks-after-an-id": (
        "id: 1\ndata: a\n\ndata: b\n\ndata: c\n\n",
        [("a", "message", "1"), ("b", "message", "1"), ("c", "message", "1")],
    ),
    "chat-chunk-of-two-lines-between-plain-ones": (
        "data: a\n\ndata: b\ndata: c\n\ndata: d\n\n",
        [("a", "message", ""), ("b\nc", "message", ""), ("d", "message", "")],
    ),
    "an-empty-line-of-data-between-plain-ones": (
        "data: a\n\ndata: \n\ndata: \ndata: \n\ndata: b\n\n",
        [("a", "message", ""), ("", "message", ""), ("\n", "message", ""), ("b", "message", "")],
    ),
    "data-that-looks-like-a-field": ("data: data: x\n\n", [("data: x", "message", "")]),
    "lines-end-at-no-other-separator": (
        "data: a\u2028b\u2029c\x0bd\x0ce\x1cf\x85g\n\n",
        [("a\u2028b\u2029c\x0bd\x0ce\x1cf\x85g", "message", "")],
    ),
}


def seen(frames: list[Frame]) -> list[tuple[str, str, str]]:
    return [(frame.text, frame.event, frame.id) for frame in frames]


@pytest.mark.parametrize("name", VECTORS)
def test_the_standards_cases_hold_however_the_bytes_are_cut(name: str) -> None:
    stream, expected = VECTORS[name]
    for pieces in cuts(stream.encode()):
        assert seen(parse(pieces)) == expected, pieces


@pytest.mark.parametrize(
    ("name", "stream", "milliseconds"),
    [
        ("format-field-retry", "retry:3000\ndata:x\n\n", 3000),
        ("format-field-retry-alone", "retry: 1500\n\n", 1500),
        ("format-field-retry-bogus", "retry:2000\nretry:1000x\ndata:x\n\n", 2000),
        ("format-field-retry-empty", "retry:2000\nretry\nretry:\ndata:test\n\n", 2000),
        ("negative", "retry:-1\ndata:x\n\n", None),
        ("two spaces", "retry:  5\ndata:x\n\n", None),
        ("digits of another script", "retry:٣\ndata:x\n\n", None),
        ("more digits than a number may have", f"retry:{'9' * 5000}\ndata:x\n\n", None),
    ],
)
def test_only_ascii_digits_set_the_reconnection_time(name: str, stream: str, milliseconds: int | None) -> None:
    for pieces in ([stream.encode()], bytewise(stream.encode())):
        parser = SseParser()
        for piece in pieces:
            parser.feed(piece)
        assert parser.retry == milliseconds, name


def test_a_line_ended_by_cr_is_handled_before_the_next_byte_comes() -> None:
    parser = SseParser()
    assert parser.feed(b"data: x\r\r") == [Frame(b"x")]
    assert parser.feed(b"\n") == []
    assert parser.feed(b"data: y\r\n\r") == [Frame(b"y")]


def test_an_event_is_given_with_the_read_that_completes_it() -> None:
    parser = SseParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\ndata: ") == [Frame(b"x")]
    assert parser.feed(b"y\n\nda") == [Frame(b"y")]


def test_invalid_utf8_stays_in_the_bytes_and_is_replaced_in_the_text() -> None:
    (frame,) = parse([b"data: a\xffb\xe2\x82\n\n"])
    assert frame.data == b"a\xffb\xe2\x82"
    assert frame.text == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


def test_a_character_cut_by_a_read_is_whole_in_the_event() -> None:
    stream = "data: 千问\nevent: 名\n\n".encode()
    for pieces in cuts(stream):
        assert seen(parse(pieces)) == [("千问", "名", "")]


def test_comments_come_with_the_next_event_and_only_with_it() -> None:
    stream = b"id:1\nevent:error\n:HTTP_STATUS/400\ndata:{}\n\ndata: x\n\n: ping\n\n:pong\n\ndata: y\n\ndata: z\n\n"
    for pieces in cuts(stream):
        comments = [frame.comments for frame in parse(pieces)]
        assert comments == [("HTTP_STATUS/400",), (), (" ping", "pong"), ()]


@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        (b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"]),
        (b"data: a\n\ndata: [DONE]\n", [b"a", b"[DONE]"]),
        (b"data: a\r\n\r\ndata: [DONE]\r", [b"a", b"[DONE]"]),
        (b"data: a\n\nevent: x\ndata: b\nid: 3", [b"a", b"b"]),
        (b"data: a\n\nevent: x\n: nothing", [b"a"]),
        (b"data: a\n\n", [b"a"]),
        (b"", []),
        (b"\xef\xbb", []),
    ],
)
def test_salvage_dispatches_the_event_that_the_end_of_the_stream_cut_off(stream: bytes, kept: list[bytes]) -> None:
    whole = [frame.data for frame in parse([stream])]
    for pieces in cuts(stream):
        assert [frame.data for frame in parse(pieces, salvage=True)] == kept
        assert [frame.data for frame in parse(pieces)] == whole == [b"a"] * (b"a" in kept)


def test_a_salvaged_event_has_its_type_id_and_comments() -> None:
    (frame,) = parse([b":c\nid:9\nevent:end\ndata:x"], salvage=True)
    assert frame == Frame(b"x", "end", "9", ("c",))


def test_finish_gives_an_event_once() -> None:
    parser = SseParser(salvage=True)
    parser.feed(b"data: x")
    assert parser.finish() == [Frame(b"x")]
    assert parser.finish() == []


# An independent decoder as oracle. It reads decoded text, so the oracle is given what a browser's decoder would leave:
# invalid bytes replaced, one byte order mark removed. And it dispatches at any blank line once it has an event name,
# an id or a retry; the standard asks for a line of data, so those extra events are left out here.


def oracle(pieces: Iterable[bytes]) -> list[tuple[str, str, str]]:
    text, lines, events = codecs.getincrementaldecoder("utf-8")("replace"), SSELineDecoder(), SSEDecoder()
    decoded = [text.decode(piece) for piece in pieces] + [text.decode(b"", final=True)]
    whole = "".join(decoded)
    parts = [whole.removeprefix(BOM)] if whole.startswith(BOM) else decoded
    frames = []
    for line in [*(line for part in parts for line in lines.decode(part)), *lines.flush()]:
        has_data = bool(events._data)
        event = events.decode(line)
        if event is not None and has_data:
            frames.append((event.data, event.event, event.id))
    return frames


ATOMS = st.sampled_from(
    [
        *(b"data", b"event", b"id", b"retry", b"Data", b"da-ta", b"data: ", b"data:", b"event: ", b"id: ", b": "),
        *(b":", b":", b" ", b"\t", b"\0", b"\n", b"\n", b"\n\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"\r\r"),
        *(BOM.encode(), b"\xef\xbb", b"\xff", b"\xe2\x82", "\u2028".encode(), "\x85".encode(), b"\x0b", b"\x1c"),
        *("€".encode(), "千".encode(), "😀".encode(), b"x", b"1", b"{}", b"[DONE]", b'data: {"a":1}\n\n'),
    ]
)
STREAMS = st.lists(ATOMS, min_size=2, max_size=40).map(b"".join)


@given(STREAMS)
@settings(max_examples=300, deadline=None)
def test_agrees_with_an_independent_decoder_at_every_cut(stream: bytes) -> None:
    expected = oracle([stream])
    for pieces in [[stream], bytewise(stream), *(cut(stream, place) for place in range(len(stream) + 1))]:
        assert seen(parse(pieces)) == expected, pieces


@given(STREAMS, st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=300, deadline=None)
def test_no_cut_changes_frames_comments_or_the_salvaged_rest(stream: bytes, places: list[int]) -> None:
    pieces = cut(stream, *sorted(min(place, len(stream)) for place in places))
    for salvage in (False, True):
        assert (
            parse(pieces, salvage=salvage)
            == parse([stream], salvage=salvage)
            == parse(bytewise(stream), salvage=salvage)
        )


@given(st.lists(st.tuples(st.binary(max_size=12), st.text(max_size=4)), max_size=5))
@settings(max_examples=200, deadline=None)
def test_what_a_writer_sends_comes_back(events: list[tuple[bytes, str]]) -> None:
    wanted, stream = [], b""
    for data, name in events:
        data = data.replace(b"\r", b"")
        name = name.replace("\r", "").replace("\n", "").replace("\0", "")
        stream += b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
        stream += f"event: {name}\n\n".encode()
        wanted.append(Frame(data, name or "message"))
    assert parse([stream]) == parse(bytewise(stream)) == wanted


# Bounds


def endless(line: bytes) -> list[bytes]:
    """64 KiB reads, of the same line again and again, 2 MiB in all."""
    return [(line * (65536 // len(line) + 1))[:65536]] * 32


def peak_of(work: Callable[[], None]) -> int:
    """The bytes allocated at the worst moment of the work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [
        b"x" * 100,
        b"data: " + b"x" * 100,
        b":" * 100,
        b"data:\n",
        b"data\n",
        b"data: xy\n",
        b"data: xy\r",
        b"data:xy\r\n",
    ],
)
def test_an_endless_line_or_endless_data_lines_are_cut_off(line: bytes) -> None:
    parser = SseParser(max_event=1024 * 1024)
    with pytest.raises(ProtocolViolated, match="more than 1048576 bytes") as raised:
        feed_all(parser, endless(line))
    assert raised.value.code == "event_too_large"


@pytest.mark.parametrize(
    ("line", "read"), [(b"data:xy\n", 65536), (b"x" * 64, 2), (b"data: " + b"x" * 4000 + b"\n", 65536)]
)
def test_the_memory_of_an_event_stays_near_its_bound(line: bytes, read: int) -> None:
    parser = SseParser(max_event=256 * 1024)
    stream = b"".join(endless(line))[: 512 * 1024]

    def feed() -> None:
        with pytest.raises(ProtocolViolated):
            feed_all(parser, (stream[place : place + read] for place in range(0, len(stream), read)))

    assert peak_of(feed) < 10 * 256 * 1024


@pytest.mark.parametrize(
    "line", [b": ping\n", b": ping\n\n", b":" + b"x" * 5000 + b"\n", b"event: x\n", b"id: 1\n", b"foo: bar\n\n"]
)
def test_endless_heartbeats_are_no_error_and_take_no_memory(line: bytes) -> None:
    parser = SseParser(max_event=256 * 1024)

    def feed() -> None:
        for read in endless(line)[:8]:
            assert parser.feed(read) == []

    assert peak_of(feed) < 10 * 256 * 1024
    (frame,) = parser.feed(b"\n\ndata: x\n\n")
    assert frame.data == b"x"
    assert sum(map(len, frame.comments)) <= 16 * 1024


@pytest.mark.parametrize("read", [1, 3, 7, 1000])
def test_events_before_one_that_is_too_large_are_given_first(read: int) -> None:
    stream = b"data: a\n\ndata: b\n\ndata: " + b"x" * 100 + b"\n\ndata: c\n\n"
    parser = SseParser(max_event=64)
    frames: list[Frame] = []
    # with one read in all, the error waits for what comes next
    with pytest.raises(ProtocolViolated):
        feed_all(parser, [*cut(stream, *range(read, len(stream), read)), b""], frames)
    assert frames == [Frame(b"a"), Frame(b"b")]
    with pytest.raises(ProtocolViolated):
        parser.feed(b"data: d\n\n")


@pytest.mark.parametrize("size", [58, 59])
def test_the_bound_is_the_same_for_every_cut(size: int) -> None:
    stream = b"data: " + b"x" * size + b"\n\ndata: a\n\n"

    def too_large(pieces: list[bytes]) -> bool:
        parser = SseParser(max_event=64)
        try:
            for piece in pieces:
                parser.feed(piece)
            parser.finish()
        except ProtocolViolated:
            return True
        return False

    assert {too_large(pieces) for pieces in cuts(stream)} == {size == 59}


class Counting(SseParser):
    """Counts the bytes handed to the line splitter and the lines, to see that no work is done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = 0
        self.lines = 0

    def _plain(self, data: bytes, frames: list[Frame]) -> int:
        self.joined += len(data)
        return super()._plain(data, frames)

    def _line(self, line: bytes, frames: list[Frame]) -> None:
        self.lines += 1
        super()._line(line, frames)


@pytest.mark.parametrize("read", [1024, 65536])
@pytest.mark.parametrize("shape", ["one line", "many lines"])
def test_a_large_event_in_small_reads_is_scanned_once(read: int, shape: str) -> None:
    length = 4 * 1024 * 1024
    line = b"data: " + b"x" * (length if shape == "one line" else 250) + b"\n"
    stream = line * (length // len(line) or 1) + b"\n"
    parser = Counting()
    frames = [frame for piece in cut(stream, *range(read, len(stream), read)) for frame in parser.feed(piece)]
    assert len(frames) == 1
    assert frames[0].data == stream[:-2].replace(b"\ndata: ", b"\n").removeprefix(b"data: ")
    assert parser.lines <= stream.count(b"\n")
    assert parser.joined <= 2 * len(stream)


def test_an_eight_megabyte_event_is_taken_whole() -> None:
    image = b"A" * (8 * 1024 * 1024 - 6)
    stream = b"data: " + image + b"\n\n"
    assert parse(cut(stream, *range(65536, len(stream), 65536))) == [Frame(image)]
