"""On what terms a call is made, as its header fields say: whose it is, how urgent, for how long.

Raises InvalidRequest, which names the field, what was found in it and what was expected.
"""

import random
import re
from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from router.call import ANONYMOUS, PRIORITY_WORDS, Priority
from router.errors import InvalidRequest

PRIORITY_HEADER = "x-fleet-priority"
TIMEOUT_HEADER = "x-request-timeout"
MODEL_HEADER = "x-fleet-model"
PRIORITIES = dict(zip(PRIORITY_WORDS, Priority, strict=True))
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
TENANT = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
MAX_SHOWN = 40


class Terms(NamedTuple):
    """All of them; the same for every request with the same head."""

    tenant: str
    """What the client says; with keys nobody asks."""
    priority: Priority
    limit_s: float
    model: str | None
    """For a body that leaves it open."""
    traced: tuple[tuple[str, str], ...]
    """Fields of W3C Trace Context, passed on to the replica."""


def terms(headers: Mapping[str, str], tenant_header: str | None) -> Terms:
    """Raises InvalidRequest."""
    return Terms(
        tenant=tenant(headers, tenant_header) if tenant_header else ANONYMOUS,
        limit_s=time_limit_s(headers),
        priority=priority(headers),
        model=headers.get(MODEL_HEADER),
        traced=_traced(headers),
    )


def request_id(headers: Mapping[str, str]) -> str:
    """The client's, when well-formed; else a new one."""
    given = headers.get("x-request-id")
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(96):024x}"


def _traced(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Well-formed ones: no smuggled fields."""
    parent = headers.get("traceparent", "")
    if not TRACEPARENT.fullmatch(parent):
        return ()
    state = headers.get("tracestate", "")
    more = (("tracestate", state),) if TRACESTATE.fullmatch(state) else ()
    return ("traceparent", parent), *more


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
