"""What an edited config changes, line by line, and how the running launcher is asked to follow."""

import json
from pathlib import Path

import pytest

from launcher import changes
from launcher.changes import Change, ChangeRequest
from launcher.cluster import Cluster
from launcher.config import ClusterConfig
from launcher.engines.base import Mount
from launcher.placement import replica_specs
from launcher.state import ClusterLock, StateFolder
from router.errors import PlacementError, StateError

SECRET = "hunter2-hunter2-hunter2"


def config(models, **sections):
    return ClusterConfig.model_validate({"models": models, **sections})


def lines(before, after):
    return [str(change) for change in changes.replica_changes(before, after)]


def between(before, after):
    """Lines between the replicas of two configs, without a machine."""
    return lines(replica_specs(config(**before)), replica_specs(config(**after)))


BASE = {"models": [{"id": "m", "replicas": 2}], "engine": {"name": "tgi"}}


def with_engine(**engine):
    return BASE | {"engine": BASE["engine"] | engine}


def with_model(**model):
    return BASE | {"models": [BASE["models"][0] | model]}


# ---- each kind of line


def test_nothing_changes():
    assert between(BASE, BASE) == ["= replica-0, replica-1: unchanged"]


def test_more_replicas_start_and_fewer_stop():
    three = with_model(replicas=3)
    assert between(BASE, three) == [
        "+ replica-2: tgi serving m on cuda:2",
        "= replica-0, replica-1: unchanged",
    ]
    assert between(three, BASE) == [
        "- replica-2: drained, then stopped",
        "= replica-0, replica-1: unchanged",
    ]
    assert between(BASE, {"models": ["m"], "engine": "simulator"})[1:] == [
        "- replica-1: drained, then stopped"
    ]


def test_a_replica_without_a_gpu_says_none():
    assert between({"models": ["m"]}, {"models": [{"id": "m", "replicas": 2}]})[0] == (
        "+ replica-1: simulator serving m"
    )


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (with_model(quantize="awq"), "quantize: none -> awq"),
        (with_model(max_total_tokens=4096), "max_total_tokens: none -> 4096"),
        (with_model(revision="abc", dtype="float16"),
         "revision: none -> abc; dtype: none -> float16"),
        (with_engine(version="3.3.4"), "engine_version: none -> 3.3.4"),
        (with_engine(image="r.io/tgi:3"), "image: none -> r.io/tgi:3"),
        (with_engine(shm_size="1GiB"), "shm_bytes: none -> 1073741824"),
        (with_engine(volumes=["/a:/b", "/c:/d:ro"]), "volumes: none -> /a:/b, /c:/d:ro"),
        (with_engine(args={"max-batch-size": 8, "trust-remote-code": True}),
         "args.max-batch-size: none -> 8; args.trust-remote-code: none -> true"),
        (with_engine(env={"A": "1", "B": "2"}), "env: A, B changed"),
    ],
)  # fmt: skip
def test_what_is_replaced_says_what_differs(after, expected):
    assert between(BASE, after) == [f"~ replica-0: {expected}", f"~ replica-1: {expected}"]


def test_devices_are_told_as_they_were_and_will_be():
    before = {"models": [{"id": "m", "devices": [[0, 1]]}], "engine": "tgi"}
    after = {"models": [{"id": "m", "devices": [[2, 1]]}], "engine": "tgi"}
    assert between(before, after) == ["~ replica-0: devices: cuda:0, cuda:1 -> cuda:2, cuda:1"]


def test_one_flag_of_one_replica_leaves_the_other():
    assert between(BASE, with_engine(per_replica=[{"max-batch-size": 2}])) == [
        "~ replica-0: args.max-batch-size: none -> 2",
        "= replica-1: unchanged",
    ]


def test_what_changes_without_a_restart_says_so():
    after = with_model(name="chat", replicas=1) | with_engine(start_timeout_s=9)
    after = {"models": [{"id": "m", "replicas": 2, "name": "chat"}], "engine": after["engine"]}
    expected = "model: m -> chat; start_timeout_s: 1800.0 -> 9.0; without a restart"
    assert between(BASE, after) == [f"~ replica-0: {expected}", f"~ replica-1: {expected}"]


def test_what_only_the_runtime_changes_is_still_a_replacement(make_spec):
    (line,) = lines([make_spec(fingerprint="a")], [make_spec(fingerprint="b")])
    assert line == "~ replica-0: runtime settings"


def test_long_values_are_cut_and_line_breaks_are_none(make_spec):
    before, after = (
        make_spec(args={}),
        make_spec(fingerprint="b", args={"a": "x" * 99, "b": "1\n2"}),
    )
    (line,) = lines([before], [after])
    assert line == f"~ replica-0: args.a: none -> {'x' * 60}...; args.b: none -> 1 2"


def test_a_mount_is_shown_as_it_is_written(make_spec):
    after = make_spec(fingerprint="b", volumes=(Mount("/a", "/b"),))
    assert lines([make_spec()], [after]) == ["~ replica-0: volumes: none -> /a:/b"]


# ---- router and runtime


def test_the_router_is_replaced_only_for_its_own_section():
    before = config(["m"])
    assert list(changes.router_changes(before, config(["m", "n"]))) == []
    (change,) = changes.router_changes(
        before, config(["m"], router={"port": 9000, "queue": {"timeout_s": 5}})
    )
    assert change == Change(
        "~",
        "router",
        "port: 8080 -> 9000; queue.timeout_s: 60.0 -> 5.0; a new router takes over, the old one "
        "finishes its calls",
    )


def test_rules_for_later_are_a_change_too():
    after = {"stop_grace_s": 3, "restart": {"max_failures": 2}, "docker": {"memory": "1GiB"}}
    (change,) = changes.runtime_changes(config(["m"]), config(["m"], runtime=after))
    assert str(change) == (
        "~ runtime: stop_grace_s: 90.0 -> 3.0; restart.max_failures: none -> 2; "
        "docker.memory: none -> 1073741824"
    )
    assert list(changes.runtime_changes(config(["m"]), config(["m"]))) == []


# ---- secrets


def test_no_line_shows_a_secret():
    def whole(secret, count):
        return config(
            [{"id": "m", "replicas": count}],
            engine={"env": {"HF_TOKEN": secret, "PLAIN": secret}},
            router={
                "engine_api_key": secret,
                "admin": {"port": 1, "token": secret},
                "keys": [{"name": "a", "hash": f"sha256:{len(secret):x}{'e' * 62}"}],
            },
        )

    for before, after in (("first-" + SECRET, SECRET), (SECRET, "other-" + SECRET)):
        old, new = whole(before, 2), whole(after, 3)
        shown = [
            *lines(replica_specs(old), replica_specs(new)),
            *map(str, changes.router_changes(old, new)),
            *map(str, changes.runtime_changes(old, new)),
        ]
        assert "hunter2" not in "\n".join(shown)
        assert shown[0] == "~ replica-0: env: HF_TOKEN, PLAIN changed"
        assert "admin.token: changed (not shown)" in shown[-1]
        assert "engine_api_key: changed (not shown)" in shown[-1]
        assert "keys: changed (not shown)" in shown[-1]
        assert "eeee" not in shown[-1]


def test_a_secret_that_is_a_flag_is_not_shown(make_spec):
    before = make_spec(args={"hf-token": "first"})
    after = make_spec(fingerprint="b", args={"hf-token": SECRET, "max-tokens": 2})
    assert lines([before], [after]) == [
        "~ replica-0: args.hf-token: changed (not shown); args.max-tokens: none -> 2"
    ]


def test_a_removed_variable_is_named(make_spec):
    before = make_spec(env={"GONE": SECRET, "SAME": "1"})
    assert lines([before], [make_spec(fingerprint="b", env={"SAME": "1"})]) == [
        "~ replica-0: env: GONE changed"
    ]


# ---- what cannot be followed


@pytest.fixture
def cluster(folder):
    def cluster(path=folder.path, **sections):
        sections = {"models": ["m"]} | sections
        return Cluster(Path("c.yaml"), config(**sections), StateFolder(path), "")

    return cluster


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"cluster": "a"}, {"cluster": "b"}, "cluster: found b, but a runs"),
        ({}, {"runtime": "docker"}, "runtime.name: found docker, but process runs"),
        ({"runtime": {"name": "docker"}},
         {"runtime": {"name": "docker", "docker": {"url": "tcp://h:1"}}},
         "runtime.docker.url: found tcp://h:1, but none runs"),
        ({"engine": "tgi"}, {"engine": "vllm"}, "engine.name: found vllm, but tgi runs"),
        ({"engine": "vllm"}, {"models": [{"id": "m", "engine": "tgi"}], "engine": "vllm"},
         "models[0].engine.name: found tgi, but vllm runs"),
    ],
)  # fmt: skip
def test_what_cannot_change_under_way_is_refused(cluster, before, after, expected):
    with pytest.raises(PlacementError) as caught:
        changes.require_possible(cluster(**before), cluster(**after))
    assert str(caught.value) == (
        f"{expected}; that cannot change under way: `launcher down -c c.yaml` first"
    )


def test_another_state_folder_is_refused(cluster, tmp_path):
    with pytest.raises(PlacementError, match=r"runtime\.state_dir: found .*, but .* runs"):
        changes.require_possible(cluster(), cluster(tmp_path))


def test_all_that_cannot_change_is_told_at_once(cluster):
    with pytest.raises(PlacementError) as caught:
        changes.require_possible(
            cluster(cluster="a"), cluster(cluster="b", runtime="docker", engine="vllm")
        )
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "cluster", "runtime.name", "engine.name",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"models": ["n", "o"], "router": {"port": 1}}),
        ({"engine": "tgi"}, {"engine": {"name": "tgi", "version": "3.3.4"}}),
        ({"engine": "tgi"}, {"engine": "simulator"}),  # the same dialect
        ({"engine": "vllm"}, {"engine": "aphrodite"}),
        ({"engine": "tgi"}, {"engine": "vllm", "models": ["n"]}),  # another model altogether
        ({}, {"runtime": {"stop_grace_s": 1}}),
    ],
)
def test_everything_else_can_be_followed(cluster, before, after):
    changes.require_possible(cluster(**before), cluster(**after))


# ---- asking


def test_what_is_asked_is_read(folder, monkeypatch, tmp_path):
    assert changes.read(folder) is None
    monkeypatch.chdir(tmp_path)
    asked = changes.ask(folder, Path("c.yaml"))
    assert asked == changes.read(folder) == ChangeRequest(asked.id, tmp_path / "c.yaml")
    again = changes.ask(folder, Path("c.yaml"))
    assert changes.read(folder) == again != asked


def test_a_launcher_begins_without_what_was_asked_of_the_one_before(folder):
    changes.ask(folder, Path("c.yaml"))
    with ClusterLock(folder, is_launcher=False):
        assert changes.read(folder) is not None  # whoever stops things follows nothing
    with ClusterLock(folder):
        assert changes.read(folder) is None
        asked = changes.ask(folder, Path("c.yaml"))
        assert changes.read(folder) == asked


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "id": "a", "path": "/b"}'])
def test_a_record_that_is_none_is_no_request(folder, text):
    (folder.path / "change.json").write_text(text)
    assert changes.read(folder) is None


@pytest.mark.parametrize("record", [{}, {"id": "a"}, {"path": "/b"}, {"id": "a", "path": 3}])
def test_a_broken_request_is_told_with_its_file(folder, record):
    (folder.path / "change.json").write_text(json.dumps({"version": 1, **record}))
    with pytest.raises(StateError) as caught:
        changes.read(folder)
    keys = ", ".join(["version", *record])
    assert str(caught.value) == (
        f"{folder.path}/change.json: found {keys}, expected id and path, as `launcher up` leaves "
        "them; run that again"
    )
