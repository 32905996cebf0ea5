"""llama-server: what is written for it, and how it understands that."""

import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from launcher.engines import ENGINES
from launcher.engines.base import Fault, Mount
from launcher.engines.llamacpp import LlamaCppEngine
from launcher.engines.llamacpp_flags import FLAGS, RESERVED

FILE = {"id": "/srv/models/tiny.Q4_K_M.gguf", "name": "tiny"}


@pytest.fixture
def container(spec):
    def container(model=(), engine=()):
        one = spec({**FILE, **dict(model)}, {"name": "llamacpp", **dict(engine)})
        return LlamaCppEngine({}).container(one, "/cache")

    return container


def value(argv, flag):
    return argv[argv.index(flag) + 1] if flag in argv else None


def test_a_whole_container_with_a_gpu(container):
    found = container({"max_total_tokens": 4096}, {"version": "b5000"})
    assert found.image == "ghcr.io/ggml-org/llama.cpp:server-cuda-b5000"
    assert found.argv == (
        "--model", "/models/tiny.Q4_K_M.gguf",
        "--alias", "tiny",
        "--ctx-size", "16384",
        "--parallel", "4",
        "--n-gpu-layers", "999",
        "--metrics",
        "--slots",
        "--host", "0.0.0.0",
        "--port", "8080",
    )  # fmt: skip
    assert found.mounts == (Mount("/srv/models", "/models", is_read_only=True),)
    assert (found.port, found.shm_bytes, found.entrypoint) == (8080, None, None)


def test_without_gpus_it_has_an_image_of_its_own(container):
    found = container({"devices": "cpu"})
    assert found.image == "ghcr.io/ggml-org/llama.cpp:server"
    assert value(found.argv, "--n-gpu-layers") == "0"


def test_a_process_on_the_cpu_sees_no_gpu(spec):
    one = spec({**FILE, "devices": "cpu"}, "llamacpp")
    command = LlamaCppEngine({}).command(one, 31_000, "127.0.0.1")
    assert command.argv[:3] == ("llama-server", "--model", FILE["id"])
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""


def test_a_model_of_the_hub_is_kept_in_the_shared_folder(container):
    found = container({"id": "org/repo-GGUF:Q4_K_M", "name": None})
    assert value(found.argv, "--hf-repo") == "org/repo-GGUF:Q4_K_M"
    assert value(found.argv, "--alias") == "org/repo-GGUF:Q4_K_M"
    assert found.mounts == (Mount("/cache", "/cache"),)
    assert found.env == {"HF_HUB_CACHE": "/cache", "LLAMA_CACHE": "/cache/llama.cpp"}


@pytest.mark.parametrize(
    ("total", "parallel", "context", "slots"),
    [
        (None, None, "0", "1"),
        (None, 1, "0", "1"),
        (4096, None, "16384", "4"),
        (4096, 1, "4096", "1"),
        (4096, 16, "65536", "16"),
        (1000, "2", "2000", "2"),
    ],
)
def test_every_slot_has_all_tokens_that_a_call_may_have(container, total, parallel, context, slots):
    args = {} if parallel is None else {"parallel": parallel}
    argv = container({"max_total_tokens": total}, {"args": args}).argv
    assert (value(argv, "--ctx-size"), value(argv, "--parallel")) == (context, slots)
    assert argv.count("--parallel") == 1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"id": "/srv/models/folder"}, "the path of a .gguf file"),
        ({"id": "~/tiny.bin"}, "the path of a .gguf file"),
        ({"id": "gpt2"}, "org/repo:Q4_K_M of the hub"),
        ({"id": "a/b/c"}, "org/repo:Q4_K_M of the hub"),
        ({"quantize": "awq"}, "a file that is quantized"),
        ({"dtype": "float16"}, "the GGUF file says it"),
        ({"revision": "abc"}, "it takes the newest"),
        ({"max_input_tokens": 100}, "max_total_tokens: llamacpp limits prompt and answer together"),
    ],
)
def test_what_it_cannot_do_is_refused(model, expected, refused):
    assert refused(FILE, "llamacpp") == ""
    assert expected in refused({**FILE, **model}, "llamacpp")


def test_slots_of_a_size_that_nobody_said_are_refused(refused):
    found = refused(FILE, {"name": "llamacpp", "args": {"parallel": 4}})
    assert "expected the tokens that each slot shall hold" in found
    assert refused({**FILE, "max_total_tokens": 4096}, {"name": "llamacpp"}) == ""


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("b4499", "b4500 or later"),
        ("latest", "a build: b5000"),
        ("0.3.1", "a build: b5000"),
        ("b4500", ""),
        ("5000", ""),
    ],
)
def test_versions_are_builds(version, expected, refused):
    found = refused(FILE, {"name": "llamacpp", "version": version})
    assert expected in found if expected else found == ""


@pytest.mark.parametrize(
    ("version", "written", "words"),
    [
        (None, True, ["--flash-attn", "on"]),
        (None, False, ["--flash-attn", "off"]),
        (None, "auto", ["--flash-attn", "auto"]),
        ("b7000", True, ["--flash-attn", "on"]),
        ("b5000", True, ["--flash-attn"]),
        ("b5000", False, []),
    ],
)
def test_on_is_a_word_since_it_may_also_be_auto(container, version, written, words):
    engine = {"args": {"flash-attn": written}} | ({"version": version} if version else {})
    argv = list(container({}, engine).argv)
    assert argv[argv.index("8080") + 1 :] == words


def test_an_operator_may_leave_layers_to_the_cpu(container):
    argv = container({}, {"args": {"n-gpu-layers": 10}}).argv
    assert value(argv, "--n-gpu-layers") == "10"
    assert argv.count("--n-gpu-layers") == 1


def test_a_file_inside_an_operator_s_volume_is_the_container_s(container):
    found = container({"id": "/mnt/x.gguf"}, {"volumes": ["/srv/models:/mnt:ro"]})
    assert value(found.argv, "--model") == "/mnt/x.gguf"
    assert found.mounts == (Mount("/srv/models", "/mnt", is_read_only=True),)


# ---- with the real one

GONE = {"mlock", "no-mmap"}  # from the newest build


@pytest.fixture
def program(llama_server):
    return str(llama_server)


def said(program, *argv):
    return subprocess.run([program, *argv], capture_output=True, text=True, timeout=60)


def test_its_table_has_flags_that_the_program_has(program):
    offered = set(re.findall(r"--([a-z][a-z0-9.-]+)", said(program, "--help").stdout))
    assert {*FLAGS, *RESERVED} - offered <= GONE


def test_it_serves_what_was_asked_for_and_says_so_in_its_log(program, tiny_model, spec):
    model = {"id": str(tiny_model), "name": "tiny", "devices": "cpu", "max_total_tokens": 2048}
    engine, port = LlamaCppEngine({}), free_port()
    command = engine.command(spec(model, "llamacpp"), port, "127.0.0.1")
    with subprocess.Popen(
        [program, *command.argv[1:]], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if engine.phase_of(line) == "connected":
                break
        try:
            assert read(port, "/health") == {"status": "ok"}
            props = read(port, "/props")
            names = [model["id"] for model in read(port, "/v1/models")["data"]]
            assert (props["total_slots"], names) == (4, ["tiny"])
            assert props["default_generation_settings"]["n_ctx"] == 2048
            assert len(read(port, "/slots")) == 4
            assert opened(port, "/metrics").status == 200
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()
    assert process.returncode == 0
    phases = list(dict.fromkeys(filter(None, map(engine.phase_of, lines))))
    assert phases == ["loading the model", "making the slots", "model loaded", "connected"]
    assert [found for found in map(engine.token_budget_of, lines) if found] == [4 * 2048]
    assert not any(map(engine.fault_of, lines))


# Each comes back in its log, as it is.
HARMFUL = [
    {"tool_choice": "Xid 79"},
    {"tool_choice": "x\nCUDA error: unknown error", "tools": []},
    {"tool_choice": "x\nFailed to initialize NVML: Unknown Error", "tools": []},
    {"response_format": {"type": "CUDA error: device-side assert triggered"}},
    {"grammar": 'root ::= \nCUDA error: unknown error\n " fallen off the bus'},
    {"json_schema": {"$ref": "#/Failed to initialize NVML"}},
]


def test_no_client_can_have_it_restarted(program, tiny_model, spec, tmp_path):
    model = {"id": str(tiny_model), "name": "tiny", "devices": "cpu", "max_total_tokens": 512}
    engine, port, log = LlamaCppEngine({}), free_port(), tmp_path / "log"
    command = engine.command(spec(model, "llamacpp"), port, "127.0.0.1")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [program, *command.argv[1:], "--jinja"], stdout=output, stderr=output
        ) as process,
    ):
        try:
            until_it_serves(port)
            assert {asked(port, body) for body in HARMFUL} <= {400, 500}
            assert read(port, "/health") == {"status": "ok"}
        finally:
            process.send_signal(signal.SIGTERM)
    lines = log.read_text(errors="replace").splitlines()
    assert "CUDA error: unknown error" in "\n".join(lines)
    assert [line for line in lines if engine.serving_fault_of(line)] == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--no-such-flag"], Fault.BAD_FLAG),
        (["--parallel", "many"], Fault.BAD_FLAG),
        (["--model", "/no/such/file.gguf"], Fault.BAD_MODEL),
        (["--model", __file__], Fault.BAD_MODEL),
    ],
)
def test_how_it_ends_is_understood(program, words, fault):
    done = said(program, "--port", str(free_port()), *words)
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).splitlines()
    assert {ENGINES["llamacpp"].fault_of(line) for line in lines} - {None} == {fault}


def until_it_serves(port, limit_s=60):
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            return read(port, "/health")
        except OSError:
            assert time.monotonic() < deadline_s, "it never served"
            time.sleep(0.05)


def asked(port, body):
    """The status of its answer."""
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    headers = {"content-type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30
        ) as reply:
            return reply.status
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def opened(port, path):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30)


def read(port, path):
    with opened(port, path) as reply:
        return json.load(reply)


def test_replicas_of_one_model_write_the_same_but_their_place(specs):
    model = {**FILE, "replicas": 2, "max_total_tokens": 64}
    first, second = specs(model, "llamacpp")
    engine = LlamaCppEngine({})
    moved = replace(second, devices=first.devices)
    assert engine.command(first, 31_000, "::1") == engine.command(moved, 31_000, "::1")
