"""On what terms a call is made, as its header fields say: whose it is, how urgent, for how long.

Raises InvalidRequest, which names the field, what was found in it and what was expected.
"""

import re
from collections.abc import Mapping
from math import inf

from router.call import ANONYMOUS, Priority
from router.errors import InvalidRequest

PRIORITY_HEADER = "x-fleet-priority"
TIMEOUT_HEADER = "x-request-timeout"
PRIORITIES = {priority.name.lower(): priority for priority in Priority}
TENANT = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
MAX_SHOWN = 40


def tenant(headers: Mapping[str, str], name: str) -> str:
    given = headers.get(name, ANONYMOUS)
    if given and not TENANT.fullmatch(given):
        raise _invalid(name, given, "1 to 64 letters, digits and . _ : @ / -")
    return given


def priority(headers: Mapping[str, str]) -> Priority:
    given = headers.get(PRIORITY_HEADER)
    if given is None:
        return Priority.NORMAL
    found = PRIORITIES.get(given.lower())
    if found is None:
        raise _invalid(PRIORITY_HEADER, given, "high, normal or low")
    return found


def time_limit_s(headers: Mapping[str, str]) -> float:
    """How long the client waits for the whole answer; it may shorten deadlines, never lengthen."""
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return inf
    if not SECONDS.fullmatch(given) or float(given) == 0.0:
        raise _invalid(TIMEOUT_HEADER, given, "seconds as a decimal number above 0, like 12.5")
    return float(given)


def _invalid(name: str, given: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"header {name}: found {given[:MAX_SHOWN]!r}, expected {expected}")
