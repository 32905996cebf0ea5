"""Pools by model: pushed lists, epochs, the kept list and its accidents, names clients write."""

import errno
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from router.config import RouterConfig
from router.dialects import EngineInfo
from router.errors import ModelNotFound, NoReplica, RouteNotServed
from router.fleet import STATE_FILE, Fleet, ReplicaList, StaleList, split_url
from router.health import Event
from router.replica import Admin

ENTRY = {"id": "r0", "generation": 1, "url": "http://127.0.0.1:9000", "model": "m"}


class Quiet:
    """An observer that looks away."""

    def __getattr__(self, name):
        return lambda *args: None


def entry(replica_id="r0", **fields):
    return {**ENTRY, "id": replica_id, **fields}


def pushed(*entries, epoch=1, cluster="c", **fields):
    body = {"protocol": 1, "cluster": cluster, "epoch": epoch, "replicas": list(entries)}
    return ReplicaList.model_validate_json(json.dumps({**body, **fields}))


@pytest.fixture
def make():
    def build(state_dir=None):
        return Fleet(RouterConfig(), Quiet(), lambda *args: None, lambda: 0.0, state_dir)

    return build


def ids(fleet):
    return sorted(replica.id for replica in fleet.replicas())


def kept(folder):
    return json.loads((folder / STATE_FILE).read_bytes())


# ---- epochs and clusters ----


def test_each_list_replaces_the_one_before(make):
    fleet = make()
    fleet.accept(pushed(entry("a"), entry("b")))
    assert ids(fleet) == ["a", "b"]
    fleet.accept(pushed(entry("b"), entry("c"), epoch=2))
    assert ids(fleet) == ["b", "c"]


def test_an_older_list_is_refused_and_changes_nothing(make):
    fleet = make()
    fleet.accept(pushed(entry("a"), epoch=5))
    with pytest.raises(StaleList, match=r"4.*5"):
        fleet.accept(pushed(entry("b"), epoch=4))
    assert (ids(fleet), fleet.epoch) == (["a"], 5)


def test_the_same_epoch_again_is_fine(make):
    """Level-triggered: it is pushed every few seconds."""
    fleet = make()
    for _ in range(3):
        fleet.accept(pushed(entry("a"), epoch=5))
    assert ids(fleet) == ["a"]


def test_another_clusters_list_is_refused(make):
    fleet = make()
    fleet.accept(pushed(entry("a"), cluster="mine"))
    with pytest.raises(StaleList, match=r"mine.*other|other.*mine"):
        fleet.accept(pushed(entry("b"), epoch=99, cluster="other"))
    assert ids(fleet) == ["a"]


def test_known_replicas_keep_their_load_and_health(make):
    fleet = make()
    fleet.accept(pushed(entry("a"), entry("b")))
    [dispatcher] = fleet
    a = dispatcher.pool.get("a")
    dispatcher.pool.on_event(a, Event.PROBE_OK, "test")
    a.load.requests = 3
    fleet.accept(pushed(entry("a", phase="ready"), entry("b", generation=2), epoch=2))
    assert dispatcher.pool.get("a") is a
    assert (a.is_usable, a.load.requests, a.phase) == (True, 3, "ready")
    assert dispatcher.pool.get("b").generation == 2


def test_who_joined_and_who_left_is_told_once(make):
    fleet, joined, left = make(), [], []
    fleet.joined = lambda pool, replica: joined.append((replica.id, replica.generation))
    fleet.left = lambda replica, is_replaced: left.append(
        (replica.id, replica.generation, is_replaced)
    )
    fleet.accept(pushed(entry("a"), entry("b")))
    fleet.accept(pushed(entry("a"), entry("b"), epoch=2))
    fleet.accept(pushed(entry("a", generation=2), epoch=3))
    assert joined == [("a", 1), ("b", 1), ("a", 2)]
    assert sorted(left) == [("a", 1, True), ("b", 1, False)]


def test_a_replica_that_moves_to_another_model_leaves_its_pool(make):
    fleet = make()
    fleet.accept(pushed(entry("a", model="m")))
    fleet.accept(pushed(entry("a", model="n"), epoch=2))
    assert [dispatcher.pool.model for dispatcher in fleet] == ["n"]


def test_a_bad_list_changes_nothing(make):
    fleet = make()
    fleet.accept(pushed(entry("a"), epoch=1))
    with pytest.raises(ValueError, match="http"):
        fleet.accept(pushed(entry("b", url="https://x"), epoch=2))
    assert (ids(fleet), fleet.epoch) == (["a"], 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": 2},
        {"epoch": -1},
        {"cluster": ""},
        {"replicas": None},
        {"replicas": [entry(id="../x")]},
        {"replicas": [entry(generation=-1)]},
        {"replicas": [entry(model="")]},
        {"replicas": [entry(max_tokens=0)]},
        {"replicas": [entry(dialect="klingon")]},
        {"replicas": [entry("a"), entry("a")]},
        {"replicas": [entry("a"), entry("a", model="other")]},
    ],
)
def test_a_list_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValidationError):
        pushed(**fields)


def test_fields_of_a_newer_launcher_are_ignored():
    assert pushed(entry("a", colour="red"), mood="good").replicas[0].id == "a"


def test_what_is_wrong_with_a_gpu_comes_with_the_list_and_goes_with_it(make):
    fleet = make()
    fleet.accept(pushed(entry("a", fault="XID 48"), entry("b", slowed="heat"), entry("c")))
    found = {replica.id: (replica.fault, replica.slowed) for replica in fleet.replicas()}
    assert found == {"a": ("XID 48", ""), "b": ("", "heat"), "c": ("", "")}
    before = list(fleet.replicas())
    fleet.accept(pushed(entry("a", fault=None), entry("b"), entry("c"), epoch=2))
    assert list(fleet.replicas()) == before
    assert not any(replica.fault or replica.slowed for replica in before)


# ---- finding a pool ----


@pytest.mark.parametrize("name", ["", None, "tgi", "m"])
def test_with_one_pool_no_name_and_tgi_mean_it(make, name):
    fleet = make()
    fleet.accept(pushed(entry("a")))
    assert fleet.find(name).pool.model == "m"


def test_the_engines_own_model_id_is_a_name_too(make):
    fleet = make()
    fleet.accept(pushed(entry("a", model="default")))
    [dispatcher] = fleet
    dispatcher.pool.learn(dispatcher.pool.get("a"), EngineInfo(model_id="org/model"))
    assert fleet.find("org/model") is dispatcher
    assert fleet.models == ["org/model"]


def test_the_engines_aliases_and_adapters_are_names_too(make):
    fleet = make()
    fleet.accept(pushed(entry("a", model="llama"), entry("b", model="other")))
    dispatcher = fleet.find("llama")
    info = EngineInfo(model_id="org/llama", aliases=("adapter",))
    dispatcher.pool.learn(dispatcher.pool.get("a"), info)
    assert fleet.find("adapter") is fleet.find("org/llama") is dispatcher
    assert fleet.models == ["llama", "adapter", "other"]


# ---- routes ----


def test_a_route_that_the_model_has_not_is_refused_with_those_it_has(make):
    fleet = make()
    fleet.accept(pushed(entry("a", dialect="openai")))
    assert fleet.find("m", "/v1/embeddings").pool.model == "m"
    with pytest.raises(RouteNotServed) as caught:
        fleet.find("m", "/generate")
    assert caught.value.status == 404
    assert all(word in caught.value.message for word in ("'m'", "/generate", "/v1/completions"))


@pytest.mark.parametrize("name", ["", None, "tgi"])
def test_with_no_model_named_the_only_pool_with_the_route_is_meant(make, name):
    fleet = make()
    fleet.accept(pushed(entry("a", model="t"), entry("b", model="o", dialect="openai")))
    assert fleet.find(name, "/generate").pool.model == "t"
    assert fleet.find(name, "/v1/embeddings").pool.model == "o"
    with pytest.raises(ModelNotFound):
        fleet.find(name, "/v1/completions")
    with pytest.raises(ModelNotFound):
        fleet.find("gpt-5", "/generate")


def test_replicas_of_one_model_speak_one_dialect():
    with pytest.raises(ValidationError, match="openai and tgi"):
        pushed(entry("a"), entry("b", dialect="openai"))
    pushed(entry("a"), entry("b", model="other", dialect="openai"))


def test_a_replica_that_speaks_another_dialect_now_is_another_one(make):
    fleet = make()
    fleet.accept(pushed(entry("a")))
    [before] = fleet.replicas()
    fleet.accept(pushed(entry("a", dialect="openai"), epoch=2))
    [after] = fleet.replicas()
    assert after is not before
    assert after.dialect.name == fleet.find("m").pool.dialect.name == "openai"


def test_an_unknown_model_is_not_found_and_told_what_there_is(make):
    fleet = make()
    fleet.accept(pushed(entry("a", model="llama"), entry("b", model="mistral")))
    with pytest.raises(ModelNotFound) as caught:
        fleet.find("gpt-5")
    assert caught.value.status == 404
    assert all(word in caught.value.message for word in ("gpt-5", "llama", "mistral"))


@pytest.mark.parametrize("name", ["", None, "tgi"])
def test_with_several_pools_a_call_must_name_one(make, name):
    fleet = make()
    fleet.accept(pushed(entry("a", model="llama"), entry("b", model="mistral")))
    with pytest.raises(ModelNotFound, match="llama"):
        fleet.find(name)
    assert fleet.find("mistral").pool.model == "mistral"


def test_a_name_of_any_length_is_shown_cut(make):
    fleet = make()
    fleet.accept(pushed(entry("a")))
    with pytest.raises(ModelNotFound) as caught:
        fleet.find("x" * 1_000_000)
    assert len(caught.value.message) < 500


def test_before_the_first_list_there_is_no_replica_rather_than_no_model(make):
    with pytest.raises(NoReplica):
        make().find("m")


# ---- whether a call would be served ----


@pytest.mark.parametrize(
    ("phase", "can_serve"),
    [("starting", True), ("loading", True), ("failed", False), ("stopped", False), ("", False)],
)
def test_a_fleet_can_serve_while_one_is_on_its_way(make, phase, can_serve):
    fleet = make()
    assert not fleet.can_serve
    fleet.accept(pushed(entry("a", phase=phase)))
    assert fleet.can_serve is can_serve


# ---- the kept list ----


def test_a_router_starts_from_the_list_kept_last(make, tmp_path):
    fleet = make(tmp_path)
    fleet.accept(pushed(entry("a"), entry("b", url=None, phase="loading"), epoch=7))
    fleet.set_admin("b", Admin.DRAINING)
    again = make(tmp_path)
    assert again.restore()
    assert (ids(again), again.cluster, again.epoch) == (["a", "b"], "c", 7)
    admin = {replica.id: replica.admin for replica in again.replicas()}
    assert admin == {"a": Admin.ACTIVE, "b": Admin.DRAINING}


def test_a_drain_outlives_the_next_push_and_an_undrain_too(make, tmp_path):
    fleet = make(tmp_path)
    fleet.accept(pushed(entry("a")))
    fleet.set_admin("a", Admin.DRAINING)
    fleet.accept(pushed(entry("a", generation=2), epoch=2))
    assert next(fleet.replicas()).admin is Admin.DRAINING
    fleet.set_admin("a", Admin.ACTIVE)
    fleet.accept(pushed(entry("a", generation=3), epoch=3))
    assert next(fleet.replicas()).admin is Admin.ACTIVE
    assert kept(tmp_path)["draining"] == []


def test_draining_an_unknown_replica_is_none(make):
    fleet = make()
    fleet.accept(pushed(entry("a")))
    assert fleet.set_admin("zz", Admin.DRAINING) is None


def test_without_a_kept_list_there_is_nothing_to_start_from(make, tmp_path):
    fleet = make(tmp_path)
    assert not fleet.restore()
    assert fleet.state_error is None
    assert not make().restore()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b'{"protocol":0,"cluster":"c","epoch":1,"replicas":[]}',
        b'{"protocol":2,"cluster":"c","epoch":1,"replicas":[]}',
        b'{"protocol":1,"cluster":"c","epoch":1,"replicas":[{"id":"a"}]}',
        b'{"protocol":1,"cluster":"c","epoch":1,"replicas":'
        b'[{"id":"a","generation":1,"url":"ftp://x","model":"m"}]}',
    ],
)
def test_a_broken_or_foreign_file_counts_as_none_and_is_said_so(make, tmp_path, content):
    (tmp_path / STATE_FILE).write_bytes(content)
    fleet = make(tmp_path)
    assert not fleet.restore()
    assert STATE_FILE in fleet.state_error
    assert ids(fleet) == []
    fleet.accept(pushed(entry("b"), epoch=0))
    assert ids(fleet) == ["b"]
    assert fleet.state_error is None, "the next list is kept in its place"
    assert [one["id"] for one in kept(tmp_path)["replicas"]] == ["b"]


def test_a_file_of_an_older_router_without_the_newer_fields_is_read(make, tmp_path):
    old = {"protocol": 1, "cluster": "c", "epoch": 3, "replicas": [ENTRY]}
    (tmp_path / STATE_FILE).write_text(json.dumps(old))
    fleet = make(tmp_path)
    assert fleet.restore()
    assert ids(fleet) == ["r0"]


@pytest.mark.parametrize(("cluster", "is_ours"), [("c", True), ("other", False), (None, True)])
def test_a_list_of_another_cluster_is_not_started_from(make, tmp_path, cluster, is_ours):
    """A cluster renamed in place: its router would refuse every list of the new name."""
    old = {"protocol": 1, "cluster": "c", "epoch": 3, "replicas": [ENTRY]}
    (tmp_path / STATE_FILE).write_text(json.dumps(old))
    fleet = make(tmp_path)
    assert fleet.restore(cluster) is is_ours
    assert fleet.cluster == ("c" if is_ours else "")


def test_a_folder_in_the_files_place_is_said_and_survived(make, tmp_path):
    (tmp_path / STATE_FILE).mkdir()
    fleet = make(tmp_path)
    assert not fleet.restore()
    fleet.accept(pushed(entry("a")))
    assert fleet.state_error
    assert ids(fleet) == ["a"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_full_disk_stops_nothing_and_keeps_the_last_good_list(make, tmp_path, monkeypatch, where):
    fleet = make(tmp_path)
    fleet.accept(pushed(entry("a"), epoch=1))
    with monkeypatch.context() as broken:
        if where == "write":
            broken.setattr(Path, "write_bytes", full_disk)
        else:
            broken.setattr(os, "replace", full_disk)
        fleet.accept(pushed(entry("b"), epoch=2))
        assert ids(fleet) == ["b"]
        assert "No space left" in fleet.state_error
    assert os.listdir(tmp_path) == [STATE_FILE], "no half-written file is left"
    assert [one["id"] for one in kept(tmp_path)["replicas"]] == ["a"]
    fleet.accept(pushed(entry("b"), epoch=3))
    assert fleet.state_error is None, "what could not be kept is kept at the next push"
    assert [one["id"] for one in kept(tmp_path)["replicas"]] == ["b"]


def test_a_state_folder_that_vanished_stops_nothing(make, tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    fleet = make(folder)
    folder.rmdir()
    fleet.accept(pushed(entry("a")))
    assert ids(fleet) == ["a"]
    assert "No such file" in fleet.state_error


# ---- URLs ----


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (None, ("", 0)),
        ("http://h:1", ("h", 1)),
        ("http://h", ("h", 80)),
        ("http://h:9/", ("h", 9)),
        ("http://[::1]:9", ("::1", 9)),
        ("http://10.0.0.7:65535", ("10.0.0.7", 65535)),
    ],
)
def test_a_base_url_is_a_host_and_a_port(url, place):
    assert split_url(url) == place


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "h:1",
            "https://h:1",
            "http://",
            "http://h:1/path",
            "http://h:1?x=1",
            "http://h:99999",
        ),
        *("http://u:p@h:1", "http://h:1#x", "http://h:x", "http://[::1", "http://h:0"),
    ],
)
def test_anything_else_is_refused(url):
    with pytest.raises(ValueError, match=r"URL|port|Port|IPv6"):
        split_url(url)
