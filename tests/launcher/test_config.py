"""Cluster configs: what they mean, and the lines a wrong one is answered with."""

from pathlib import Path

import pytest

from launcher.config import ClusterConfig, load_cluster_config
from launcher.engines import flags, simulator, tgi
from launcher.engines.base import Mount
from router.errors import ConfigError


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text):
        Path("c.yaml").write_text(text)
        return load_cluster_config(Path("c.yaml"))

    return load


@pytest.fixture
def problems(load):
    def problems(text):
        with pytest.raises(ConfigError) as caught:
            load(text)
        return str(caught.value).splitlines()

    return problems


def test_a_model_id_is_enough(load):
    config = load("models: [a/b]")
    assert (config.cluster, config.engine.name, config.runtime.name) == (
        "default", "simulator", "process",
    )  # fmt: skip
    (model,) = config.models
    assert (model.id, model.served_name, model.replicas, model.devices) == (
        "a/b", "a/b", None, None,
    )  # fmt: skip
    assert (model.replica_count, model.shards, model.wanted_devices.kind) == (1, 1, "auto")
    assert config.router.port == 8080


def test_short_forms_stand_for_mappings(load):
    config = load("models: [{id: a, engine: tgi}]\nengine: simulator\nruntime: process")
    assert config.engine_of(config.models[0]).name == "tgi"
    assert config.engine.name == "simulator"


def test_there_is_one_replica_per_device(load):
    config = load("models: [{id: a, devices: [0, 'cuda:1', GPU-8c0f, MIG-8c0f/1/0]}]")
    assert config.models[0].replica_count == 4
    assert config.models[0].devices.groups == (
        ("cuda:0",), ("cuda:1",), ("GPU-8c0f",), ("MIG-8c0f/1/0",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "replicas", "shards"),
    [
        ("devices: auto", 1, 1),
        ("devices: auto, replicas: 3, gpus_per_replica: 2", 3, 2),
        ("devices: 4", 4, 1),
        ("devices: 4, gpus_per_replica: 2", 2, 2),
        ("devices: 4, gpus_per_replica: 2, replicas: 2", 2, 2),
        ("devices: all, engine: tgi", None, 1),
        ("devices: all, gpus_per_replica: 4, engine: tgi", None, 4),
        ("devices: cpu, replicas: 2", 2, 1),
        ("devices: 'cuda:1'", 1, 1),
        ("devices: [[0, 1], [2, 3]]", 2, 2),
        ("devices: [[0, 1], 2]", 2, 2),
        ("devices: {first: 0, second: 1}, gpus_per_replica: 2", 1, 2),
        ("devices: {type: single, device: 'cuda:0'}", 1, 1),
        ("devices: {type: multiple, device_map: {a: 'cuda:0', b: 'cuda:1'}}", 1, 2),
    ],
)
def test_devices_say_how_many_replicas_of_how_many_gpus(load, written, replicas, shards):
    (model,) = load(f"models: [{{id: a, {written}}}]").models
    assert (model.replica_count, model.shards) == (replicas, shards)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("20GiB", 20 * 2**30), ("600MB", 600_000_000), ("1024", 1024), ("{0: 20GiB}", {0: 20 * 2**30}),
     ("{1: 1GB, 0: 2GB}", {0: 2_000_000_000, 1: 1_000_000_000})],
)  # fmt: skip
def test_memory_is_bounded_for_all_gpus_or_by_number(load, written, expected):
    assert load(f"models: [{{id: a, max_memory: {written}}}]").models[0].max_memory == expected


def test_containers_get_folders_memory_and_an_image(load):
    config = load(
        "models: [a]\n"
        "engine: {name: tgi, image: 'r.io/tgi:3', shm_size: 1GiB,"
        " volumes: ['/a:/b', '~/c:/d:ro']}\n"
        "runtime: {name: docker, docker: {memory: 64GiB, pull: never, model_cache: /models}}"
    )
    assert (config.engine.image, config.engine.shm_size) == ("r.io/tgi:3", 2**30)
    assert config.engine.volumes == [
        Mount("/a", "/b"), Mount(str(Path.home() / "c"), "/d", is_read_only=True),
    ]  # fmt: skip
    docker = config.runtime.docker
    assert (docker.memory, docker.pull, docker.cache_dir) == (2**36, "never", Path("/models"))
    assert (docker.gpu_injection, docker.log_max_size, docker.network) == ("auto", "10m", None)


def test_flags_of_one_replica_come_over_the_engine_s(load):
    engine = load(
        "models: [{id: a, replicas: 3}]\n"
        "engine: {args: {speed: 1, gpu: a100}, per_replica: [{}, {speed: 0.5}]}"
    ).engine
    assert [engine.args_at(position) for position in range(3)] == [
        {"speed": 1, "gpu": "a100"},
        {"speed": 0.5, "gpu": "a100"},
        {"speed": 1, "gpu": "a100"},
    ]


def test_state_is_kept_where_the_desktop_standard_says(load, monkeypatch):
    config = load("cluster: c\nmodels: [a]")
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert config.state_dir == Path("/x/gpu-fleet/c")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert config.state_dir == Path("/h/.local/state/gpu-fleet/c")
    assert load("models: [a]\nruntime: {state_dir: ~/s}").state_dir == Path("/h/s")


def test_a_config_and_its_secrets_do_not_show_when_printed(load):
    text = "models: [a]\nengine: {env: {HF_TOKEN: hunter2}}\nrouter: {engine_api_key: hunter2}"
    assert "hunter2" not in repr(load(text))


MODEL_KEYS = ", ".join(ClusterConfig.model_fields["models"].annotation.__args__[0].model_fields)
QUANTIZE_14 = "auto, bitsandbytes, bitsandbytes-nf4, bitsandbytes-fp4, gptq, awq, eetq"


def tgi_flags(version):
    return ", ".join(name for name, flag in tgi.FLAGS.items() if flag.is_in(version))


GPU = "a GPU like cuda:0 (or its index), or a UUID like GPU-8c0f... or MIG-..."
FORMS = (
    "auto, all, cpu, a number of GPUs, or GPUs: cuda:0, a UUID like GPU-8c0f..., a list of them, "
    "one for each replica"
)
WRONG = {
    "no models": (
        "cluster: c",
        "models: found nothing, expected what is served: at least one",
    ),
    "empty models": ("models: []", "models: found a list of 0 entries, expected at least 1 entry"),
    "no id": ("models: [{name: a}]", "models[0].id: found nothing, expected hub id or local path of"
              " the model"),
    "number as id": (
        "models: [123]",
        "models[0]: found the whole number 123, expected a mapping (key: value lines)",
    ),
    "number as id in a mapping": (
        "models: [{id: 123}]",
        'models[0].id: found the whole number 123, expected a text: write "123", with the quotes',
    ),
    "misspelled key": (
        "models: [{id: a, quantise: awq}]",
        f"models[0].quantise: found an unknown key, expected one of: {MODEL_KEYS}"
        " (did you mean quantize?)",
    ),
    "too few devices": (
        "models: [a, {id: b, replicas: 2, devices: [0]}]",
        "models[1].devices: found devices for 1 replica, expected 2, as many as replicas",
    ),
    "too many devices": (
        "models: [{id: b, replicas: 1, devices: [0, 1]}]",
        "models[0].devices: found devices for 2 replicas, expected 1, as many as replicas",
    ),
    "a device twice": (
        "models: [{id: b, devices: [0, 1, 'cuda:0']}]",
        'models[0].devices[2]: found "cuda:0" a second time, expected each device once',
    ),
    "no device": (
        "models: [{id: b, devices: [gpu0]}]",
        'models[0].devices[0]: found a text "gpu0", expected a GPU like cuda:0 (or its index), '
        "or a UUID like GPU-8c0f... or MIG-...",
    ),
    "negative device": (
        "models: [{id: b, devices: [-1]}]",
        "models[0].devices[0]: found the whole number -1, expected a GPU like cuda:0 "
        "(or its index), or a UUID like GPU-8c0f... or MIG-...",
    ),
    "no devices at all": (
        "models: [{id: b, devices: []}]",
        "models[0].devices: found a list of 0 entries, expected 1 to 256 entries, "
        "one for each replica",
    ),
    "zero replicas": (
        "models: [{id: b, replicas: 0}]",
        "models[0].replicas: found the whole number 0, expected at least 1",
    ),
    "replicas switched on": (
        "models: [{id: b, replicas: on}]",
        "models[0].replicas: found on, which YAML reads as true, expected a whole number",
    ),
    "input fills the total": (
        "models: [{id: b, max_input_tokens: 10, max_total_tokens: 10}]",
        "models[0].max_input_tokens: found 10, expected less than max_total_tokens (10): "
        "an answer needs room",
    ),
    "two models with one id": (
        "models: [a, a]",
        'models[1].id: found the name "a", which models[0] has, '
        "expected a name of its own for each model",
    ),
    "two models with one name": (
        "models: [a, {id: b, name: a}]",
        'models[1].name: found the name "a", which models[0] has, '
        "expected a name of its own for each model",
    ),
    "one GPU for two models": (
        "models: [{id: a, devices: [0]}, {id: b, devices: [1, 0]}]\nengine: tgi",
        'models[1].devices[1]: found "cuda:0", which models[0] has, '
        "expected each device once, or max_memory for both models",
    ),
    "one GPU for two models, one of which leaves room": (
        "models: [{id: a, devices: 'cuda:0'}, {id: b, devices: 0_0, max_memory: 1GB}]\nengine: tgi"
        .replace("0_0", "[[0, 1]]"),
        'models[1].devices: found "cuda:0", which models[0] has, '
        "expected each device once, or max_memory for both models",
    ),
    "a device that is a number of GPUs": (
        "models: [{id: b, devices: '1'}]",
        'models[0].devices: found a text "1", expected cuda:1 for that GPU, or 1 without quotes '
        "for so many",
    ),
    "no GPU at all": (
        "models: [{id: b, devices: 0}]",
        "models[0].devices: found the whole number 0, expected a number of GPUs from 1 to 256; "
        "GPU 0 is cuda:0",
    ),
    "devices of no form": (
        "models: [{id: b, devices: gpu0}]",
        f'models[0].devices: found a text "gpu0", expected {FORMS}',
    ),
    "devices switched on": (
        "models: [{id: b, devices: on}]",
        f"models[0].devices: found on, which YAML reads as true, expected {FORMS}",
    ),
    "a shard on the disk": (
        "models: [{id: b, devices: [{a: 0, b: disk}]}]",
        f'models[0].devices[0].b: found a text "disk", expected {GPU}: '
        "engines keep all of a model on GPUs",
    ),
    "a layer on the CPU": (
        "models: [{id: b, devices: {type: multiple, device_map: {a: 'cuda:0', b: cpu}}}]",
        f'models[0].devices.device_map.b: found a text "cpu", expected {GPU}: '
        "engines keep all of a model on GPUs",
    ),
    "a shard twice": (
        "models: [{id: b, devices: {a: 0, b: 0}}]",
        'models[0].devices: found "cuda:0" a second time, expected each device once',
    ),
    "GPUs that do not divide": (
        "models: [{id: b, devices: 5, gpus_per_replica: 2}]",
        "models[0].devices: found 5 GPUs, expected a multiple of gpus_per_replica (2)",
    ),
    "GPUs that do not divide, beside replicas": (
        "models: [{id: b, devices: 5, gpus_per_replica: 2, replicas: 4}]",
        "models[0].devices: found 5 GPUs, expected a multiple of gpus_per_replica (2)",
    ),
    "more GPUs than replicas": (
        "models: [{id: b, devices: 4, gpus_per_replica: 2, replicas: 4}]",
        "models[0].devices: found devices for 2 replicas, expected 4, as many as replicas",
    ),
    "a volume in many words": (
        "models: [a]\nengine: {name: tgi, volumes: [{source: /a, target: /b}]}",
        "engine.volumes[0]: found a mapping of 2 keys, expected "
        "/host/folder:/folder/in/container, with :ro behind to protect it",
    ),
    "groups of another size": (
        "models: [{id: b, devices: [[0, 1], 2], gpus_per_replica: 2}]",
        "models[0].devices[1]: found 1 device, expected 2, as gpus_per_replica says",
    ),
    "all GPUs for an engine without": (
        "models: [{id: b, devices: all}]",
        "models[0].devices: found all, expected replicas: N instead, "
        "as engine simulator needs no GPU",
    ),
    "replicas beside all": (
        "models: [{id: b, devices: all, replicas: 2, engine: tgi}]",
        "models[0].replicas: found 2, expected no replicas beside devices: all, "
        "which makes one on every GPU",
    ),
    "GPUs beside the CPU": (
        "models: [{id: b, devices: cpu, gpus_per_replica: 2}]",
        "models[0].gpus_per_replica: found 2, expected no gpus_per_replica beside devices: cpu",
    ),
    "all for one of two": (
        "models: [{id: a, devices: all}, b]\nengine: tgi",
        "models[0].devices: found all, expected a number of GPUs or named ones, "
        "as models[1] needs some, too",
    ),
    "an engine that needs GPUs": (
        "models: [{id: a, devices: cpu}]\nengine: tgi",
        "models[0].devices: found cpu, expected GPUs: engine tgi does not run without",
    ),
    "memory without a unit": (
        "models: [{id: a, max_memory: '20'}]",
        'models[0].max_memory: found a text "20", expected a size like 20GiB or 600MB: a unit is '
        "missing, write 20GiB, or the bytes without quotes",
    ),
    "memory of one GPU without a unit": (
        "models: [{id: a, max_memory: {0: 20, 1: 20gb}}]",
        'models[0].max_memory.1: found a text "20gb", expected a size like 20GiB or 600MB: '
        "a small b means bits, write 20GB",
    ),
    "a volume without its place": (
        "models: [a]\nengine: {name: tgi, volumes: [/data]}",
        'engine.volumes[0]: found a text "/data", expected /host/folder:/folder/in/container, '
        "with :ro behind to protect it",
    ),
    "an image that is a flag": (
        "models: [a]\nengine: {name: tgi, image: --privileged}",
        'engine.image: found a text "--privileged", expected an image like '
        "ghcr.io/org/name:tag, or one with a digest",
    ),
    "shared memory by guess": (
        "models: [a]\nengine: {name: tgi, shm_size: big}",
        'engine.shm_size: found a text "big", expected a size like 20GiB or 600MB',
    ),
    "an engine somewhere": (
        "models: [a]\nruntime: {name: docker, docker: {url: gpu-box}}",
        'runtime.docker.url: found a text "gpu-box", expected unix:///path/of.sock, '
        "ssh://user@host, tcp://host:port or https://host:port",
    ),
    "a log without a unit": (
        "models: [a]\nruntime: {name: docker, docker: {log_max_size: 10}}",
        "runtime.docker.log_max_size: found the whole number 10, expected a text: "
        'write "10", with the quotes',
    ),
    "a log of megabytes": (
        "models: [a]\nruntime: {name: docker, docker: {log_max_size: 10MB}}",
        'runtime.docker.log_max_size: found a text "10MB", expected a size for Docker, '
        "like 10m: k, m or g behind a number",
    ),
    "a relative folder for models": (
        "models: [a]\nruntime: {name: docker, docker: {model_cache: models}}",
        'runtime.docker.model_cache: found a text "models", '
        "expected an absolute path, or one that begins with ~/",
    ),
    "unknown quantize": (
        "models: [{id: a, quantize: fp88}]",
        'models[0].quantize: found a text "fp88", expected one of: '
        f"{QUANTIZE_14}, fp8, exl2, marlin, compressed-tensors (did you mean fp8?)",
    ),
    "quantize too new": (
        'models: [{id: a, quantize: fp8}]\nengine: {name: tgi, version: "1.4"}',
        "models[0].quantize: found fp8, which came with version 2.0.0, "
        "expected engine version 2.0.0 or later, or another one",
    ),
    "quantize and dtype": (
        "models: [{id: a, quantize: awq, dtype: float16}]",
        "models[0].dtype: found dtype beside quantize, expected one of the two",
    ),
    "unknown dtype": (
        "models: [{id: a, dtype: float32}]",
        'models[0].dtype: found a text "float32", expected one of: float16, bfloat16 '
        "(did you mean float16?)",
    ),
    "input over a fixed total": (
        'models: [{id: a, max_input_tokens: 3000}]\nengine: {name: tgi, version: "1.4.4"}',
        "models[0].max_input_tokens: found 3000, expected less than 2048, this version's total, "
        "or max_total_tokens",
    ),
    "unknown engine": (
        "models: [a]\nengine: {name: vlm}",
        'engine.name: found a text "vlm", expected one of: simulator, tgi, vllm, aphrodite, '
        "llamacpp (did you mean vllm?)",
    ),
    "version as a number": (
        "models: [a]\nengine: {name: tgi, version: 3.10}",
        'engine.version: found the number 3.10, expected a text: write "3.10", with the quotes',
    ),
    "no version": (
        "models: [a]\nengine: {name: tgi, version: latest}",
        'engine.version: found a text "latest", expected a version like 3.3.5',
    ),
    "misspelled flag": (
        "models: [a]\nengine: {args: {max_batch_size: 3}}",
        "engine.args.max_batch_size: found a flag this engine does not have, expected one of: "
        f"{', '.join(simulator.FLAGS)} (did you mean max-batch-size?)",
    ),
    "flag of a newer version": (
        'models: [a]\nengine: {name: tgi, version: "2.4.0", args: {payload-limit: 3}}',
        "engine.args.payload-limit: found a flag that version 2.4.0 does not have: "
        "it came with 2.4.1, expected another one",
    ),
    "flag of an older version": (
        "models: [a]\nengine: {name: tgi, args: {enable-cuda-graphs: true}}",
        "engine.args.enable-cuda-graphs: found a flag that the newest version does not have "
        "any more: it went with 2.0.0, expected another one",
    ),
    "flags are listed for the version": (
        'models: [a]\nengine: {name: tgi, version: "1.4.4", args: {zzz: 3}}',
        "engine.args.zzz: found a flag this engine does not have, expected one of: "
        f"{tgi_flags((1, 4, 4))}",
    ),
    "flag that the launcher sets": (
        "models: [{id: a, engine: {name: tgi, args: {max-total-tokens: 3}}}]",
        "models[0].engine.args.max-total-tokens: found a flag that the launcher sets itself, "
        "expected models[].max_total_tokens",
    ),
    "key on the command line": (
        "models: [a]\nengine: {name: tgi, args: {api-key: x}}",
        "engine.args.api-key: found a flag that the launcher sets itself, expected API_KEY in "
        "engine.env, as ${NAME}: command lines can be read by anyone",
    ),
    "flag without its value": (
        "models: [a]\nengine: {args: {gpu: true}}",
        "engine.args.gpu: found true, expected a value: this flag does not stand alone",
    ),
    "switch with a value": (
        "models: [a]\nengine: {args: {json-output: 1}}",
        "engine.args.json-output: found the whole number 1, expected true or false",
    ),
    "unknown choice": (
        "models: [a]\nengine: {args: {token-model: bytes}}",
        'engine.args.token-model: found a text "bytes", expected one of: text, bpe',
    ),
    "fraction for a whole number": (
        "models: [a]\nengine: {args: {max-batch-size: 1.5}}",
        "engine.args.max-batch-size: found the number 1.5, expected a whole number, 0 or more",
    ),
    "list as a flag's value": (
        "models: [a]\nengine: {args: {speed: [1]}}",
        "engine.args.speed: found a list of 1 entry, "
        "expected a text or a whole number or a number or true or false",
    ),
    "more entries than replicas": (
        "models: [a, {id: b, replicas: 2}]\nengine: {per_replica: [{}, {}, {}]}",
        "engine.per_replica: found 3 entries, expected at most 2, as many as replicas",
    ),
    "a wrong flag for one replica": (
        "models: [a]\nengine: {per_replica: [{speed: -1}]}",
        "engine.per_replica[0].speed: found the whole number -1, expected a number, 0 or more",
    ),
    "devices by environment": (
        "models: [a]\nengine: {name: tgi, env: {CUDA_VISIBLE_DEVICES: '0'}}",
        "engine.env.CUDA_VISIBLE_DEVICES: found a variable that the launcher sets itself, "
        "expected models[].devices",
    ),
    "number in the environment": (
        "models: [a]\nengine: {env: {LEVEL: 3}}",
        "engine.env.LEVEL: found the whole number (not shown), expected a text",
    ),
    "bad name of a variable": (
        "models: [a]\nengine: {env: {'A=B': x}}",
        "engine.env.A=B: found a text (not shown), expected a text of the form "
        "^[A-Za-z_][A-Za-z0-9_]*$",
    ),
    "cluster's name": (
        "cluster: My Cluster\nmodels: [a]",
        'cluster: found a text "My Cluster", expected a text of the form '
        "^[a-z0-9][a-z0-9_-]{0,30}$",
    ),
    "relative state folder": (
        "models: [a]\nruntime: {state_dir: state}",
        'runtime.state_dir: found a text "state", '
        "expected an absolute path, or one that begins with ~/",
    ),
    "home of nobody": (
        "models: [a]\nruntime: {state_dir: ~nobody-of-this-name/x}",
        'runtime.state_dir: found a text "~nobody-of-this-name/x", '
        "expected a folder in a home directory that exists",
    ),
    "state folder too long for a socket": (
        f"models: [a]\nruntime: {{state_dir: /{'x' * 95}}}",
        f'runtime.state_dir: found a text "/{"x" * 58}…", '
        "expected at most 90 bytes: unix sockets live there",
    ),
    "restarts that shrink": (
        "models: [a]\nruntime: {restart: {base_s: 10, max_s: 3}}",
        "runtime.restart.base_s: found 10, expected at most max_s (3)",
    ),
    "ports past the last": (
        "models: [{id: a, replicas: 256}, {id: b, replicas: 256}, {id: c, replicas: 256}]\n"
        "runtime: {first_port: 65000}",
        "runtime.first_port: found 65000, expected at most 64768, so that 768 replicas get ports",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_impossible_configs_name_line_path_found_and_expected(problems, text, expected):
    (line,) = problems(text)
    place, _, message = line.partition(": ")
    assert message == expected
    assert place in ("c.yaml:1", "c.yaml:2")


def test_everything_wrong_is_told_at_once(problems):
    assert problems("""\
models:
  - id: 3.10
    max_input_tokens: 5
    max_total_tokens: 5
    extra: 1
  - id: a
    replicas: 2
    devices: [0]
  - id: a
    quantize: fp1
engine:
  name: tgi
  args: {max-best-of: x}
  args: {}
  env: {HF_TOKEN: "${GPU_FLEET_TEST_UNSET}"}
runtime: {first_port: 1}
""") == [
        'c.yaml:2: models[0].id: found the number 3.10, expected a text: write "3.10", '
        "with the quotes",
        "c.yaml:3: models[0].max_input_tokens: found 5, expected less than max_total_tokens (5): "
        "an answer needs room",
        f"c.yaml:5: models[0].extra: found an unknown key, expected one of: {MODEL_KEYS}",
        "c.yaml:8: models[1].devices: found devices for 1 replica, expected 2, as many as replicas",
        'c.yaml:9: models[2].id: found the name "a", which models[1] has, '
        "expected a name of its own for each model",
        'c.yaml:10: models[2].quantize: found a text "fp1", expected one of: '
        f"{QUANTIZE_14}, fp8, exl2, marlin, compressed-tensors (did you mean fp8?)",
        "c.yaml:13: engine.args.max-best-of: found a text \"x\", "
        "expected a whole number, 0 or more",
        "c.yaml:14: engine.args: found this key a second time (first in line 13), "
        "expected each key once",
        "c.yaml:15: engine.env.HF_TOKEN: found ${GPU_FLEET_TEST_UNSET}, which is not set, "
        "expected GPU_FLEET_TEST_UNSET in the environment, or a default: "
        "${GPU_FLEET_TEST_UNSET:-value}",
        "c.yaml:16: runtime.first_port: found the whole number 1, expected at least 1024",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "models: [{id: a, quantize: '${V}'}]",
        "models: [{id: a, dtype: '${V}'}]",
        "models: [{id: a, devices: ['${V}']}]",
        "models: [{id: '${V}'}, {id: '${V}'}]",
        "models: [a]\nengine: {version: '${V}'}",
        "models: [a]\nengine: {args: {gpu: '${V}'}}",
        "models: [a]\nengine: {args: {speed: '${V}'}}",
        "models: [a]\nruntime: {state_dir: '${V}'}",
        "cluster: '${V}'\nmodels: [a]",
    ],
)
def test_values_of_variables_are_never_shown(problems, monkeypatch, text):
    monkeypatch.setenv("V", "Hunter 22")
    lines = problems(text)
    assert "unter" not in "\n".join(lines)
    assert any("${V}" in line for line in lines)


def test_two_engines_may_share_a_gpu_when_both_leave_room(load):
    config = load(
        "models: [{id: a, devices: [0]}, {id: b, devices: [0]}]\n"
        "engine: {name: tgi, args: {cuda-memory-fraction: 0.4}}"
    )
    assert [model.devices.groups for model in config.models] == [(("cuda:0",),), (("cuda:0",),)]


def test_two_models_may_share_a_gpu_when_both_are_bounded(load):
    config = load(
        "models: [{id: a, devices: [0], max_memory: 20GiB},"
        " {id: b, devices: ['cuda:0'], max_memory: {0: 40GiB}}]\nengine: tgi"
    )
    assert [model.devices.named for model in config.models] == [("cuda:0",), ("cuda:0",)]


def test_a_gpu_that_is_named_for_engines_without_one_is_shared_by_nobody(load):
    load("models: [{id: a, devices: [0]}, {id: b, devices: [0]}]")  # simulators


def test_uuids_for_one_model_and_a_choice_for_another_can_be_written(load):
    config = load("models: [{id: a, devices: [GPU-1]}, b]\nengine: tgi")
    assert config.models[0].devices.named == ("GPU-1",)


def test_numbers_may_come_from_the_environment(load, monkeypatch):
    monkeypatch.setenv("N", "3")
    config = load("models: [{id: a, replicas: '${N}'}]\nengine: {args: {max-batch-size: '${N}'}}")
    assert config.models[0].replicas == 3
    assert config.engine.args == {"max-batch-size": "3"}


def test_flags_become_words_of_a_command_line():
    args = {"a": 1, "b": True, "c": False, "d": None, "e": 0.5, "f": "x y", "g": 0}
    assert flags.to_argv(args) == ["--a", "1", "--b", "--e", "0.5", "--f", "x y", "--g", "0"]
