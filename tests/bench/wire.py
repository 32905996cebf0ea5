"""What is sent in a benchmark: the requests of the load and the answers of the stand-in.

Both sides import this, so the load can compare every byte it gets with what it must get. Each
connection has a tag of its own, which the stand-in puts into its answer: a reply that went to the
wrong client does not match.
"""

from itertools import accumulate

TAG_CHARS = 8
TOLD_TOKENS = 16_000_000
PERMITS = 65_536
QUESTION = (
    "Write a short note for a new colleague: what does a load balancer in front of language model "
    "servers have to know about each server, which of it can it measure for itself, and what "
    "should it do when one of them stops answering in the middle of a sentence?"
)
INPUTS_MARK = b'"inputs":"'
LENGTH_MARK = b'"max_new_tokens":'

INFO = (
    b'{"model_id":"stand-in","version":"2.2.0","max_concurrent_requests":%d,"max_best_of":2,'
    b'"max_input_tokens":32767,"max_total_tokens":32768,"max_batch_total_tokens":%d}'
) % (PERMITS, TOLD_TOKENS)
"""Says its token budget, so that the router has nothing to learn and no call ever waits."""

METRICS = b"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n"

UNARY_FIELDS = (
    b"content-type: application/json\r\nx-compute-type: 1-stand-in\r\nx-compute-time: 0.0001\r\n"
    b"x-compute-characters: 250\r\nx-total-time: 0\r\nx-validation-time: 0\r\nx-queue-time: 0\r\n"
    b"x-inference-time: 0\r\nx-time-per-token: 0\r\nx-prompt-tokens: 52\r\n"
    b"x-generated-tokens: 20\r\naccess-control-allow-origin: *\r\nvary: origin\r\n"
)
"""As many as TGI sends: the router reads and passes on each of them."""

STREAM_FIELDS = (
    b"content-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
    b"x-compute-type: 1-stand-in\r\naccess-control-allow-origin: *\r\nvary: origin\r\n"
    b"transfer-encoding: chunked\r\n"
)


def tag_of(number: int) -> bytes:
    """Eight letters that name a connection, the same width for all."""
    return b"c%07d" % number


def request(path: str, tag: bytes, tokens: int) -> bytes:
    """A whole request as a plain HTTP client sends it."""
    inputs = b"%b %b" % (tag, QUESTION.encode())
    body = b'{%b%b","parameters":{%b%d,"details":false}}' % (
        *(INPUTS_MARK, inputs),
        *(LENGTH_MARK, tokens),
    )
    return (
        b"POST %b HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\naccept: */*\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    ) % (path.encode(), len(body), body)


def answer(tag: bytes) -> bytes:
    """The body of a unary reply."""
    return b'{"generated_text":"%b: it depends, but mostly on how many tokens it holds."}' % tag


def event(tag: bytes, index: int, *, is_last: bool) -> bytes:
    """One token as TGI streams it; the last one carries the whole text."""
    text = b'"%b"' % tag if is_last else b"null"
    return (
        b'data: {"index":%d,"token":{"id":%d,"text":" %b","logprob":-0.25,"special":false},'
        b'"generated_text":%b,"details":null}\n\n'
    ) % (index, index, tag, text)


def events(tag: bytes, count: int) -> list[bytes]:
    return [event(tag, i, is_last=i == count) for i in range(1, count + 1)]


def event_ends(count: int) -> list[int]:
    """Where each event of a stream of `count` ends, in bytes; the same for every tag."""
    return list(accumulate(map(len, events(tag_of(0), count))))
