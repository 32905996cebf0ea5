"""Engine versions as comparable numbers. Pure; used by the engines' flag tables."""

import re

Version = tuple[int, int, int]

LATEST: Version = (9999, 0, 0)  # no version given: the newest an engine's table knows
_ANY_PATCH = 9999  # "3.3" names the newest 3.3.x, as image tags do
_PATTERN = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:[-+.][A-Za-z0-9.+-]+)?")


def parse_version(text: str | None) -> Version | None:
    """`"2.4.1-rocm"` as (2, 4, 1), nothing as LATEST; None where it is no version."""
    if text is None:
        return LATEST
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch) if patch is not None else _ANY_PATCH


def show_version(version: Version) -> str:
    """(2, 4, 1) as "2.4.1"; an unnamed patch is left out."""
    shown = version[:2] if version[2] == _ANY_PATCH else version
    return ".".join(map(str, shown))
