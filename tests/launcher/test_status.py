"""A record is believed only as far as the processes it names still run."""

import os
from dataclasses import replace

import pytest

from launcher import processes, status
from launcher.cluster import Cluster
from launcher.commands import status as status_command
from launcher.desired import expected
from launcher.instance import Phase
from launcher.processes import ProcessId
from launcher.runtimes import Handle
from launcher.state import STATUS_RECORD, ClusterLock
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus

GONE = "1/1/another-boot"


@pytest.fixture
def cluster(folder) -> Cluster:
    path = folder.path / "fleet.yaml"
    path.write_text(
        "cluster: c\nmodels: [{id: m, replicas: 2}]\n"
        f"runtime: {{state_dir: {folder.path}}}\nrouter: {{port: 1234}}\n"
    )
    return Cluster.load(path)


def own_ref() -> str:
    """A process that surely runs, with no server at the port we give it."""
    return str(processes.identify(os.getpid()))


def write(cluster: Cluster, *replicas: ReplicaStatus, **fields) -> ClusterStatus:
    written = ClusterStatus("c", "http://127.0.0.1:9", replicas, **fields)
    cluster.folder.write_record(STATUS_RECORD, written.as_record())
    return written


async def test_without_a_record_all_is_stopped_where_the_config_says(cluster) -> None:
    found = await status.read(cluster)
    assert [(r.id, r.phase) for r in found.replicas] == [
        ("replica-0", Phase.STOPPED),
        ("replica-1", Phase.STOPPED),
    ]
    assert found.endpoint == "http://127.0.0.1:1234"
    assert not found.runs


def test_a_record_comes_back_as_it_was_written(cluster) -> None:
    replica = ReplicaStatus("replica-0", "m", Phase.LOADING, "http://x:1", 2, 3, "3/1/b", 4)
    written = write(cluster, replica, router=RouterStatus(Phase.READY, 5), launcher_pid=6)
    assert status.recorded(cluster) == written
    written = write(cluster, replica, notes=("a", "b"), curl_options=("-k", "-v"))
    assert status.recorded(cluster) == written


@pytest.mark.parametrize(
    "text", ["{", '{"version": 1}', '{"version": 1, "replicas": [{"id": 1}], "router": {}}']
)
async def test_a_broken_record_is_no_record(cluster, text: str) -> None:
    (cluster.folder.path / STATUS_RECORD).write_text(text)
    assert status.recorded(cluster) is None
    assert {r.phase for r in (await status.read(cluster)).replicas} == {Phase.STOPPED}


async def test_a_dead_launchers_ready_replica_that_is_gone_is_stopped(cluster) -> None:
    write(
        cluster,
        ReplicaStatus("replica-0", "m", Phase.READY, "http://x:1", 2, 3, GONE),
        router=RouterStatus(Phase.READY, 5),
        launcher_pid=6,
    )
    found = await status.read(cluster)
    [gone, _] = found.replicas
    assert (gone.phase, gone.pid, gone.url, gone.restarts) == (Phase.STOPPED, None, None, 2)
    assert (found.launcher_pid, found.router.pid) == (None, None)
    assert found.router.phase is Phase.STOPPED


async def test_a_dead_launchers_replica_that_runs_is_asked_itself(cluster) -> None:
    ref = own_ref()
    url = "http://127.0.0.1:1"  # refuses
    write(cluster, ReplicaStatus("replica-0", "m", Phase.READY, url, 0, os.getpid(), ref))
    [alive, _] = (await status.read(cluster)).replicas
    assert (alive.phase, alive.pid) == (Phase.LOADING, os.getpid())


async def test_what_runs_unrecorded_is_found(cluster, monkeypatch) -> None:
    """The state folder may have been removed, or restored from a backup."""
    url = "http://127.0.0.1:1"  # refuses
    write(cluster, ReplicaStatus("replica-0", "m", Phase.READY, url, 0, 3, GONE))
    found = [
        Handle("docker", f"replica-{n}", 4, f"{n}f00", url, "f", 7, ("GPU-1",)) for n in (0, 1)
    ]

    class Runtime:
        async def owned(self) -> list[Handle]:
            return found

        async def aclose(self) -> None:
            """Nothing to let go of."""

    monkeypatch.setattr("launcher.supervisor.make_runtime", lambda cluster: Runtime())
    replicas = (await status.read(cluster)).replicas
    assert [(r.ref, r.phase, r.url) for r in replicas] == [
        ("0f00", Phase.LOADING, url),
        ("1f00", Phase.LOADING, url),
    ]
    assert replicas[1].container == "1f00"
    assert replicas[1].devices == ("GPU-1",)


async def test_a_recycled_pid_is_not_taken_for_the_replica(cluster) -> None:
    own = ProcessId.parse(own_ref())
    earlier = str(replace(own, start_ticks=own.start_ticks - 1))
    write(cluster, ReplicaStatus("replica-0", "m", Phase.READY, "http://x:1", 0, own.pid, earlier))
    assert (await status.read(cluster)).replicas[0].phase is Phase.STOPPED


async def test_under_a_running_launcher_its_word_counts(cluster) -> None:
    with ClusterLock(cluster.folder):
        write(
            cluster,
            ReplicaStatus("replica-0", "m", Phase.FAILED, reason="given up"),
            ReplicaStatus("replica-1", "m", Phase.READY, "http://x:1", 0, 3, GONE),
        )
        found = await status.read(cluster)
    assert found.launcher_pid == os.getpid()
    assert [r.phase for r in found.replicas] == [Phase.FAILED, Phase.PENDING]


def test_what_the_router_drains_is_draining() -> None:
    ready = ReplicaStatus("a", "m", Phase.READY)
    loading = ReplicaStatus("b", "m", Phase.LOADING)
    seen = [{"id": name, "admin": "draining", "requests": 2} for name in ("a", "b")]
    after = status.overlay([ready, loading], {"pools": [{"replicas": seen}]})
    assert [r.phase for r in after] == [Phase.DRAINING, Phase.LOADING]
    assert after[0].in_flight == 2


async def test_a_cluster_is_the_same_through_a_symbolic_link(cluster, tmp_path) -> None:
    link = tmp_path / "link"
    link.symlink_to(cluster.folder.path)
    config = cluster.path.read_text().replace(str(cluster.folder.path), str(link))
    (tmp_path / "fleet.yaml").write_text(config)
    assert Cluster.load(tmp_path / "fleet.yaml").folder.path == cluster.folder.path.resolve()


def test_the_json_has_what_scripts_were_promised() -> None:
    shown = ClusterStatus("c", "http://e", (ReplicaStatus("a", "m", Phase.READY, "http://r"),))
    found = shown.as_json()
    assert set(found) >= {"cluster", "endpoint", "replicas"}
    promised = {key: found["replicas"][0][key] for key in ("id", "phase", "url", "restarts", "pid")}
    assert promised == {
        "id": "a",
        "phase": "ready",
        "url": "http://r",
        "restarts": 0,
        "pid": None,
    }


def test_a_drained_replica_is_up_and_does_not_keep_the_cluster_from_being_ready() -> None:
    ready = ReplicaStatus("a", "m", Phase.READY)
    seen = {"pools": [{"replicas": [{"id": "a", "admin": "draining", "requests": 0}]}]}
    drained = status.overlay([ready], seen)
    router = RouterStatus(Phase.READY, 5)
    assert drained[0].drained
    assert ClusterStatus("c", "http://e", drained, router).is_ready
    asked_to_stop = ReplicaStatus("a", "m", Phase.DRAINING)  # by the launcher: it is going away
    assert not ClusterStatus("c", "http://e", (asked_to_stop,), router).is_ready


def test_a_record_that_is_a_beat_old_does_not_keep_a_replica_drained() -> None:
    old = ReplicaStatus("a", "m", Phase.DRAINING, drained=True)
    seen = {"pools": [{"replicas": [{"id": "a", "admin": "active", "requests": 1}]}]}
    [now] = status.overlay([old], seen)
    assert (now.phase, now.drained, now.in_flight) == (Phase.READY, False, 1)
    [unknown] = status.overlay([old], {})
    assert (unknown.phase, unknown.drained) == (Phase.DRAINING, True)


@pytest.mark.parametrize(
    ("phases", "router", "code"),
    [
        ({"a": Phase.READY, "b": Phase.READY}, Phase.READY, 0),
        ({"a": Phase.READY, "b": Phase.DRAINING}, Phase.READY, 0),  # drained by an operator
        ({"a": Phase.READY, "b": Phase.READY, "old": Phase.STOPPED}, Phase.READY, 0),
        ({"a": Phase.READY, "b": Phase.LOADING}, Phase.READY, 1),
        ({"a": Phase.READY}, Phase.READY, 1),
        ({"a": Phase.READY, "b": Phase.READY}, Phase.STARTING, 1),
        ({"a": Phase.STOPPED, "b": Phase.STOPPED}, Phase.STOPPED, 3),
    ],
)
def test_the_exit_code_says_whether_what_is_wanted_is_up(phases, router, code: int) -> None:
    replicas = tuple(
        ReplicaStatus(
            name,
            "m",
            phase,
            pid=None if phase is Phase.STOPPED else 7,
            drained=phase is Phase.DRAINING,
        )
        for name, phase in phases.items()
    )
    pid = None if router is Phase.STOPPED else 5
    shown = ClusterStatus("c", "http://e", replicas, RouterStatus(router, pid))
    assert status_command.exit_code(shown, {"a", "b"}) == code


@pytest.mark.parametrize(
    ("health", "admin", "code"),
    [
        *((health, "active", 1) for health in ("unhealthy", "suspect", "ejected")),
        ("unhealthy", "draining", 0),
        ("warming", "active", 0),
    ],
)
def test_a_replica_that_gets_no_calls_because_of_its_health_is_not_up(health, admin, code) -> None:
    seen = {"pools": [{"replicas": [{"id": "a", "health": health, "admin": admin}]}]}
    replicas = status.overlay([ReplicaStatus("a", "m", Phase.READY, pid=7)], seen)
    shown = ClusterStatus("c", "http://e", replicas, RouterStatus(Phase.READY, 5))
    assert status_command.exit_code(shown, {"a"}) == code
    told = shown.as_json()["replicas"][0]
    phase = "draining" if admin == "draining" else "ready"
    assert (told["phase"], told["serves"]) == (phase, health == "warming")


def test_where_nobody_can_tell_what_is_wanted_not_all_is_up() -> None:
    replicas = (ReplicaStatus("a", "m", Phase.READY),)
    shown = ClusterStatus("c", None, replicas, RouterStatus(Phase.READY, 1), launcher_pid=1)
    assert status_command.exit_code(shown, {"a"}) == status_command.READY
    assert status_command.exit_code(shown, set()) == status_command.NOT_READY


def test_with_all_devices_the_replicas_that_were_are_wanted(folder, monkeypatch) -> None:
    """And a driver that hangs keeps nobody from looking."""
    monkeypatch.setattr("launcher.desired.read_inventory", lambda: pytest.fail("it was asked"))
    path = folder.path / "fleet.yaml"
    path.write_text(
        "models: [{id: m, devices: all}]\nengine: tgi\n"
        f"runtime: {{state_dir: {folder.path}}}\nrouter: {{port: 1234}}\n"
    )
    every = Cluster.load(path)
    ref = own_ref()
    failed = ReplicaStatus("replica-1", "m", Phase.FAILED, reason="given up")
    ready = ReplicaStatus("replica-0", "m", Phase.READY, "http://x:1", 0, 3, ref, devices=("G",))
    with ClusterLock(every.folder):
        write(every, ready, failed)
        assert status_command.run(path) == status_command.NOT_READY
        assert [spec.id for spec in expected(every.config)] == ["replica-0", "replica-1"]


async def test_without_a_launcher_what_died_beside_others_says_who_starts_it(cluster) -> None:
    alive = ReplicaStatus(
        "replica-0", "m", Phase.READY, "http://127.0.0.1:1", 0, os.getpid(), own_ref()
    )
    gone = ReplicaStatus("replica-1", "m", Phase.READY, "http://x:1", 0, 3, GONE)
    write(cluster, alive, gone)
    found = (await status.read(cluster)).replicas[1]
    hint = f"no launcher restarts it; `launcher up -c {cluster.path}` does"
    assert (found.phase, found.reason) == (Phase.STOPPED, hint)
