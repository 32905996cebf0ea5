"""Whole events out of a byte stream: wherever it is cut, nothing is lost, split or made up."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sse import COMMENT, Splitter, events, has_event, payload

STREAM = b'data:{"index":1}\n\n:\n\ndata: {"index":2}\n\ndata: a\ndata: b\n\ndata: [DONE]\n\n'
CRLF = STREAM.replace(b"\n", b"\r\n")
WANTED = [b'{"index":1}', b'{"index":2}', b"a\nb", b"[DONE]"]


def cut(data, places):
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def ends_whole(block):
    return block.endswith((b"\n\n", b"\n\r\n"))


@pytest.mark.parametrize("stream", [STREAM, CRLF], ids=["lf", "crlf"])
def test_a_cut_at_every_byte_gives_the_same_events(stream):
    for place in range(len(stream) + 1):
        splitter = Splitter()
        out = [splitter.push(piece) for piece in cut(stream, [place])]
        assert b"".join(out) == stream
        assert all(ends_whole(block) for block in out if block)
        assert splitter.tail == b""
        assert [payload(e) for block in out for e in events(block)] == WANTED


@pytest.mark.parametrize("stream", [STREAM, CRLF], ids=["lf", "crlf"])
def test_byte_by_byte_each_event_comes_out_once_and_whole(stream):
    splitter = Splitter()
    out = [splitter.push(stream[i : i + 1]) for i in range(len(stream))]
    blocks = [block for block in out if block]
    assert b"".join(blocks) == stream
    assert all(len(events(block)) <= 1 for block in blocks)
    assert [payload(e) for block in blocks for e in events(block)] == WANTED


@given(st.lists(st.sampled_from([STREAM, CRLF, COMMENT, b"data: x\n\n"]), max_size=6), st.data())
def test_any_cuts_keep_every_byte_in_order_and_every_event_whole(parts, data):
    stream = b"".join(parts)
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    splitter = Splitter()
    out = [splitter.push(piece) for piece in cut(stream, places)]
    assert b"".join(out) == stream
    assert all(ends_whole(block) for block in out if block)


mutations = st.lists(
    st.tuples(
        st.integers(0, 200), st.sampled_from([b"", b"\n", b"\r", b"\r\n", b":", b"\xff", b"x"])
    ),
    max_size=6,
)


def told(blocks):
    return [payload(event) for block in blocks for event in events(block)]


@given(st.sampled_from([STREAM, CRLF]), mutations, st.data())
def test_a_spoilt_stream_tells_the_same_events_however_it_is_cut(stream, spoiling, data):
    for at, put in spoiling:
        stream = stream[:at] + put + stream[at + 1 :]
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    whole, cuts = Splitter(), Splitter()
    at_once = [whole.push(stream)]
    in_pieces = [cuts.push(piece) for piece in cut(stream, places)]
    assert told([*in_pieces, cuts.tail]) == told([*at_once, whole.tail])
    assert told(in_pieces) == told(at_once)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_garbage_is_passed_on_byte_for_byte(pieces):
    splitter = Splitter()
    out = b"".join(splitter.push(piece) for piece in pieces)
    assert out + splitter.tail == b"".join(pieces)
    assert splitter.is_aligned


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=20), st.integers(0, 50))
def test_a_tail_never_grows_over_its_bound_and_loses_nothing(pieces, bound):
    splitter = Splitter(max_tail_bytes=bound)
    out = b""
    for piece in pieces:
        out += splitter.push(piece)
        assert len(splitter.tail) <= bound
    assert out + splitter.tail == b"".join(pieces)


def test_an_event_over_a_megabyte_goes_through_unmended():
    splitter = Splitter()
    head, rest = b"data: " + b"x" * 1024**2, b"y" * 10 + b"\n\ndata: z\n\n"
    assert splitter.push(b"data: a\n\n") == b"data: a\n\n"
    assert splitter.is_aligned
    assert splitter.push(head) == head
    assert not splitter.is_aligned
    assert splitter.push(rest) == rest
    assert splitter.tail == b""
    assert not splitter.is_aligned, "what was sent in halves cannot be mended afterwards"


def test_a_tail_of_exactly_a_megabyte_is_held():
    splitter = Splitter()
    data = b"x" * 1024**2
    assert splitter.push(data) == b""
    assert splitter.tail == data
    assert splitter.is_aligned


def test_half_an_event_stays_in_the_tail():
    splitter = Splitter()
    assert splitter.push(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert splitter.tail == b"data: b\n"


@pytest.mark.parametrize("block", [b"", b"\n\n", COMMENT, b": hello\n:\n\n", b":\r\n\r\n"])
def test_comments_and_blank_lines_are_no_event(block):
    assert not has_event(block)
    assert events(block) == []


@pytest.mark.parametrize(
    "block", [b"data: x\n\n", b"data:x\n\n", b":\n\ndata: x\n\n", b":c\ndata: x\n\n", b"\r\ndata:x"]
)
def test_a_field_among_comments_is_an_event(block):
    assert has_event(block)


@pytest.mark.parametrize(
    ("event", "value"),
    [
        (b"data:x", b"x"),
        (b"data: x", b"x"),
        (b"data:  x", b" x"),
        (b"data:", b""),
        (b"data: a\ndata:b\ndata: ", b"a\nb\n"),
        (b"event: token\ndata: x\nid: 1", b"x"),
        (b":comment\r\ndata: x\r\n", b"x"),
        (b"database: x", b""),
    ],
)
def test_the_payload_is_what_the_format_says(event, value):
    assert payload(event) == value
