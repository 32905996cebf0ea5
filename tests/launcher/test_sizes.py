"""Sizes mean what they mean to accelerate, or are refused with the right spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.sizes import GIB, MIB, parse_size_bytes, show_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (1_000, 1_000),
        ("1GB", 1_000_000_000),
        ("1GiB", 1_073_741_824),
        ("600MB", 600_000_000),
        ("600MiB", 629_145_600),
        ("600KB", 600_000),
        ("1KiB", 1_024),
        ("2.5GB", 2_500_000_000),
        ("0.5GiB", 536_870_912),
        (" 1GB", 1_000_000_000),
        ("1 GB", 1_000_000_000),
        ("12 GiB", 12_884_901_888),
        ("0GB", 0),
        # accelerate has no tera; bytes beyond doubt all the same
        ("1TB", 1_000_000_000_000),
        ("1.5TiB", 1_649_267_441_664),
        # unusual spellings that are bytes to accelerate, too
        ("1gib", 1_073_741_824),
        ("1gB", 1_000_000_000),
        # exact where a float is not
        ("0.1GB", 100_000_000),
        ("1.001KB", 1_001),
    ],
)
def test_a_size_is_read_as_accelerate_reads_it(size, expected):
    assert parse_size_bytes(size) == expected


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        ("1gb", "a small b means bits, write 1GB"),
        ("1Gb", "a small b means bits, write 1GB"),
        ("2.5mb", "a small b means bits, write 2.5MB"),
        ("1Gib", "a small b means bits, write 1GiB"),
        ("10", "a unit is missing, write 10GiB"),
        ("10.", "a unit is missing"),
        ("1GB ", "nothing after the unit"),
        ("1GB\n", "nothing after the unit"),
        ("-1GB", "not less than nothing"),
        (-1, "not less than nothing"),
        (True, "not true or false"),
        ("1g", "write 1GiB (powers of 1024) or 1GB (of 1000)"),
        ("1Gbit", "bytes, not bits"),
        ("1,5GB", "a point for decimals"),
        ("3PB", "the units are KB, MB, GB, TB"),
        ("", "a size like 20GiB"),
        ("GB", "a size like 20GiB"),
        ("infGB", "a size like 20GiB"),
        ("1e3GB", "a size like 20GiB"),
        ("1_000MB", "a size like 20GiB"),
        ("٣GB", "a size like 20GiB"),
        ("9" * 5000 + "GB", "a size like 20GiB"),
        (2.5, "a whole number of bytes"),
        (None, "a whole number of bytes"),
    ],
)
def test_what_is_no_size_is_refused_with_a_hint(size, hint):
    with pytest.raises(ValueError, match="a size like 20GiB") as caught:
        parse_size_bytes(size)
    assert hint in str(caught.value)


@given(st.one_of(st.text(max_size=30), st.integers(), st.none(), st.floats(), st.binary()))
def test_any_value_is_a_size_or_refused(size):
    try:
        size_bytes = parse_size_bytes(size)
    except ValueError as exc:
        refusal = str(exc)
    else:
        assert size_bytes >= 0
        return
    assert refusal.startswith("a size like ")


@given(st.from_regex(r" *[0-9]{1,15}(\.[0-9]{1,5})? *[KMGT](iB|B)", fullmatch=True))
def test_every_text_of_the_right_form_is_a_size(text):
    assert parse_size_bytes(text) >= 0


@given(st.integers(1, 10**6), st.sampled_from(["KB", "KiB", "MB", "MiB", "GB", "GiB", "TB"]))
def test_a_size_grows_with_its_number(number, unit):
    assert parse_size_bytes(f"{number}{unit}") == number * parse_size_bytes(f"1{unit}")


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (600 * MIB, "600 MiB"),
        (13.5 * GIB, "13.5 GiB"),
        (24 * GIB, "24.0 GiB"),
        (2048 * GIB, "2.0 TiB"),
        (-0.25 * GIB, "-256 MiB"),
    ],
)
def test_a_size_is_shown_in_its_largest_unit(size_bytes, expected):
    assert show_bytes(size_bytes) == expected
