"""The copy of a container's log goes on where it ended, whoever was interrupted, and when."""

import os
import random
from contextlib import closing

import pytest

from launcher.docker.log_position import CopyHeld, LogCopy, Position, split_entry


def entry(second, nanos, text):
    return f"2026-01-02T03:04:{second:02}.{nanos:09}Z {text}".encode()


def second_of(found):
    return split_entry(found)[0]


def asked_from(entries, since):
    """What the engine gives: in its order, without what is older."""
    return [one for one in entries if since is None or second_of(one) >= since]


class Files:
    def __init__(self, folder):
        self.log, self.note = folder / "replica.log", folder / "replica.position"

    def copy(self, container_id="c1"):
        return LogCopy(container_id, self.log, self.note)

    def add(self, entries, container_id="c1"):
        with closing(self.copy(container_id)) as copy:
            for one in asked_from(entries, copy.since):
                copy.add(one)

    @property
    def text(self):
        return self.log.read_text()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def written(entries):
    return b"".join(split_entry(one)[1] for one in entries).decode()


ENTRIES = [entry(5 + i // 7, i % 3, f"line {i}\n") for i in range(60)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (b"1970-01-01T00:00:09.000000000Z a b\n", (9, b"a b\n")),
        (b"1970-01-01T00:00:09.123456789Z ", (9, b"")),
        (b"no time at all\n", (0, b"no time at all\n")),
        (b"1970-13-01T00:00:09.123456789Z x", (0, b"1970-13-01T00:00:09.123456789Z x")),
    ],
)
def test_an_entry_is_its_time_and_what_was_written(found, expected):
    assert split_entry(found) == expected


def test_a_note_survives_the_file_and_a_broken_one_is_none():
    position = Position("c1", 1_767_323_045, 12, 3456)
    assert Position.from_note(position.as_note()) == position
    assert Position.from_note(Position("c1").as_note()) == Position("c1")
    for broken in (b"", b"\0" * 160, b"c1 x y z", b"\xff\xfe"):
        assert Position.from_note(broken) is None


@pytest.mark.parametrize("first", range(0, 60, 7))
def test_a_second_reading_adds_only_what_is_new(files, first):
    files.add(ENTRIES[:first])
    files.add(ENTRIES)
    files.add(ENTRIES)
    assert files.text == written(ENTRIES)


def test_entries_whose_times_are_out_of_order_are_neither_lost_nor_doubled(files):
    entries = [entry(5, 9, "a\n"), entry(6, 1, "b\n"), entry(5, 8, "c\n"), entry(6, 0, "d\n")]
    for end in range(len(entries) + 1):
        files.add(entries[:end])
    assert files.text == "a\nb\nc\nd\n"


def test_a_long_line_in_parts_goes_on_in_its_middle(files):
    parts = [entry(5, 1, "x" * 100), entry(5, 1, "y" * 100), entry(5, 1, "z\n")]
    files.add(parts[:1])
    files.add(parts[:2])
    files.add(parts)
    assert files.text == "x" * 100 + "y" * 100 + "z\n"


@pytest.mark.parametrize("seed", range(20))
def test_a_launcher_killed_at_any_moment_is_made_good(files, seed):
    """Between a write and its note, or inside a write: the note is older than the file."""
    chance = random.Random(seed)
    end = 0
    while end < len(ENTRIES):
        end = min(len(ENTRIES), end + chance.randrange(1, 9))
        note = files.note.read_bytes() if files.note.exists() else b""
        files.add(ENTRIES[:end])
        if chance.random() < 0.5:
            files.note.write_bytes(note)
        if chance.random() < 0.3 and Position.from_note(note) is not None:
            noted = Position.from_note(note).file_bytes
            if files.note.read_bytes() == note:
                os.truncate(files.log, chance.randrange(noted, files.log.stat().st_size + 1))
    files.add(ENTRIES)
    assert files.text == written(ENTRIES)


def test_a_log_that_was_cut_goes_on(files):
    files.add(ENTRIES[:30])
    os.truncate(files.log, 0)
    files.add(ENTRIES)
    assert files.text == written(ENTRIES[30:])


def test_another_container_begins_at_its_beginning(files):
    files.add(ENTRIES)
    files.log.rename(files.log.with_suffix(".1"))
    files.add([entry(1, 0, "new\n")], "c2")
    assert files.text == "new\n"


def test_only_one_copies_at_a_time(files):
    first = files.copy()
    with pytest.raises(CopyHeld):
        files.copy()
    first.close()
    files.copy().close()


def test_a_full_disk_is_an_error_and_the_next_reading_makes_it_good(files, monkeypatch):
    files.add(ENTRIES[:10])
    original = os.write

    def fills_up(fd, data):
        if len(data) > 3:
            return original(fd, data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(OSError, match="No space"):
        files.add(ENTRIES[:11])
    monkeypatch.undo()
    files.add(ENTRIES)
    assert files.text == written(ENTRIES)
