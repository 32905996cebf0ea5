"""What is read from the last words of an engine, and what is not."""

import json

import pytest

from launcher.engines import ENGINES
from launcher.engines.base import Fault

TGI = ["simulator", "tgi"]
VLLM = ["vllm", "aphrodite"]
PYTHON = [*TGI, *VLLM]
CUDA = ["tgi", "vllm", "aphrodite", "llamacpp"]

LINES = [
    # arguments
    (TGI, "error: unexpected argument '--max-input-lenght' found", Fault.BAD_FLAG),
    (TGI, "error: invalid value 'int8' for '--quantize <QUANTIZE>'", Fault.BAD_FLAG),
    (TGI, "error: the argument '--port <PORT>' cannot be used multiple times", Fault.BAD_FLAG),
    (TGI, "error: a value is required for '--port <PORT>' but none was supplied", Fault.BAD_FLAG),
    (
        TGI,
        'Error: ArgumentValidation("`max_input_tokens` must be < `max_total_tokens`")',
        Fault.BAD_FLAG,
    ),
    (PYTHON, "api_server.py: error: unrecognized arguments: --max-seqs 3", Fault.BAD_FLAG),
    (PYTHON, "vllm serve: error: argument --dtype: invalid choice: 'x'", Fault.BAD_FLAG),
    (["llamacpp"], "error: invalid argument: --mlock", Fault.BAD_FLAG),
    (["llamacpp"], 'error while handling argument "--parallel": stoi', Fault.BAD_FLAG),
    # GPU memory
    (
        CUDA,
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB.",
        Fault.GPU_MEMORY,
    ),
    (TGI, "Not enough memory to handle 4096 prefill tokens.", Fault.GPU_MEMORY),
    (TGI, "Not enough memory to handle `max_total_tokens=32768`", Fault.GPU_MEMORY),
    (
        VLLM,
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine.",
        Fault.GPU_MEMORY,
    ),
    (
        VLLM,
        "ValueError: Free memory on device (10.0/80.0 GiB) on startup is less than desired GPU "
        "memory utilization (0.9, 72.0 GiB).",
        Fault.GPU_MEMORY,
    ),
    (
        ["llamacpp"],
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 3584.00 MiB on device 0: "
        "cudaMalloc failed: out of memory",
        Fault.GPU_MEMORY,
    ),
    (
        ["llamacpp"],
        "E llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        Fault.GPU_MEMORY,
    ),
    # the GPU itself
    (CUDA, "Failed to initialize NVML: Unknown Error", Fault.GPU_LOST),
    (CUDA, "RuntimeError: No CUDA GPUs are available", Fault.GPU_LOST),
    (CUDA, "CUDA error: no CUDA-capable device is detected", Fault.GPU_LOST),
    (
        CUDA,
        "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        Fault.GPU_LOST,
    ),
    (CUDA, "RuntimeError: CUDA error: uncorrectable ECC error encountered", Fault.GPU_LOST),
    (CUDA, "CUDA error: an illegal memory access was encountered", Fault.GPU_LOST),
    (CUDA, "CUDA error: device-side assert triggered", Fault.GPU_LOST),
    (CUDA, "CUDA error: unspecified launch failure", Fault.GPU_LOST),
    (CUDA, "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", Fault.GPU_LOST),
    # the host
    (TGI, "Shard process was signaled to shutdown with signal 9 rank=0", Fault.HOST_MEMORY),
    (CUDA, "terminate called after throwing an instance of 'std::bad_alloc'", Fault.HOST_MEMORY),
    (CUDA, "OSError: [Errno 12] Cannot allocate memory", Fault.HOST_MEMORY),
    # the model
    (
        PYTHON,
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: R)",
        Fault.NO_ACCESS,
    ),
    (PYTHON, "huggingface_hub.errors.GatedRepoError: 403 Client Error.", Fault.NO_ACCESS),
    (
        PYTHON,
        "OSError: org/m is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'",
        Fault.NO_ACCESS,
    ),
    (
        TGI,
        "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: "
        "https://huggingface.co/api/models/x/y/revision/main",
        Fault.NO_ACCESS,
    ),
    (PYTHON, "huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.", Fault.BAD_MODEL),
    (PYTHON, "HFValidationError: Repo id must be in the form 'repo_name'", Fault.BAD_MODEL),
    (TGI, "ValueError: Unsupported model type frobnicate", Fault.BAD_MODEL),
    (
        VLLM,
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
        Fault.BAD_MODEL,
    ),
    (
        ["llamacpp"],
        "E gguf_init_from_file: failed to open GGUF file '/models/x.gguf' (No such file)",
        Fault.BAD_MODEL,
    ),
    (["llamacpp"], "E gguf_init_from_reader: failed to read magic", Fault.BAD_MODEL),
    (
        ["llamacpp"],
        "error loading model architecture: unknown model architecture: 'x'",
        Fault.BAD_MODEL,
    ),
    # nothing for good
    (
        TGI,
        "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: "
        "https://cdn-lfs-us-1.hf.co/repos/ab/cd?X-Amz-Expires=3600",
        None,
    ),
    (TGI, "403 Client Error: Forbidden for url: https://cas-bridge.xethub.hf.co/a/b", None),
    (
        VLLM,
        "ERROR 11-20 12:00:00 [repo_utils.py:60] Error retrieving file list: 401 Client Error. "
        "(Request ID: Root=1), retrying 1 of 2",
        None,
    ),
    (
        TGI,
        "2026-11-20T10:00:00Z  WARN text_generation_launcher: Could not fetch tokenizer config: "
        "request error: HTTP status client error (401 Unauthorized) for url (https://x/y)",
        None,
    ),
    (VLLM, "WARNING [pynvml] Failed to initialize NVML: Driver/library version mismatch", None),
    (
        VLLM,
        "(EngineCore) NCCL WARN Call to ibv_create_qp failed with error Cannot allocate memory",
        None,
    ),
    (
        ["llamacpp"],
        "failed to mlock 1073741824-byte buffer (after previously locking 0 bytes): Cannot "
        "allocate memory",
        None,
    ),
    (["llamacpp"], "llama_mmap: warning: mmap failed", None),
    (["llamacpp"], "0.00.200.706 W srv    operator(): got exception: CUDA out of memory", None),
    (PYTHON, "ConnectionError: HTTPSConnectionPool(host='huggingface.co'): Max retries", None),
    (PYTHON, "requests.exceptions.HTTPError: 503 Server Error: Service Unavailable", None),
    (PYTHON, "404 Client Error: Not Found for url: .../resolve/main/adapter_config.json", None),
    (TGI, "Download encountered an error:", None),
    (TGI, "Error: DownloadError", None),
    (TGI, "No safetensors weights found for model org/m at revision None. Converting", None),
    (VLLM, "INFO 04-06 16:17:38 [__init__.py:239] Automatically detected platform cuda.", None),
    (["llamacpp"], "0.00.537.508 I srv  llama_server: model loaded", None),
]
CASES = [(engine, line, fault) for engines, line, fault in LINES for engine in engines]


@pytest.mark.parametrize(("engine", "line", "fault"), CASES)
def test_faults_are_told_by_their_own_words(engine, line, fault):
    assert ENGINES[engine].fault_of(line) is fault


QUOTING = [
    "2024-03-22T10:00:00Z  INFO generate{{parameters=GenerateParameters {{ best_of: None, stop: "
    '["{0}"] }}}}: text_generation_router::server: router/src/server.rs:343: Success',
    "INFO 04-06 16:17:38 [logger.py:39] Received request cmpl-1: prompt: '{0}', params: x",
    "ERROR [serving.py:1] Error with model error=ErrorInfo(message='no model `{0}`')",
    'INFO:     172.17.0.1:41234 - "GET /v1/{0} HTTP/1.1" 404 Not Found',
    "jinja2.exceptions.TemplateError: unknown role: {0}",
    "pydantic_core.ValidationError: 1 validation error [type=int, input_value='{0}']",
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", QUOTING)
def test_what_a_client_wrote_is_never_taken_for_the_engine_s_words(engine, form):
    for _, words, fault in LINES:
        if fault is not None:
            assert ENGINES[engine].fault_of(form.format(words)) is None, words


def test_the_parameters_of_a_call_are_not_believed_in_json_either():
    span = {"parameters": 'GenerateParameters { stop: ["CUDA out of memory"] }', "name": "generate"}
    line = json.dumps({"level": "INFO", "message": "Success", "span": span})
    assert ENGINES["tgi"].fault_of(line) is None


ILLEGAL = "CUDA error: an illegal memory access was encountered"
SHARD = "2026-11-20T10:00:00.123456Z ERROR {0}: {1}"
DECODE = "batch{batch_size=2}:decode:decode{size=2}: text_generation_router_v3::client"
JSON = {"timestamp": "t", "level": "ERROR", "target": "text_generation_launcher"}

WHILE_IT_SERVES = [
    (TGI, SHARD.format("text_generation_launcher", f"RuntimeError: {ILLEGAL}"), True),
    (TGI, SHARD.format(DECODE, f"backends/v3/src/client/mod.rs:45: Server error: {ILLEGAL}"), True),
    (
        TGI,
        SHARD.format(
            "\x1b[2mtext_generation_client\x1b[0m",
            "router/client/src/lib.rs:33: Server error: Unexpected <class 'RuntimeError'>: "
            f"{ILLEGAL}",
        ),
        True,
    ),
    (
        TGI,
        json.dumps(
            JSON | {"fields": {"message": f"Method Decode failed.\nRuntimeError: {ILLEGAL}"}}
        ),
        True,
    ),
    (TGI, json.dumps(JSON | {"message": f"asked for {ILLEGAL}"}), False),
    (TGI, json.dumps(JSON | {"message": ILLEGAL, "level": "INFO"}), False),
    (TGI, json.dumps(JSON | {"message": ILLEGAL, "target": "text_generation_router"}), False),
    (TGI, json.dumps(JSON | {"message": ILLEGAL, "span": {"parameters": "x"}}), False),
    (TGI, json.dumps([ILLEGAL]), False),
    (TGI, f'{{"level": "{ILLEGAL}", "x": ' + "[" * 100_000, False),
    (TGI, SHARD.format("text_generation_router::server", ILLEGAL), False),
    (TGI, SHARD.format("text_generation_launcher", f"Template: {ILLEGAL}"), False),
    (TGI, ILLEGAL, False),
    (
        VLLM,
        f"(EngineCore_DP0 pid=271) ERROR 08-20 10:01:02 [core.py:700] RuntimeError: {ILLEGAL}",
        True,
    ),
    (
        VLLM,
        "(VllmWorker TP0 pid=271) ERROR 08-20 10:01:02 [multiproc_executor.py:522] "
        f"torch.AcceleratorError: {ILLEGAL}",
        True,
    ),
    (VLLM, f"(APIServer pid=1) ERROR 08-20 10:01:02 [serving_chat.py:2] {ILLEGAL}", False),
    (VLLM, f"ERROR 08-20 10:01:02 [serving_chat.py:200] {ILLEGAL}", False),
    (VLLM, f"(EngineCore_DP0 pid=2) ERROR 08-20 10:01:02 [core.py:7] bad regex: {ILLEGAL}", False),
    (VLLM, "ERROR 08-20 10:01:02 [serving_chat.py:200] GPU is lost", False),
    (["llamacpp"], f"0.01.002.003 E ggml_cuda_compute_forward: {ILLEGAL}", False),
    (["llamacpp"], "Failed to initialize NVML: Unknown Error", False),
]


@pytest.mark.parametrize(
    ("engine", "line", "is_believed"),
    [(engine, line, told) for engines, line, told in WHILE_IT_SERVES for engine in engines],
)
def test_of_one_that_serves_only_lines_that_no_client_writes_are_believed(
    engine, line, is_believed
):
    fault = Fault.GPU_LOST if is_believed else None
    assert ENGINES[engine].serving_fault_of(line) is fault


@pytest.mark.parametrize("engine", ENGINES)
def test_a_line_of_any_length_is_judged_quickly(engine):
    for words in ("(EngineCore) ERROR " + "1 " * 100_000, SHARD.format("a:" * 100_000, "x" * 9)):
        assert ENGINES[engine].serving_fault_of(f"{words} {ILLEGAL}") is None


@pytest.mark.parametrize("words", ["Xid 79", "GPU is lost", "it has fallen off the bus"])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_only_the_kernel_writes_is_no_engine_s_fault(engine, words):
    assert ENGINES[engine].fault_of(words) is None


@pytest.mark.parametrize(
    ("fault", "recoverable", "is_slow"),
    [
        (Fault.BAD_FLAG, False, False),
        (Fault.BAD_MODEL, False, False),
        (Fault.NO_ACCESS, True, True),
        (Fault.GPU_MEMORY, True, False),
        (Fault.GPU_LOST, True, False),
        (Fault.HOST_MEMORY, True, False),
    ],
)
def test_only_what_stays_wrong_is_given_up(fault, recoverable, is_slow):
    assert (fault.recoverable, fault.is_slow) == (recoverable, is_slow)
