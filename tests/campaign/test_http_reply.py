"""The strict reader takes right replies however they are split, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaign.http_reply import BadFraming, Reply

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-a: b\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n"
)


def read(data):
    reply = Reply()
    reply.feed(data)
    return reply


@given(st.sampled_from([LENGTH, CHUNKED]), st.data())
def test_a_right_reply_is_read_however_it_is_split(whole, data):
    reply, at = Reply(), 0
    while at < len(whole):
        assert not reply.is_whole
        size = data.draw(st.integers(1, len(whole) - at))
        reply.feed(whole[at : at + size])
        at += size
    assert reply.is_whole
    assert reply.keeps_alive
    assert reply.body == (b"hello" if whole is LENGTH else b"hello0123456789")


def test_a_cut_reply_is_not_whole():
    for whole in (LENGTH, CHUNKED):
        for cut in range(len(whole)):
            assert not read(whole[:cut]).is_whole


@pytest.mark.parametrize(
    "wrong",
    [
        LENGTH + b"x",
        CHUNKED + b"\r\n",
        LENGTH.replace(b"HTTP/1.1", b"HTTP/1.0"),
        LENGTH.replace(b"Content-Length: 5", b"Content-Length: 5\r\ncontent-length: 5"),
        LENGTH.replace(b"Content-Length: 5", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        LENGTH.replace(b"Content-Length: 5\r\n", b""),
        LENGTH.replace(b"x-a: b", b"x a: b"),
        LENGTH.replace(b"Content-Length: 5", b"Content-Length: -5"),
        CHUNKED.replace(b"hello\r\n", b"hell\r\n"),
        CHUNKED.replace(b"5\r\n", b"5;a=b\r\n"),
        CHUNKED.replace(b"5\r\nhello", b"\r\nhello"),
        CHUNKED.replace(b"chunked", b"gzip"),
    ],
)
def test_anything_else_is_refused(wrong):
    with pytest.raises(BadFraming):
        read(wrong)
