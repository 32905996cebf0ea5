"""The simulator's command line: TGI's launcher flags, plus the simulator's own.

Flags that TGI has read their environment twin as default (``--max-total-tokens`` is
``MAX_TOTAL_TOKENS``); a flag wins. A bad argument exits with 2, as TGI's parser does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import uvloop

from launcher.simulator.era import Era, era_of
from launcher.simulator.gpu_presets import GPU_PRESETS, GpuPreset
from launcher.simulator.serving import serve
from launcher.simulator.settings import (
    DEFAULT_PREFILL_TOKENS,
    MODEL_CONTEXT_TOKENS,
    BatchLimits,
    Limits,
    Pace,
    Settings,
)


def main(argv: list[str] | None = None) -> int:
    """Run one simulator until it is told to stop; gives the exit code."""
    return uvloop.run(serve(parse(argv, os.environ)))


def parse(argv: list[str] | None, environ: Mapping[str, str]) -> Settings:
    """Settings from arguments and environment; exits with 2 on a bad argument."""
    parser = _parser(environ)
    args = parser.parse_args(argv)
    limits, batch = _limits(args), _batch_limits(args)
    return Settings(
        host=args.host,
        port=args.port,
        model_id=args.model_id,
        era=args.version,
        gpu=GPU_PRESETS[args.gpu],
        limits=limits,
        batch=batch,
        pace=Pace(args.speed, args.time_scale, args.noise, args.seed_noise),
        token_model=args.token_model,
        eos_rate=args.eos_rate,
        api_key=args.api_key,
        cors_allow_origin=args.cors_allow_origin,
        load_s=args.load_s,
        accept_then_close=args.accept_then_close,
        graceful_termination_s=args.graceful_termination_timeout,
        json_output=args.json_output,
        prefix_caching=environ.get("PREFIX_CACHING", "1") not in ("0", "false"),
        enable_prefill_logprobs=args.enable_prefill_logprobs,
        messages_api=environ.get("MESSAGES_API_ENABLED", "").lower() == "true",
        faults=args.faults,
        validation_workers=args.validation_workers,
    )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launcher.simulator",
        description="A server that answers like TGI and runs no model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_tgi_flags(parser, environ)
    _add_own_flags(parser)
    return parser


def _add_tgi_flags(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    def flag(name: str, kind: Callable[[str], Any], default: Any, *aliases: str) -> None:
        twin = environ.get(name.lstrip("-").upper().replace("-", "_"))
        # A string default goes through `type`, so a bad twin is reported like a bad flag.
        parser.add_argument(name, *aliases, type=kind, default=twin or default, help=" ")

    count = _count
    flag("--port", _port, 3000)
    parser.add_argument("--host", "--hostname", default="127.0.0.1", help="address to bind")
    flag("--model-id", str, "simulated/model")
    flag("--max-concurrent-requests", count, 128)
    flag("--max-best-of", count, 2)
    flag("--max-stop-sequences", count, 4)
    flag("--max-top-n-tokens", count, 5)
    flag("--max-input-tokens", count, None, "--max-input-length")
    flag("--max-total-tokens", count, None)
    flag("--waiting-served-ratio", _positive, None)
    flag("--max-batch-prefill-tokens", count, None)
    flag("--max-batch-total-tokens", count, None)
    flag("--max-waiting-tokens", int, 20)
    flag("--max-batch-size", count, None)
    flag("--max-client-batch-size", count, 4)
    flag("--validation-workers", int, 2)
    flag("--payload-limit", count, None)
    flag("--api-key", str, None)
    flag("--cors-allow-origin", str, None)
    flag("--graceful-termination-timeout", _not_negative, 90.0)
    parser.add_argument("--json-output", action="store_true", help="log lines as JSON")
    parser.add_argument("--enable-prefill-logprobs", action="store_true", help=" ")


def _add_own_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--version", type=_era, default="3.3.5", help="TGI version to imitate")
    add("--token-model", choices=("text", "bpe"), default="text", help="what it generates")
    add("--gpu", choices=tuple(GPU_PRESETS), default="a100", help="whose step times to use")
    add("--speed", type=_positive, default=1.0, help="GPU speed; 0.5 is a slow replica")
    add("--time-scale", type=_not_negative, default=1.0, help="all waits shorter; 0: none")
    add("--noise", type=_share, default=0.05, help="share by which step times vary")
    add("--seed-noise", type=int, default=0, help="makes that variation repeatable")
    add("--eos-rate", type=_share, default=0.0, help="chance of each token to end the text")
    add("--load-s", type=_not_negative, default=1.0, help="load time before the port is bound")
    add("--accept-then-close", action="store_true", help="act like docker-proxy while loading")
    add("--faults", action="store_true", help="enable POST /simulator/faults")


def _limits(args: argparse.Namespace) -> Limits:
    era: Era = args.version
    max_total = args.max_total_tokens or era.default_max_total_tokens
    if max_total is None:
        max_total = min(MODEL_CONTEXT_TOKENS, _token_budget(args))
    max_input = args.max_input_tokens or era.default_max_input_tokens or max_total - 1
    return Limits(
        max_concurrent_requests=args.max_concurrent_requests,
        max_best_of=args.max_best_of,
        max_stop_sequences=args.max_stop_sequences,
        max_top_n_tokens=args.max_top_n_tokens,
        max_input_tokens=max_input,
        max_total_tokens=max_total,
        max_client_batch_size=args.max_client_batch_size,
        payload_bytes=args.payload_limit or era.payload_limit_bytes,
    )


def _batch_limits(args: argparse.Namespace) -> BatchLimits:
    budget = _token_budget(args)
    ratio = args.waiting_served_ratio
    prefill = DEFAULT_PREFILL_TOKENS
    if args.version.prefill_room_follows_input and not args.version.chunking:
        prefill = max(prefill, _limits(args).max_input_tokens)
    return BatchLimits(
        max_batch_prefill_tokens=args.max_batch_prefill_tokens or min(prefill, budget),
        max_batch_total_tokens=budget,
        max_batch_size=args.max_batch_size,
        max_waiting_tokens=args.max_waiting_tokens,
        waiting_served_ratio=args.version.waiting_served_ratio if ratio is None else ratio,
    )


def _token_budget(args: argparse.Namespace) -> int:
    preset: GpuPreset = GPU_PRESETS[args.gpu]
    budget: int = args.max_batch_total_tokens or preset.token_budget
    return budget


def _era(text: str) -> Era:
    try:
        return era_of(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _count(text: str) -> int:
    return _within(int, text, 1, None)


def _port(text: str) -> int:
    return _within(int, text, 0, 65535)


def _positive(text: str) -> float:
    value = _not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return value


def _not_negative(text: str) -> float:
    return _within(float, text, 0.0, None)


def _share(text: str) -> float:
    return _within(float, text, 0.0, 1.0)


_Number = TypeVar("_Number", int, float)


def _within(
    kind: Callable[[str], _Number], text: str, lowest: _Number, highest: _Number | None
) -> _Number:
    try:
        value = kind(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number") from exc
    if not (lowest <= value < float("inf")) or (highest is not None and value > highest):
        upper = "" if highest is None else f" and at most {highest}"
        raise argparse.ArgumentTypeError(f"found {text}, expected at least {lowest}{upper}")
    return value
