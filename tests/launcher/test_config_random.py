"""Any mapping with a cluster config's keys is taken, or refused with reasons."""

from pathlib import Path

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from launcher.config import (
    ClusterConfig,
    EngineConfig,
    ModelConfig,
    RestartConfig,
    RuntimeConfig,
    load_cluster_config,
)
from launcher.engines import ENGINES, simulator, tgi
from launcher.placement import replica_specs
from router.errors import ConfigError, PlacementError

names = ["a", "a/b", "", "x" * 300, "é", "tgi", "simulator", "process", "1.4.4", "3.3", "latest"]
values = [
    "awq",
    "fp8",
    "float16",
    "0",
    "~",
    "~/x",
    "/tmp/x",
    "rel",
    "GPU-1",
    "cuda:0",
    "cuda",
    "auto",
    "all",
    "cpu",
    "disk",
    "single",
    "20GiB",
    "/a:/b:ro",
    "${HOME}",
    "${",
]
words = st.sampled_from([*names, *values])
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), words, st.dates()
)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


def section(model, **better):
    """Some keys of a model, each with a value that may suit it or not."""
    keys = {key: st.one_of(better.get(key, anything), anything) for key in model.model_fields}
    return st.fixed_dictionaries({}, optional=keys)


args = st.dictionaries(
    st.sampled_from(["zzz", "gpu-memory-utilization", *simulator.FLAGS, *tgi.FLAGS]),
    st.one_of(plain, st.integers(0, 9)),
    max_size=3,
)
engines = st.one_of(
    words,
    section(
        EngineConfig,
        name=st.sampled_from([*ENGINES]),
        version=words,
        image=words,
        volumes=st.lists(words, max_size=2),
        shm_size=words,
        args=args,
        env=st.dictionaries(words, words, max_size=2),
        per_replica=st.lists(args, max_size=3),
        start_timeout_s=st.integers(1, 9),
    ),
)
device = st.one_of(words, st.integers(-1, 5), st.sampled_from(["cuda:1", "GPU-2"]))
group = st.one_of(
    device,
    st.lists(device, max_size=3),
    st.dictionaries(words, device, max_size=3),
    st.fixed_dictionaries({"type": st.sampled_from(["single", "x"]), "device": device}),
    st.fixed_dictionaries(
        {"type": st.just("multiple"), "device_map": st.dictionaries(words, device, max_size=3)}
    ),
)
budgets = st.one_of(words, st.dictionaries(st.integers(-1, 3), words, max_size=2))
models = st.one_of(
    words,
    section(
        ModelConfig,
        id=words,
        name=words,
        devices=st.one_of(st.lists(group, max_size=4), group),
        gpus_per_replica=st.integers(0, 3),
        max_memory=budgets,
        replicas=st.integers(0, 5),
        max_input_tokens=st.integers(0, 5),
        max_total_tokens=st.integers(0, 5),
        engine=engines,
    ),
)
configs = section(
    ClusterConfig,
    cluster=st.just("c"),
    models=st.lists(models, min_size=1, max_size=3),
    engine=engines,
    runtime=section(RuntimeConfig, restart=section(RestartConfig)),
    router=st.just({}),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("random") / "c.yaml"


def check(path, config):
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    try:
        loaded = load_cluster_config(path)
    except ConfigError as exc:
        told = exc.problems
    else:
        event("taken")
        check_commands(loaded)
        return
    event("refused")
    assert told
    assert len({(problem.path, problem.found) for problem in told}) == len(told)


def check_commands(config):
    try:
        specs = replica_specs(config)
    except PlacementError as exc:  # what only the machine can tell
        told = str(exc)
    else:
        assert len({spec.id for spec in specs}) == len(specs) > 0
        for spec in specs:
            argv = ENGINES[spec.engine_name].command(spec, 31_000, "127.0.0.1").argv
            assert all(isinstance(word, str) for word in argv)
            assert all(argv) or "" in spec.args.values()
        return
    event("needs the machine")
    assert ".devices: found " in told


@settings(max_examples=200, deadline=None)
@given(configs)
def test_any_mapping_is_taken_or_refused_with_reasons(path, config):
    check(path, config)


good_engines = st.one_of(
    st.sampled_from(["tgi", "simulator"]),
    st.fixed_dictionaries({"name": st.just("simulator")}, optional={"args": args}),
)
good_models = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=5)},
    optional={"replicas": st.integers(1, 3), "name": st.text(min_size=1, max_size=3)},
)


@settings(max_examples=200, deadline=None)
@given(st.lists(good_models, min_size=1, max_size=3), good_engines)
def test_models_of_any_name_become_commands(path, some_models, engine):
    check(path, {"models": some_models, "engine": engine})


examples = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))
pieces = [
    *("", "\n", "  ", "\t", ": ", "- ", "{", "]", "&a ", "*a", "<<: *a", "!!int ", "|", "'", '"'),
    *("${A}", "${", "\x00", "\ufeff", "\ud800", "#", "---\n", "...\n", "9" * 5000, "1e999", "~"),
]
spoiling = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 30), st.sampled_from(pieces)), max_size=5
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(examples).map(Path.read_text), spoiling)
def test_a_spoilt_example_is_taken_or_refused_with_reasons(path, text, spoiling):
    for at, gone, put in spoiling:
        text = text[:at] + put + text[at + gone :]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_cluster_config(path)
    except ConfigError as exc:
        told = exc.problems
    else:
        event("taken")
        return
    event("refused")
    assert told
