"""One line per event: batched, whole, and never a reason for a call to fail."""

import asyncio
import io
import os
import re

import orjson
import pytest

from router.event_log import FLUSH_AFTER_S, FLUSH_BYTES, EventLog

pytestmark = pytest.mark.virtual_time


def lines(out):
    return [orjson.loads(line) for line in out.getvalue().splitlines()]


async def test_lines_are_written_together_after_a_short_while():
    out = io.BytesIO()
    log = EventLog(out)
    for number in range(3):
        log.call({"id": f"c{number}", "status": 200})
    assert out.getvalue() == b""
    await asyncio.sleep(FLUSH_AFTER_S * 1.01)
    assert [(line["event"], line["id"]) for line in lines(out)] == [
        ("call", "c0"),
        ("call", "c1"),
        ("call", "c2"),
    ]
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    assert all(stamp.fullmatch(line["time"]) for line in lines(out)), "read beside other logs"
    log.close()


async def test_many_lines_do_not_wait():
    out = io.BytesIO()
    log = EventLog(out)
    for _ in range(FLUSH_BYTES // 100):
        log.call({"id": "c", "error": "x" * 100})
    assert out.getvalue()
    log.close()


async def test_closing_writes_what_is_left_and_leaves_no_timer():
    out = io.BytesIO()
    log = EventLog(out)
    log.event("health", replica="a")
    log.close()
    assert [line["event"] for line in lines(out)] == ["health"]
    log.close()
    assert not [t for t in asyncio.get_running_loop()._scheduled if not t.cancelled()]


async def test_without_call_lines_the_transitions_are_still_written():
    out = io.BytesIO()
    log = EventLog(out, calls=False)
    log.call({"id": "c"})
    log.event("health", replica="a")
    log.close()
    assert [line["event"] for line in lines(out)] == ["health"]


async def test_a_message_with_line_ends_stays_one_line():
    out = io.BytesIO()
    log = EventLog(out)
    log.call({"error": "a\nb\r\n\u2028c\x00"})
    log.close()
    [line] = lines(out)
    assert line["error"] == "a\nb\r\n\u2028c\x00"


async def test_a_reader_that_went_away_stops_nothing():
    reading, writing = os.pipe()
    out = os.fdopen(writing, "wb", buffering=0)
    os.close(reading)
    log = EventLog(out)
    for _ in range(3):
        log.call({"id": "c", "error": "x" * FLUSH_BYTES})
        log.event("health", replica="a")
        await asyncio.sleep(1.0)
    log.close()
    out.close()


async def test_a_closed_output_stops_nothing():
    out = io.BytesIO()
    log = EventLog(out)
    log.call({"id": "c"})
    out.close()
    await asyncio.sleep(1.0)
    log.call({"id": "d"})
    log.close()


class FullDisk(io.BytesIO):
    is_full = True

    def write(self, data):
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(data)


async def test_a_full_disk_loses_lines_and_later_ones_are_written_again():
    out = FullDisk()
    log = EventLog(out)
    log.call({"id": "lost"})
    await asyncio.sleep(1.0)
    out.is_full = False
    log.call({"id": "kept"})
    await asyncio.sleep(1.0)
    assert [line["id"] for line in lines(out)] == ["kept"]
    log.close()


@pytest.mark.parametrize("text", ["é", "\x7f", "𝕏" * 1000])
async def test_whatever_a_replica_wrote_can_be_logged(text):
    out = io.BytesIO()
    log = EventLog(out)
    log.call({"error": text})
    log.close()
    assert len(lines(out)) == 1
