"""From a config to replicas: ids, devices, and fingerprints that change only when they must."""

import pytest

from launcher.config import ClusterConfig
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.placement import Sizing, replica_specs


def config(models, **sections):
    return ClusterConfig.model_validate({"models": models, **sections})


def specs(models, **sections):
    return replica_specs(config(models, **sections))


def ids(models):
    return [spec.id for spec in specs(models)]


def test_one_model_has_plainly_numbered_replicas():
    assert ids([{"id": "org/Some.Model", "replicas": 3}]) == ["replica-0", "replica-1", "replica-2"]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["a/Small-7B", "b/Large_70B"], ["small-7b-0", "large-70b-0"]),
        (["a/x", "b/x"], ["a-x-0", "b-x-0"]),
        (["/srv/models/one/", "two"], ["one-0", "two-0"]),
        (["a/..", "b"], ["model-0", "b-0"]),
        ([{"id": "a/x", "name": "chat"}, {"id": "a/x", "name": "code", "replicas": 2}],
         ["chat-0", "code-0", "code-1"]),
    ],
)  # fmt: skip
def test_ids_tell_models_apart_by_the_shortest_name(models, expected):
    assert ids(models) == expected


def test_ids_stay_apart_when_names_differ_in_signs_only():
    found = ids(["a_b", "a-b", "模型", "型模"])
    assert len(set(found)) == 4
    assert all(len(name) <= 63 and name[0].isalnum() for name in found)


def test_very_long_names_make_short_ids():
    (first, second) = ids(["x" * 500, "y" * 500])
    assert first != second
    assert max(len(first), len(second)) <= 63


def test_a_replica_has_the_device_it_was_given():
    found = specs([{"id": "a", "devices": ["cuda:2", "GPU-1a"]}], engine="tgi")
    assert [spec.devices for spec in found] == [("cuda:2",), ("GPU-1a",)]


def test_engines_that_need_a_gpu_take_the_free_indices_in_order():
    models = [{"id": "a", "replicas": 2}, {"id": "b", "devices": [1]}, {"id": "c", "replicas": 2}]
    found = specs(models, engine="tgi")
    assert [spec.devices for spec in found] == [
        ("cuda:0",), ("cuda:2",), ("cuda:1",), ("cuda:3",), ("cuda:4",),
    ]  # fmt: skip


def test_a_replica_over_several_gpus_has_them_in_shard_order():
    (first, second) = specs([{"id": "a", "devices": [[3, 1], [0, 2]]}], engine="tgi")
    assert (first.devices, first.shards) == (("cuda:3", "cuda:1"), 2)
    assert (second.devices, second.shards) == (("cuda:0", "cuda:2"), 2)


def test_an_engine_on_the_cpu_takes_no_device():
    (spec,) = specs([{"id": "/m.gguf", "devices": "cpu"}], engine="llamacpp")
    assert (spec.devices, spec.shards) == ((), 1)


def test_what_runs_keeps_its_gpu_by_the_replicas_id():
    gpus = tuple(
        Gpu(f"GPU-{n}", n, "H100", 80 * 2**30, (9, 0), f"00000000:0{n}:00.0", None, None, False)
        for n in range(3)
    )
    two = config([{"id": "a/x"}, {"id": "b/y", "replicas": 2}], engine="tgi")
    running = {"x-0": ("GPU-2",), "y-1": ("GPU-0",), "gone-0": ("GPU-1",)}
    found = replica_specs(two, Inventory(DriverState.OK, gpus), running)
    assert {spec.id: spec.devices for spec in found} == {
        "x-0": ("GPU-2",), "y-0": ("GPU-1",), "y-1": ("GPU-0",),
    }  # fmt: skip


def test_what_fits_is_decided_for_the_gpus_a_replica_has():
    def size(model, engine, devices):
        fraction = 0.5 if devices == ("cuda:0",) else None
        return Sizing("awq", memory_fraction=fraction)

    found = replica_specs(
        config([{"id": "a", "replicas": 2, "quantize": "auto"}], engine="tgi"), size=size
    )
    assert [(spec.quantize, spec.memory_fraction) for spec in found] == [
        ("awq", 0.5), ("awq", None),
    ]  # fmt: skip
    assert found[0].fingerprint != found[1].fingerprint


def test_the_simulator_takes_no_device():
    assert specs([{"id": "a"}])[0].devices == ()


def test_specs_say_what_the_router_must_know():
    engine = {"args": {"max-concurrent-requests": 7, "max-batch-total-tokens": "900"}}
    (spec,) = specs([{"id": "org/a", "name": "chat"}], engine=engine)
    assert (spec.model, spec.model_id, spec.dialect) == ("chat", "org/a", "tgi")
    assert (spec.max_requests, spec.max_tokens) == (7, 900)
    (spec,) = specs(["a"])
    assert (spec.max_requests, spec.max_tokens) == (None, None)


BASE = {"id": "a", "replicas": 2}
ENGINE = {"name": "tgi", "version": "3.3.5", "args": {"max-batch-size": 8}, "env": {"A": "1"}}


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        ({"id": "b"}, {}),
        ({"revision": "main"}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({"quantize": "awq"}, {}),
        ({"max_input_tokens": 10}, {}),
        ({"max_total_tokens": 10}, {}),
        ({"devices": [4, 5]}, {}),
        ({}, {"name": "simulator"}),
        ({}, {"version": "3.3.4"}),
        ({}, {"args": {"max-batch-size": 9}}),
        ({}, {"env": {"A": "2"}}),
        ({}, {"image": "other:1"}),
        ({}, {"volumes": ["/a:/b"]}),
        ({}, {"shm_size": "2GiB"}),
    ],
)
def test_a_replica_that_must_be_replaced_has_another_fingerprint(model, engine):
    before = specs([BASE], engine=ENGINE)
    after = specs([BASE | model], engine=ENGINE | engine)
    assert [spec.id for spec in before] == [spec.id for spec in after]
    assert all(b.fingerprint != a.fingerprint for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("model", "sections"),
    [
        ({"name": "another"}, {}),
        ({"replicas": 1}, {}),
        ({}, {"runtime": {"first_port": 40_000, "host": "127.0.0.2"}}),
        ({}, {"router": {"port": 1}}),
        ({}, {"cluster": "other"}),
        ({}, {"engine": ENGINE | {"start_timeout_s": 5}}),
        ({}, {"engine": ENGINE | {"args": {"max-batch-size": 8}, "env": {"A": "1"}}}),
    ],
)
def test_a_replica_that_may_go_on_keeps_its_fingerprint(model, sections):
    before = specs([BASE], engine=ENGINE)[0]
    after = specs([BASE | model], **{"engine": ENGINE, **sections})[0]
    assert before.fingerprint == after.fingerprint


DOCKER = {"name": "docker", "docker": {"memory": "8GiB"}}


@pytest.mark.parametrize(
    ("runtime", "is_same"),
    [
        (DOCKER, True),
        (DOCKER | {"stop_grace_s": 3}, True),
        ({"name": "docker", "docker": {"memory": "8GiB", "pull": "never"}}, True),
        ({"name": "docker", "docker": {"memory": "9GiB"}}, False),
        ({"name": "docker", "docker": {"memory": "8GiB", "network": "n"}}, False),
        ({"name": "docker", "docker": {"memory": "8GiB", "user": "1000"}}, False),
        ({"name": "docker", "docker": {"memory": "8GiB", "model_cache": "/m"}}, False),
    ],
)
def test_what_a_container_is_made_with_counts_too(runtime, is_same):
    before = specs([BASE], engine=ENGINE, runtime=DOCKER)[0]
    after = specs([BASE], engine=ENGINE, runtime=runtime)[0]
    assert (before.fingerprint == after.fingerprint) is is_same


def test_engines_that_are_told_the_name_are_replaced_with_it():
    before = specs([BASE], engine="vllm")[0]
    after = specs([BASE | {"name": "chat"}], engine="vllm")[0]
    assert before.fingerprint != after.fingerprint


def test_a_change_for_one_replica_leaves_the_others():
    before = specs([BASE], engine={"per_replica": [{}, {}]})
    after = specs([BASE], engine={"per_replica": [{}, {"speed": 0.5}]})
    assert before[0].fingerprint == after[0].fingerprint
    assert before[1].fingerprint != after[1].fingerprint


def test_a_printed_spec_shows_no_environment():
    (spec,) = specs(["a"], engine={"env": {"HF_TOKEN": "hunter2"}})
    assert "hunter2" not in repr(spec)
