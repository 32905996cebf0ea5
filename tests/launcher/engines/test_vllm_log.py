"""What the start-up logs of vLLM, and of its fork, tell about progress and room."""

import pytest

from launcher.engines import ENGINES

# As recent releases write them, with the level, the time and the place in front.
START = [
    ("INFO 04-06 16:17:38 [__init__.py:239] Automatically detected platform cuda.", "reading"),
    ("INFO [core.py:58] Initializing a V1 LLM engine (v0.10.2) with config: model='m'", "reading"),
    ("INFO [gpu_model_runner.py:1777] Starting to load model org/m...", "loading the model"),
    ("INFO [weight_utils.py:292] Using model weights format ['*.safetensors']", "downloading"),
    ("INFO [weight_utils.py:308] Time spent downloading weights for org/m: 2.1 s", "weights are"),
    ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]", "loading"),
    ("INFO [default_loader.py:272] Loading weights took 1.31 seconds", "model loaded"),
    ("INFO [gpu_model_runner.py:1801] Model loading took 14.99 GiB and 2.4 s", "model loaded"),
    ("INFO [monitor.py:34] torch.compile takes 21.40 s in total", "compiling"),
    ("INFO [kv_cache_utils.py:849] GPU KV cache size: 434,768 tokens", "memory measured"),
    ("INFO [kv_cache_utils.py:853] Maximum concurrency for 8,192 tokens: 53.07x", "memory"),
    ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%| | 7/67", "capturing"),
    ("INFO [gpu_model_runner.py:2598] Graph capturing finished in 21 secs", "warmed up"),
    (
        "INFO [core.py:214] init engine (profile, create kv cache, warmup model) took 45 seconds",
        "warmed up",
    ),
    ("INFO [api_server.py:1912] Starting vLLM API server 0 on http://0.0.0.0:8000", "starting"),
    ("INFO:     Started server process [1]", "starting"),
    ("INFO:     Application startup complete.", "connected"),
    ("INFO:     Waiting for application startup.", None),
    ('INFO:     127.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 200 OK', None),
]
BOTH = pytest.mark.parametrize("engine", ["vllm", "aphrodite"])


@BOTH
@pytest.mark.parametrize(("line", "begins"), START)
def test_phases(engine, line, begins):
    phase = ENGINES[engine].phase_of(line)
    assert phase is None if begins is None else phase.startswith(begins)


@BOTH
@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("INFO 10-01 [kv_cache_utils.py:849] GPU KV cache size: 434,768 tokens", 434_768),
        ("INFO 10-01 [kv_cache_utils.py:849] GPU KV cache size: 960 tokens", 960),
        ("INFO 03-12 [executor_base.py:111] # cuda blocks: 27443, # CPU blocks: 2048", 439_088),
        ("INFO 08-12 [gpu_executor.py:122] # GPU blocks: 7406, # CPU blocks: 2048", 118_496),
        ("INFO [kv_cache_utils.py:853] Maximum concurrency for 8,192 tokens: 53.07x", None),
    ],
)
def test_room_is_what_its_cache_holds(engine, line, tokens):
    assert ENGINES[engine].token_budget_of(line) == tokens
