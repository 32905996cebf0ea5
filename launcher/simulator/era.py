"""What differs between TGI versions: one frozen value per version, built from a change list.

Read by everything that renders, validates or schedules, so that no other file compares versions.
``CHANGES`` reads like a changelog: each entry holds the first version and what it changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Era:
    """The behaviours of one TGI version; the defaults are those of 1.4.4."""

    version: str = "1.4.4"
    # Wire
    sse_prefix: bytes = b"data:"
    v1_done: bool = False
    chat_object: str = "text_completion"
    chat_chunk_object: str = "text_completion"
    chat_eos_name: str = "eos_token"
    #: Where ``stream_options.include_usage`` puts the numbers: nowhere, on the chunk with the
    #: finish reason, or in a chunk of its own.
    usage_option: Literal["none", "ride", "extra"] = "none"
    usage_in_chunks: bool = False
    v1_stream_errors: Literal["flat", "openai"] = "flat"
    stream_input_length: bool = False
    #: Whether an incomplete stream's error differs from an incomplete body's.
    incomplete_stream_words: bool = False
    # Requests
    default_max_new_tokens: int | None = 100
    model_required: bool = True
    prompt_arrays: bool = False
    chat_zero_temperature: bool = False
    content_chunks: bool = False
    completion_stop: bool = False
    max_completion_tokens: bool = False
    continue_assistant: bool = False
    prefill_needs_flag: bool = False
    vertex_all_parameters: bool = False
    invocations_union: bool = False
    payload_limit_bytes: int = 2 * 1024 * 1024
    api_key: bool = False
    # Routes
    models_route: bool = False
    chat_tokenize_route: bool = False
    # /info and /metrics
    info_input_name: str = "max_input_length"
    info_scheduler_fields: bool = True
    info_client_batch: bool = False
    info_router: bool = False
    metrics_help: bool = False
    # Scheduler and limits
    chunking: bool = False
    block_tokens: int = 16
    #: 0: a request reserves all it asked for. Else a generation is served in slices this long.
    slice_tokens: int = 0
    slice_only_when_absent: bool = False
    waiting_served_ratio: float = 1.2
    zero_room_means_no_cap: bool = True
    default_max_input_tokens: int | None = 1024
    default_max_total_tokens: int | None = 2048
    #: Without a flag, prefill room for the longest prompt instead of a fixed number.
    prefill_room_follows_input: bool = False
    healthy_at_start: bool = False
    real_traffic_proves_health: bool = True


Changes = list[tuple[tuple[int, int, int], dict[str, Any]]]

CHANGES: Changes = [
    ((2, 0, 0), {"default_max_input_tokens": None, "default_max_total_tokens": None}),
    ((2, 0, 1), {"prompt_arrays": True, "info_client_batch": True}),
    (
        (2, 0, 2),
        {
            "chat_zero_temperature": True,
            "waiting_served_ratio": 0.3,
            "prefill_room_follows_input": True,
        },
    ),
    ((2, 0, 3), {"info_router": True}),
    (
        (2, 1, 0),
        {
            "sse_prefix": b"data: ",
            "chat_object": "chat.completion",
            "chat_chunk_object": "chat.completion.chunk",
            "content_chunks": True,
            "completion_stop": True,
            "info_input_name": "max_input_tokens",
        },
    ),
    ((2, 2, 0), {"v1_done": True}),
    (
        (2, 3, 0),
        {
            "chat_eos_name": "stop",
            "usage_option": "ride",
            "usage_in_chunks": True,
            "stream_input_length": True,
            "info_scheduler_fields": False,
            "models_route": True,
            "chat_tokenize_route": True,
            "api_key": True,
            "metrics_help": True,
            "zero_room_means_no_cap": False,
            "real_traffic_proves_health": False,
        },
    ),
    ((2, 4, 0), {"invocations_union": True}),
    ((2, 4, 1), {"v1_stream_errors": "openai", "payload_limit_bytes": 2_000_000}),
    (
        (3, 0, 0),
        {
            "default_max_new_tokens": None,
            "model_required": False,
            "continue_assistant": True,
            "prefill_needs_flag": True,
            "vertex_all_parameters": True,
            "incomplete_stream_words": True,
            "chunking": True,
            "block_tokens": 1,
            "slice_tokens": 1024,
            "slice_only_when_absent": True,
        },
    ),
    ((3, 0, 1), {"healthy_at_start": True, "real_traffic_proves_health": True}),
    ((3, 1, 1), {"slice_only_when_absent": False}),
    ((3, 2, 0), {"usage_option": "extra"}),
    ((3, 3, 0), {"max_completion_tokens": True}),
]

OLDEST = (1, 4, 0)


def parse_version(text: str) -> tuple[int, int, int]:
    """``3.3.5`` or ``3.3.6-dev0`` as numbers; ``ValueError`` says what was expected."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(?:-[\w.]+)?", text)
    if match is None:
        raise ValueError(f"found version {text!r}, expected three numbers such as 3.3.5")
    major, minor, patch = (int(part) for part in match.groups())
    return major, minor, patch


def era_of(text: str) -> Era:
    """The behaviours of a version; ``ValueError`` for one older than 1.4.0."""
    version = parse_version(text)
    if version < OLDEST:
        raise ValueError(f"found version {text!r}, expected 1.4.0 or newer")
    era = Era(version=text.removeprefix("v"))
    for first, changes in CHANGES:
        if version >= first:
            era = replace(era, **changes)
    return era
