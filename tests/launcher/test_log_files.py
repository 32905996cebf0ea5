"""Logs: kept bounded, their ends and their growth read, whatever happens to the file."""

from pathlib import Path

import pytest

from launcher import log_files
from launcher.log_files import LogReader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replica-0.log"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_rotate_keeps_one_earlier_start(path) -> None:
    for text in ("first", "second", "third"):
        append(path, text)
        log_files.rotate(path)
    assert not path.exists()
    assert log_files.previous(path).read_text() == "third"


def test_an_empty_log_does_not_push_out_the_last_one(path) -> None:
    append(path, "worth keeping")
    log_files.rotate(path)
    path.touch()
    log_files.rotate(path)
    assert log_files.previous(path).read_text() == "worth keeping"


@pytest.mark.parametrize(("lines", "expected"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (9, None)])
def test_tail_gives_the_last_lines(path, lines: int, expected: list[str] | None) -> None:
    append(path, "a\nb\nc\n")
    assert log_files.tail(path, lines) == (["a", "b", "c"] if expected is None else expected)


def test_tail_reads_back_over_many_blocks(path) -> None:
    append(path, "".join(f"{number:0100d}\n" for number in range(5_000)))
    assert [int(line) for line in log_files.tail(path, 3_000)] == list(range(2_000, 5_000))


def test_tail_of_nothing_is_empty(path) -> None:
    assert log_files.tail(path, 5) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("loading\n\n", "loading"),
        ("RuntimeError: CUDA error\nbye\n", "RuntimeError: CUDA error"),
        ("Error: first\nError: second\nat exit\n", "Error: second"),
        ('serving\n{"time":1,"event":"call","error":null}\n', "serving"),
        ("Fatal Python error: no module\n<no Python frame>\n", "Fatal Python error: no module"),
        ("2026-01-02T03:04:05.6Z  INFO x: Connected\n", ""),
        ("2026-01-02T03:04:05.6Z  INFO x: no errors\nKilled\n", "Killed"),
        ("2026-01-02T03:04:05.6Z  ERROR x: bad\n2026-01-02 03:04:06,1 INFO bye\n", "ERROR x: bad"),
        ("2026-01-02T03:04:05.6Z \x1b[33m WARN\x1b[0m x: low\nbye\n", "WARN x: low"),
        ("2026-01-02T03:04:05Z WARN x: low\n2026-01-02T03:04:06Z INFO x: Connected\n", ""),
        ('{"timestamp":"t","level":"INFO","message":"ok"}\n', ""),
        (
            '{"timestamp":"t","level":"ERROR","fields":{"message":"bad"},"target":"x"}\n',
            "ERROR bad",
        ),
        ('{"timestamp":"t","level":"WARN","message":"low"}\n', "WARN low"),
        ("{not json, and no error\n[1]\n", "[1]"),
    ],
)
def test_the_last_words_are_the_telling_ones(path, text: str, said: str) -> None:
    append(path, text)
    assert log_files.last_words(path) == said


def test_the_reader_gives_whole_lines_once(path) -> None:
    reader = LogReader(path)
    assert reader.read_new() == []
    append(path, "one\ntw")
    assert reader.read_new() == ["one"]
    append(path, "o\n")
    assert reader.read_new() == ["two"]
    assert reader.read_new() == []


def test_the_reader_starts_over_in_a_new_file(path) -> None:
    append(path, "old\nhal")
    reader = LogReader(path)
    reader.read_new()
    log_files.rotate(path)
    append(path, "new and longer than the old one\n")
    assert reader.read_new() == ["new and longer than the old one"]


def test_a_reader_from_the_end_gives_only_what_comes(path) -> None:
    append(path, "old\n")
    reader = LogReader(path, from_end=True)
    append(path, "new\n")
    assert reader.read_new() == ["new"]


def test_a_log_that_grew_too_large_is_cut_under_its_writer(path) -> None:
    reader = LogReader(path)
    with path.open("a") as writer:
        writer.write("x" * 99 + "\n")
        writer.flush()
        reader.read_new()
        log_files.bound([path, path.with_name("absent.log")], max_bytes=50)
        assert path.stat().st_size == 0
        writer.write("after\n")
        writer.flush()
    assert path.read_text() == "after\n"
    assert reader.read_new() == ["after"]
    assert log_files.previous(path).stat().st_size == 100


def test_bytes_that_are_no_text_do_not_stop_reading(path) -> None:
    path.write_bytes(b"\xff\xfe ok\n")
    assert LogReader(path).read_new() == ["\ufffd\ufffd ok"]


def test_a_line_that_nests_too_deeply_is_no_last_word(tmp_path) -> None:
    path = tmp_path / "x.log"
    path.write_text("ERROR it ended\n" + '{"level":' + "[" * 100_000 + "\n")
    assert log_files.last_words(path) == "ERROR it ended"
