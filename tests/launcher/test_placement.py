"""From a config to replicas: ids, devices, and fingerprints that change only when they must."""

import pytest

from launcher.config import ClusterConfig
from launcher.placement import replica_specs


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
    assert [spec.devices for spec in found] == [("2",), ("GPU-1a",)]


def test_engines_that_need_a_gpu_take_the_free_indices_in_order():
    models = [{"id": "a", "replicas": 2}, {"id": "b", "devices": [1]}, {"id": "c", "replicas": 2}]
    found = specs(models, engine="tgi")
    assert [spec.devices for spec in found] == [("0",), ("2",), ("1",), ("3",), ("4",)]


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


def test_a_change_for_one_replica_leaves_the_others():
    before = specs([BASE], engine={"per_replica": [{}, {}]})
    after = specs([BASE], engine={"per_replica": [{}, {"speed": 0.5}]})
    assert before[0].fingerprint == after[0].fingerprint
    assert before[1].fingerprint != after[1].fingerprint


def test_a_printed_spec_shows_no_environment():
    (spec,) = specs(["a"], engine={"env": {"HF_TOKEN": "hunter2"}})
    assert "hunter2" not in repr(spec)
