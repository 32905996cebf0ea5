"""One HTTP/1.1 reply read strictly, byte for byte: what is not exactly right is refused. Pure.

Narrower than any client on purpose: no chunk extensions, no trailers, no bare LF, one length.
"""

import re
from dataclasses import dataclass, field

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [^\r\n\0]*")
FIELD = re.compile(rb"([!#-'*+.0-9A-Z^-z|~-]+): ?([^\r\n\0]*)")
MAX_SIZE_LINE_BYTES = 16


class BadFraming(Exception):
    """The bytes are no valid reply; the message says where."""


@dataclass(slots=True)
class Reply:
    """Fed with what a connection brings, until `is_whole`."""

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    """Each chunk's data; one alone for a body with a length."""
    is_whole: bool = False
    has_bytes: bool = False
    _buffer: bytes = b""
    _length: int | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def has_head(self) -> bool:
        return self.status > 0

    @property
    def keeps_alive(self) -> bool:
        return self.is_whole and self.fields.get("connection", "").lower() != "close"

    def feed(self, data: bytes) -> None:
        """Raises BadFraming."""
        self.has_bytes = self.has_bytes or bool(data)
        self._buffer += data
        while self._step():
            pass
        if self.is_whole and self._buffer:
            raise BadFraming(f"bytes after the reply's end: {self._buffer[:60]!r}")

    def _step(self) -> bool:
        """Takes one piece off the buffer; false when it needs more."""
        if self.is_whole:
            return False
        if not self.has_head:
            return self._read_head()
        if self._length is not None:
            return self._read_length(self._length)
        return self._read_chunk()

    def _read_head(self) -> bool:
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return False
        first, *lines = head.split(b"\r\n")
        matched = STATUS_LINE.fullmatch(first)
        if matched is None:
            raise BadFraming(f"no status line: {first[:60]!r}")
        for line in lines:
            self._read_field(line)
        self.status, self._buffer = int(matched[1]), rest
        self._choose_framing()
        return True

    def _read_field(self, line: bytes) -> None:
        matched = FIELD.fullmatch(line)
        if matched is None:
            raise BadFraming(f"no header field: {line[:60]!r}")
        name = matched[1].decode().lower()
        if name in self.fields and name in ("content-length", "transfer-encoding", "x-request-id"):
            raise BadFraming(f"{name} stands twice")
        self.fields[name] = matched[2].decode("latin-1").strip()

    def _choose_framing(self) -> None:
        length, coding = self.fields.get("content-length"), self.fields.get("transfer-encoding")
        if (length is None) == (coding is None):
            raise BadFraming(f"content-length {length!r} and transfer-encoding {coding!r}")
        if coding is not None and coding != "chunked":
            raise BadFraming(f"transfer-encoding {coding!r}")
        if length is not None and not re.fullmatch(r"\d{1,12}", length):
            raise BadFraming(f"content-length {length!r}")
        self._length = None if length is None else int(length)

    def _read_length(self, length: int) -> bool:
        if len(self._buffer) < length:
            return False
        self.chunks, self._buffer = [self._buffer[:length]], self._buffer[length:]
        self.is_whole = True
        return True

    def _read_chunk(self) -> bool:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            if len(self._buffer) > MAX_SIZE_LINE_BYTES:
                raise BadFraming(f"no chunk size: {self._buffer[:60]!r}")
            return False
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", line):
            raise BadFraming(f"no chunk size: {line[:60]!r}")
        size = int(line, 16)
        if len(rest) < size + 2:
            return False
        if rest[size : size + 2] != b"\r\n":
            raise BadFraming(f"a chunk of {size} bytes is followed by {rest[size : size + 9]!r}")
        self._buffer = rest[size + 2 :]
        if size:
            self.chunks.append(rest[:size])
        self.is_whole = not size
        return True
