"""``text-generation-launcher`` of the TGI image that tests make: TGI's command line, no model.

Reads arguments as strictly as the real one of that version, whose parser ends with 2 on a flag it
does not know, and hands those that mean something without a model to the simulator. Like a real
server it does not run without a GPU. ``SIMULATOR_ARGS`` adds flags of the simulator: pace, faults.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator

from launcher.simulator.cli import main as simulate
from launcher.simulator.startup_log import StartupLog

FIRST = (0, 0, 0)
NO_GPU = ("", "void", "none")

#: Flags with a value that the simulator knows too, and the version they came with.
SIMULATED = {
    "--model-id": FIRST,
    "--validation-workers": FIRST,
    "--max-concurrent-requests": FIRST,
    "--max-best-of": FIRST,
    "--max-stop-sequences": FIRST,
    "--max-top-n-tokens": FIRST,
    "--max-input-length": FIRST,
    "--max-input-tokens": (2, 0, 0),
    "--max-total-tokens": FIRST,
    "--waiting-served-ratio": FIRST,
    "--max-batch-prefill-tokens": FIRST,
    "--max-batch-total-tokens": FIRST,
    "--max-waiting-tokens": FIRST,
    "--max-batch-size": FIRST,
    "--max-client-batch-size": (2, 0, 1),
    "--hostname": FIRST,
    "--port": FIRST,
    "--cors-allow-origin": FIRST,
    "--api-key": (2, 3, 0),
    "--payload-limit": (2, 4, 1),
    "--graceful-termination-timeout": (3, 2, 2),
}
#: Flags with a value that say how a model is run.
OF_MODELS = {
    "--revision": FIRST,
    "--sharded": FIRST,
    "--num-shard": FIRST,
    "--quantize": FIRST,
    "--speculate": FIRST,
    "--dtype": FIRST,
    "--kv-cache-dtype": (2, 4, 0),
    "--cuda-graphs": (2, 0, 0),
    "--prometheus-port": (3, 3, 0),
    "--shard-uds-path": FIRST,
    "--master-addr": FIRST,
    "--master-port": FIRST,
    "--huggingface-hub-cache": FIRST,
    "--weights-cache-override": FIRST,
    "--cuda-memory-fraction": FIRST,
    "--rope-scaling": FIRST,
    "--rope-factor": FIRST,
    "--otlp-endpoint": FIRST,
    "--otlp-service-name": (2, 1, 0),
    "--watermark-gamma": FIRST,
    "--watermark-delta": FIRST,
    "--ngrok-authtoken": FIRST,
    "--ngrok-edge": FIRST,
    "--tokenizer-config-path": FIRST,
    "--lora-adapters": (2, 1, 0),
    "--usage-stats": (2, 3, 0),
}
SIMULATED_SWITCHES = {"--json-output": FIRST, "--enable-prefill-logprobs": (3, 0, 0)}
SWITCHES = {
    "--trust-remote-code": FIRST,
    "--disable-custom-kernels": FIRST,
    "--disable-grammar-support": FIRST,
    "--ngrok": FIRST,
    "--env": FIRST,
}
WITH_VALUE = SIMULATED | OF_MODELS
ALL_FLAGS = WITH_VALUE | SIMULATED_SWITCHES | SWITCHES
SHORT = {"-p": "--port", "-g": "--graceful-termination-timeout", "-e": "--env"}
REPEATED = ("--cors-allow-origin",)
CHOICES = {
    "--quantize": {
        "awq": FIRST,
        "eetq": FIRST,
        "exl2": (2, 1, 1),
        "gptq": FIRST,
        "marlin": (2, 1, 1),
        "bitsandbytes": FIRST,
        "bitsandbytes-nf4": FIRST,
        "bitsandbytes-fp4": FIRST,
        "fp8": (2, 0, 0),
        "compressed-tensors": (2, 4, 1),
    },
    "--dtype": {"float16": FIRST, "bfloat16": FIRST},
    "--kv-cache-dtype": {"fp8_e4m3fn": FIRST, "fp8_e5m2": FIRST},
    "--rope-scaling": {"linear": FIRST, "dynamic": FIRST},
    "--sharded": {"true": FIRST, "false": FIRST},
    "--usage-stats": {"on": FIRST, "off": FIRST, "no-stack": FIRST},
}


class UsageError(Exception):
    """What the parser says of an argument."""


def main(argv: list[str]) -> int:
    version = os.environ.get("TGI_VERSION", "3.3.5")
    try:
        flags = list(parsed(argv, version))
    except UsageError as error:
        print(f"error: {error}\n\nFor more information, try '--help'.", file=sys.stderr)
        return 2
    log = StartupLog(("--json-output", None) in flags)
    visible = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    log.info(f"NVIDIA_VISIBLE_DEVICES={visible}")
    if (problem := shard_problem(dict(flags), visible)) is not None:
        return refuse(log, *problem)
    known = [word for flag in flags for word in simulated(*flag)]
    extra = shlex.split(os.environ.get("SIMULATOR_ARGS", ""))
    return simulate(["--host", "0.0.0.0", "--version", version, *known, *extra])


def parsed(argv: list[str], version: str) -> Iterator[tuple[str, str | None]]:
    """Flags by their long names with their values; a switch has None."""
    since = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    words, seen = iter(argv), set[str]()
    for word in words:
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if ALL_FLAGS.get(name, (999,)) > since or (equals and name not in WITH_VALUE):
            usage = "\n\nUsage: text-generation-launcher [OPTIONS]"
            raise UsageError(f"unexpected argument '{word}' found{usage}")
        shown = f"{name} <{name[2:].upper().replace('-', '_')}>"
        if name in seen and name not in REPEATED:
            raise UsageError(f"the argument '{shown}' cannot be used multiple times")
        seen.add(name)
        if name not in WITH_VALUE:
            yield name, None
            continue
        value = value if equals else next(words, "")
        if not equals and (not value or re.match("-[^0-9]", value)):
            raise UsageError(f"a value is required for '{shown}' but none was supplied")
        choices = [choice for choice, first in CHOICES.get(name, {}).items() if first <= since]
        if choices and value not in choices:
            allowed = f"\n  [possible values: {', '.join(choices)}]"
            raise UsageError(f"invalid value '{value}' for '{shown}'{allowed}")
        yield name, value


def simulated(name: str, value: str | None) -> list[str]:
    if name == "--hostname" or name not in SIMULATED | SIMULATED_SWITCHES:
        return []  # a container listens on all its addresses
    return [name] if value is None else [name, value]


def shard_problem(flags: dict[str, str | None], visible: str) -> tuple[int, str] | None:
    """Which shard dies of what, if these GPUs do not do."""
    if visible in NO_GPU:
        return 0, "RuntimeError: Found no NVIDIA driver on your system."
    gpus = len(visible.split(","))
    shards = int(flags.get("--num-shard") or os.environ.get("NUM_SHARD") or gpus)
    if visible != "all" and shards > gpus:
        return gpus, "RuntimeError: CUDA error: invalid device ordinal"
    return None


def refuse(log: StartupLog, shard: int, message: str) -> int:
    log.info("Starting shard")
    log.error(f"Shard complete standard error output:\n\n{message}")
    log.error(f"Shard {shard} failed to start")
    log.info("Shutting down shards")
    log.plain("Error: ShardCannotStart")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
