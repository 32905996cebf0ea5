"""How the story of one call is shown: where its time went, widest part first, then what happened.

Used by `launcher explain`. Pure: a story as the router's admin API tells it becomes lines. On a
terminal they keep to its width.
"""

import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

Story = Mapping[str, Any]
LEAST_MS = 1.0
"""Narrower parts are not worth a line; the router's clock has no finer steps either."""
_INDENT = " " * 2
_MS_WIDTH = 10


def lines(story: Story, width: int | None = None) -> Iterator[str]:
    """The whole story; without a width no line is broken."""
    yield from _heading(story, width)
    yield ""
    yield f"{'ms':>{_MS_WIDTH}}  share  where the time went"
    for part in _worth_a_line(story):
        head = f"{part['ms']:>{_MS_WIDTH},.0f}  {_share(part['share'])}  "
        yield from _wrapped(head, _part(part, story), width)
    if not story["steps"]:
        return
    yield ""
    yield f"{'at ms':>{_MS_WIDTH}}  what happened"
    for step in story["steps"]:
        yield from _wrapped(_at(step["at_ms"]), _step(step, story), width)
    if story["steps_left_out"]:
        left_out = f"{story['steps_left_out']:,} steps in the middle were not kept"
        yield from _wrapped(" " * (_MS_WIDTH + 2), left_out, width)
    yield from _wrapped(_at(story["total_ms"]), _end(story), width)


def brief(story: Story) -> str:
    """One line, for a list of calls."""
    return f"{story['total_ms']:>{_MS_WIDTH},.0f} ms  {_status(story):>7}  {story['id']}"


def from_log(call: Mapping[str, Any]) -> Story:
    """The same from the call's line in the router's log: no steps, and parts as far as it tells."""
    tries, total_ms = [one for one in call.get("tries") or [] if "error" in one], call["total_ms"]
    known_ms = call["queue_ms"] + sum(one["ms"] for one in tries)
    parts: list[dict[str, Any]] = [{"part": "queue", "ms": call["queue_ms"]}]
    parts += [{"part": "attempt", "failed": one["error"], **one} for one in tries]
    if call["replica"] and not (tries and call["error"]):  # else the last attempt failed as well
        rest_ms = max(0.0, total_ms - known_ms)
        parts.append({"part": "attempt", "ms": rest_ms, "replica": call["replica"]})
    for part in parts:
        part["share"] = part["ms"] / total_ms if total_ms else 0.0
    return {
        **call,
        "running": False,
        "arrived": _before(call["time"], total_ms),
        "error_class": call.get("error_type"),
        "parts": sorted(parts, key=lambda part: -part["ms"]),
        "steps": [],
        "steps_left_out": 0,
    }


def _before(ended: str, ms: float) -> str:
    arrived = datetime.fromisoformat(ended) - timedelta(milliseconds=ms)
    return arrived.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- heading


def _heading(story: Story, width: int | None) -> Iterator[str]:
    served = f" by {story['replica']}" if story["replica"] else ""
    if story["attempts"] > 1:
        served += f", {story['attempts']} attempts"
    yield from _wrapped("", f"call {story['id']}: {_status(story)}{served}", width)
    kind = "stream" if story["stream"] else "no stream"
    model = f", model {story['model']}" if story["model"] else ""
    yield from _wrapped(_INDENT, f"{story['route']} ({kind}){model}", width)
    usual = (None, "normal")
    named = [(word, story.get(word)) for word in ("tenant", "priority", "key")]
    terms = [f"{word} {value}" for word, value in named if value not in usual]
    if terms:
        yield from _wrapped(_INDENT, ", ".join(terms), width)
    took = "so far" if story["running"] else "took"
    times = f"arrived {story['arrived']}, {took} {story['total_ms']:,.0f} ms{_tokens(story)}"
    yield from _wrapped(_INDENT, times, width)
    if story["error"]:
        yield from _wrapped(_INDENT, f"{story['error_class']}: {story['error']}", width)


def _status(story: Story) -> str:
    return "running" if story["running"] else str(story["status"])


def _tokens(story: Story) -> str:
    named = (("in", story["prompt_tokens"]), ("out", story["generated_tokens"]))
    known = [f"{count:,} {name}" for name, count in named if count]
    return f", tokens: {', '.join(known)}" if known else ""


# ---- parts


def _worth_a_line(story: Story) -> list[Mapping[str, Any]]:
    parts = list(story["parts"])
    return [part for part in parts if part["ms"] >= LEAST_MS] or parts[:1]


def _share(share: float) -> str:
    return f"{share:>5.0%}"


def _part(part: Mapping[str, Any], story: Story) -> str:
    text = _part_words(part, story)
    return f"{text}; it failed: {part['failed']}" if part.get("failed") else text


def _part_words(part: Mapping[str, Any], story: Story) -> str:
    replica = part.get("replica") or "a replica"
    match part["part"]:
        case "body":
            return "reading and parsing the request"
        case "routing":
            return "choosing a replica"
        case "queue":
            return f"waiting in the queue: {part['why']}" if "why" in part else "waiting for room"
        case "connect":
            return f"connecting to {replica}"
        case "first_event":
            return f"{replica}: until its {'first event' if story['stream'] else 'whole answer'}"
        case "answer":
            return f"{replica}: {'streaming' if story['stream'] else 'passing on'} its answer"
        case "attempt":
            return f"{replica}: from asking to its last word"
        case "retry":
            return "between two attempts"
        case "quiet":
            return "a quiet moment before it was tried alone"
    return str(part["part"])


# ---- steps


def _step(step: Mapping[str, Any], story: Story) -> str:
    match step["step"]:
        case "read":
            return f"request read and parsed, {step['body_bytes']:,} bytes"
        case "queued":
            return f"joined the queue at place {step['position']:,}: {step['why']}"
        case "granted":
            return f"{step['replica']} chosen{', to be tried alone' if step['alone'] else ''}"
        case "sent":
            return f"sent, on a {'new' if step['new_connection'] else 'kept'} connection"
        case "answering":
            what = "first event" if story["stream"] else "answer"
            return f"{step['replica']}: {what} passed on to the client"
        case "failed":
            return f"{step['replica']} failed: {step['error_class']}: {step['message']}"
        case "next":
            return f"decided: {step['decision']}"
        case "quiet":
            return "waits a moment before it is tried alone: are all replicas dying?"
        case "continued":
            return f"to be continued after {step['events']:,} events that the client has"
        case "hedged":
            return f"it says nothing: {step['replica']} is asked as well, and the first one counts"
        case "hedge_failed":
            return f"{step['replica']} failed as well: {step['error_class']}: {step['message']}"
    return str(step["step"])


def _end(story: Story) -> str:
    if story["running"]:
        return "still running"
    if story["error"]:
        return f"ended with {story['status']}: {story['error_class']}"
    return f"ended with {story['status']}"


# ---- layout


def _at(ms: float) -> str:
    return f"{ms:>{_MS_WIDTH},.0f}  "


def _wrapped(head: str, text: str, width: int | None) -> list[str]:
    """`head`, then the text, broken under where it began."""
    line = " ".join(text.split())
    if width is None:
        return [head + line]
    indent = " " * len(head)
    return textwrap.wrap(
        line, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )
