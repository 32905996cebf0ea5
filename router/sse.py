"""Server-sent events as bytes: whole events out of a byte stream. Pure, no JSON.

The relay passes on whole events only, so that a reply that goes bad can always be ended by an
event of our own, never in the middle of a replica's. Format: WHATWG HTML, section 9.2.
"""

COMMENT = b":\n\n"
"""Keeps a silent stream open; TGI sends it every 15 s. Not an event."""


class Splitter:
    """Takes bytes as they arrive and gives back as many whole events as they complete.

    `tail` is what belongs to an event that is not whole yet. Over `max_tail_bytes` it is handed
    out as it is and `is_aligned` turns false: the stream goes on, but cannot be mended any more.
    """

    __slots__ = ("is_aligned", "max_tail_bytes", "tail")

    def __init__(self, max_tail_bytes: int = 1024**2) -> None:
        self.max_tail_bytes = max_tail_bytes
        self.tail = b""
        self.is_aligned = True

    def push(self, data: bytes) -> bytes:
        """All events completed by `data`, as one run of bytes; empty when none is."""
        if self.tail:
            data = self.tail + data
        elif data.endswith(b"\n\n"):  # the usual read: whole events only
            return data
        end = _end_of_last_event(data)
        self.tail = data[end:]
        if len(self.tail) > self.max_tail_bytes:
            self.tail, self.is_aligned = b"", False
            return data
        return data[:end]


def _end_of_last_event(data: bytes) -> int:
    """One past the last blank line; 0 when there is none. Lines end in LF or CRLF."""
    lf = data.rfind(b"\n\n")
    crlf = data.rfind(b"\n\r\n")
    if lf < 0 and crlf < 0:
        return 0
    return lf + 2 if lf > crlf else crlf + 3


def end_of_first(data: bytes) -> int:
    """One past the first event's blank line; all of it when there is none."""
    ends = [at + len(mark) for mark in (b"\n\n", b"\n\r\n") if (at := data.find(mark)) >= 0]
    return min(ends, default=len(data))


def events(data: bytes) -> list[bytes]:
    """The whole events in `data`, comments left out, each without its blank line."""
    blocks = data.replace(b"\r\n", b"\n").split(b"\n\n")
    return [block for block in blocks if has_event(block)]


def has_event(block: bytes) -> bool:
    """Whether there is a field in it: comments alone are not an event."""
    if block.startswith(b"data:"):
        return True
    return any(line and not line.startswith(b":") for line in block.splitlines())


def payload(event: bytes) -> bytes:
    """The value of its data field; several data lines are joined, as the format says."""
    values = [line[5:].removeprefix(b" ") for line in event.splitlines() if line[:5] == b"data:"]
    return b"\n".join(values)
