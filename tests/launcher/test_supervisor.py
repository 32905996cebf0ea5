"""What the supervisor tells the router and the disk, and what it survives while telling."""

import asyncio
import errno
import os
import socket
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
import yaml

from launcher import asking, changes, router_process, status
from launcher import supervisor as supervising
from launcher.cluster import Cluster
from launcher.crew import Crew
from launcher.gpu import DriverState, GpuEvent, Inventory, Reading
from launcher.instance import Phase
from launcher.placement import replica_specs
from launcher.plan import Plan
from launcher.supervisor import Supervisor
from router.errors import StartError, StateError

NOTHING = Plan((), (), (), ())


@pytest.fixture
def cluster(folder) -> Cluster:
    path = folder.path / "fleet.yaml"
    path.write_text(
        "cluster: c\nmodels: [{id: m, replicas: 2}]\n"
        "engine: {name: simulator, args: {max-concurrent-requests: 9}}\n"
        f"runtime: {{state_dir: {folder.path}}}\nrouter: {{port: 0}}\n"
    )
    return Cluster.load(path)


def crew_of(supervisor) -> Crew:
    """As the supervisor makes it; nobody can be asked whether it is healthy."""
    return Crew(
        supervisor._runtime,
        None,
        supervisor._drained,
        supervisor._reporter.admissions.until_in,
        lambda spec: True,
        supervisor._changed,
    )


@pytest.fixture
async def supervisor(cluster):
    """One that keeps its replicas' books but has started none of them."""
    supervisor = Supervisor(cluster)
    specs = replica_specs(cluster.config)
    supervisor._crew = crew_of(supervisor)
    supervisor._crew.hire(
        specs, cluster.config.runtime, Plan(tuple(specs), (), (), ()), lambda _: None
    )
    async with supervisor._client:
        yield supervisor


class CrewStandIn:
    """Takes every change, and notes it."""

    handles = ()

    def __init__(self) -> None:
        self.specs = []
        self.followed = []

    def __iter__(self):
        return iter(())

    def begin(self, group, plan) -> None: ...

    def dismiss(self) -> None: ...

    async def change(self, specs, runtime) -> None:
        self.followed.append([spec.id for spec in specs])

    async def stop_all(self) -> None: ...


async def for_ever() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def keeping(cluster):
    """A supervisor that follows changes; it starts nothing, and its router is never there."""
    supervisor = Supervisor(cluster)
    supervisor._crew = CrewStandIn()
    supervisor._router.run = supervisor._reporter.run = for_ever
    async with asyncio.timeout(10), supervisor._client, asyncio.TaskGroup() as group:
        group.create_task(supervisor._keep_all(NOTHING))
        await asyncio.sleep(0)  # it has begun
        yield supervisor
        supervisor.request_stop()


async def asked(supervisor, **sections) -> str:
    """Asked to follow its config with these sections instead: why that was refused, or ""."""
    cluster = supervisor._cluster
    config = yaml.safe_load(cluster.path.read_text())
    for name, section in sections.items():
        config[name] = config[name] | section
    cluster.path.write_text(yaml.safe_dump(config))
    request = changes.ask(cluster.folder, cluster.path)
    supervisor.request_change()
    return await answered(supervisor, request)


async def answered(supervisor, request) -> str:
    """Why the change was refused; "" when it was followed."""
    while supervisor._beginning.change_id != request.id:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return supervisor._beginning.change_error


async def test_replicas_that_are_still_to_come_are_pushed_without_a_url(supervisor, admin) -> None:
    await supervisor._reporter.push()
    [push] = admin.pushes
    assert push["cluster"] == "c"
    assert push["replicas"][1] == {
        "id": "replica-1",
        "generation": 0,
        "url": None,
        "model": "m",
        "dialect": "tgi",
        "phase": "pending",
        "max_requests": 9,
        "max_tokens": None,
    }


async def test_every_push_has_a_later_epoch(supervisor, admin) -> None:
    for _ in range(3):
        await supervisor._reporter.push()
    epochs = [push["epoch"] for push in admin.pushes]
    assert epochs == sorted(set(epochs))
    assert epochs[0] > time.time_ns() - 60 * 10**9  # later than any earlier launcher's


async def test_a_clock_that_was_set_back_is_caught_up_with(supervisor, admin) -> None:
    ahead = admin.epoch = time.time_ns() + 3600 * 10**9
    await supervisor._reporter.push()
    assert admin.pushes == []
    await supervisor._reporter.push()
    assert [push["epoch"] for push in admin.pushes] == [ahead + 1]


async def test_no_router_is_no_trouble(supervisor) -> None:
    await supervisor._reporter.push()
    assert {replica.phase for replica in supervisor._reporter.snapshot().replicas} == {
        Phase.PENDING
    }


async def test_a_router_that_hangs_is_told_with_what_happens_next(
    supervisor, cluster, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(supervisor._client, "_timeout", aiohttp.ClientTimeout(total=0.05))
    supervisor._router.answering.set()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(cluster.folder.admin_socket))
        deaf.listen()
        for _ in range(3):
            await supervisor._reporter.push()
    [said] = [record.getMessage() for record in caplog.records]
    assert "router.sock (no answer within 0.05 s); asked again every 2 s, and started anew" in said


async def test_a_full_disk_does_not_stop_the_telling(supervisor, monkeypatch, caplog) -> None:
    def no_space(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", no_space)
    supervisor._reporter.publish()
    supervisor._reporter.publish()
    assert caplog.text.count("No space left on device") == 1


async def test_what_a_full_disk_did_not_take_is_written_once_it_has_room(
    supervisor, cluster, monkeypatch
) -> None:
    def no_space(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "replace", no_space)
        supervisor._reporter.publish()
    assert status.recorded(cluster) is None
    supervisor._reporter.publish()
    assert status.recorded(cluster) == supervisor._reporter.snapshot()


async def test_what_is_published_is_what_other_commands_read(supervisor, cluster) -> None:
    supervisor._reporter.publish()
    assert status.recorded(cluster) == supervisor._reporter.snapshot()


async def test_what_was_checked_is_kept_though_the_file_is_saved_again_meanwhile(cluster) -> None:
    async with keeping(cluster) as supervisor:
        text = cluster.path.read_text().replace("replicas: 2", "replicas: 3")
        cluster.path.write_text(text)

        async def prepare(*args) -> None:
            cluster.path.write_text("models: [{id: m, repl")

        supervisor._runtime.prepare = prepare
        request = changes.ask(cluster.folder, cluster.path)
        supervisor.request_change()
        assert await answered(supervisor, request) == ""
        assert supervisor._crew.followed == [["replica-0", "replica-1", "replica-2"]]
    assert cluster.folder.config_copy.read_text() == text


async def refuse(*args) -> None:
    raise StartError("the Docker Engine does not answer")


async def test_a_change_that_the_runtime_refuses_leaves_all_as_it_was(cluster) -> None:
    async with keeping(cluster) as supervisor:
        supervisor._runtime.prepare = refuse
        error = await asked(supervisor, runtime={"first_port": 45678}, router={"port": 0})
        assert error == "the Docker Engine does not answer\nnothing was changed"
        assert supervisor._crew.followed == []
        assert supervisor._cluster is cluster
        assert vars(supervisor._runtime)["_first_port"] == cluster.config.runtime.first_port
    assert not cluster.folder.config_copy.exists()


async def test_a_change_that_the_disk_refuses_leaves_all_as_it_was(cluster, monkeypatch) -> None:
    def no_space(cluster) -> None:
        raise StateError("No space left on device")

    monkeypatch.setattr(supervising, "_keep_config", no_space)
    async with keeping(cluster) as supervisor:
        opened = []
        real = supervisor._router.prepare_change

        def prepare(config) -> bool:
            takes_new = real(config)
            opened.append(supervisor._router._next.listener)
            return takes_new

        supervisor._router.prepare_change = prepare
        error = await asked(
            supervisor, runtime={"first_port": 45678}, router={"queue": {"timeout_s": 33}}
        )
        assert error == "No space left on device\nnothing was changed"
        assert [socket.fileno() for socket in opened] == [-1]  # closed again
        assert supervisor._cluster is cluster
        assert vars(supervisor._runtime)["_first_port"] == cluster.config.runtime.first_port


async def test_a_bug_on_the_way_is_told_and_the_stop_still_ends_it(cluster, monkeypatch) -> None:
    async def broken(specs, runtime) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(router_process, "running_routers", lambda folder: [])
    monkeypatch.setattr(router_process.RouterKeeper, "_start", lambda keeper: None)
    async with keeping(cluster) as supervisor:
        supervisor._crew.change = broken
        first = supervisor._router_task
        error = await asked(supervisor, router={"queue": {"timeout_s": 33}})
        assert "ZeroDivisionError('a bug')" in error
        assert "nothing was changed" not in error
        assert first.cancelled()
    assert supervisor._router_task.cancelled()  # the one after it, too
    supervisor._router.close()


async def test_a_config_that_is_read_again_leaves_its_differences_in_the_log(
    cluster, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(router_process, "running_routers", lambda folder: [])
    monkeypatch.setattr(router_process.RouterKeeper, "_start", lambda keeper: None)
    caplog.set_level("INFO", logger="launcher")

    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line.removeprefix("config: ") for line in lines if line.startswith("config: ")]

    async with keeping(cluster) as supervisor:
        supervisor._crew.specs = replica_specs(cluster.config)
        read_again = f"read again from {cluster.path.absolute()}"
        supervisor.request_reload()
        await answered(supervisor, changes.read(cluster.folder))
        assert said() == [read_again, "nothing changed"]
        args = {"args": {"max-concurrent-requests": 10}}
        assert not await asked(supervisor, engine=args, router={"queue": {"timeout_s": 33}})
        first, *differing, router = said()
        assert first == read_again
        assert differing == [
            f"~ replica-{index}: args.max-concurrent-requests: 9 -> 10" for index in (0, 1)
        ]
        assert router.startswith("~ router: queue.timeout_s: ")
    supervisor._router.close()


async def test_what_was_asked_before_it_could_hear_is_followed(cluster) -> None:
    request = changes.ask(cluster.folder, cluster.path)
    async with keeping(cluster) as supervisor:
        assert await answered(supervisor, request) == ""
        assert len(supervisor._crew.followed) == 1


# ---- a driver that hangs


@pytest.fixture
def hang(monkeypatch):
    """The driver is silent until the test is over; not empty once it was asked."""
    over = threading.Event()

    def desired(*args) -> None:
        hanging.append(True)
        over.wait()

    hanging = []
    monkeypatch.setattr(supervising, "desired", desired)
    yield hanging
    over.set()


async def is_asked(hanging) -> None:
    async with asyncio.timeout(10):
        while not hanging:  # noqa: ASYNC110  # another thread's
            await asyncio.sleep(0.01)


async def test_a_launcher_that_begins_can_be_stopped_while_the_driver_hangs(cluster, hang) -> None:
    supervisor = Supervisor(cluster)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(supervisor.run())
        await is_asked(hang)
        supervisor.request_stop()
    assert not cluster.folder.config_copy.exists()


async def test_what_an_earlier_launcher_left_is_stopped_politely_then(
    cluster, hang, make_handle
) -> None:
    left, stopped = [make_handle()], []

    async def owned():
        return list(left)

    async def stop(handle, grace_s) -> None:
        stopped.append((handle, grace_s))
        left.remove(handle)

    supervisor = Supervisor(cluster)
    supervisor._runtime.owned, supervisor._runtime.stop = owned, stop
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(supervisor.run())
        await is_asked(hang)
        supervisor.request_stop()
    assert stopped == [(make_handle(), cluster.config.runtime.stop_grace_s)]


async def test_a_launcher_that_follows_a_change_can_be_stopped_while_the_driver_hangs(
    cluster, hang
) -> None:
    async with keeping(cluster) as supervisor:
        request = changes.ask(cluster.folder, cluster.path)
        supervisor.request_change()
        await is_asked(hang)
    assert supervisor._beginning.change_id == request.id
    assert supervisor._beginning.change_error.startswith("the launcher is asked to stop\n")


async def test_a_change_is_refused_when_the_driver_does_not_answer(
    cluster, hang, monkeypatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.05)
    async with keeping(cluster) as supervisor:
        error = await asked(supervisor)
    assert error.startswith("the NVIDIA driver has not answered for 0.05 s; ")
    assert error.endswith("\nnothing was changed")


# ---- whether a replica may be stopped


@pytest.fixture
def routers(supervisor, monkeypatch):
    """How many router processes run; they answer nothing unless `admin` does."""
    running = []
    monkeypatch.setattr(router_process, "running_routers", lambda folder: running)
    return running


async def test_a_replica_is_not_stopped_while_one_router_hands_over_to_another(
    supervisor, routers
) -> None:
    routers += ["the old one, which has calls", "the new one, which does not answer yet"]
    assert await supervisor._has_calls("replica-0")


async def test_a_router_that_does_not_answer_may_have_calls(supervisor, routers) -> None:
    routers += ["deaf"]
    assert await supervisor._has_calls("replica-0")


async def test_without_any_router_there_are_no_calls(supervisor, routers) -> None:
    assert not await supervisor._has_calls("replica-0")


async def test_a_deaf_router_delays_a_stop_no_longer_than_the_drain_may_take(
    supervisor, routers, caplog
) -> None:
    routers += ["deaf"]
    cluster = supervisor._cluster
    runtime = cluster.config.runtime.model_copy(update={"drain_timeout_s": 0.1})
    config = cluster.config.model_copy(update={"runtime": runtime})
    supervisor._cluster = replace(cluster, config=config)
    async with asyncio.timeout(10):
        await supervisor._drained("replica-0")
    assert "replica-0: still has calls after runtime.drain_timeout_s (0.1 s)" in caplog.text


async def test_a_drained_replica_without_calls_may_be_stopped(supervisor, routers, admin) -> None:
    routers += ["answers"]
    await supervisor._reporter.push()
    assert await supervisor._has_calls("replica-0")  # not told to drain yet
    admin.phases["replica-0"], admin.requests["replica-0"] = "draining", 1
    assert await supervisor._has_calls("replica-0")
    admin.requests["replica-0"] = 0
    assert not await supervisor._has_calls("replica-0")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (GpuEvent("GPU-0", "lost", None, True, "gone"), ["on-0"]),
        (GpuEvent("GPU-7", "lost", None, True, "gone"), []),
        (GpuEvent("GPU-0", "xid", 13, False, "a program's fault"), []),
        (GpuEvent("GPU-1", "lost", None, True, "gone", ("MIG-1", "MIG-2")), ["on-slice"]),
        (GpuEvent("GPU-8", "lost", None, True, "gone"), ["moves"]),  # where it runs still
        (GpuEvent("GPU-9", "lost", None, True, "gone"), []),  # where it will be
    ],
)
async def test_who_is_on_a_gpu_that_fails_is_told(
    cluster, make_spec, make_handle, event: GpuEvent, expected: list[str]
) -> None:
    specs = [
        make_spec("on-0", devices=("GPU-0",)),
        make_spec("on-slice", devices=("MIG-2",)),
        make_spec("moves", devices=("GPU-9",)),
    ]
    moves = replace(make_handle("moves", fingerprint="old"), devices=("GPU-8",))
    plan = Plan(tuple(specs[:2]), (), ((specs[2], moves),), ())
    supervisor, told = Supervisor(cluster), []
    supervisor._crew = crew_of(supervisor)
    supervisor._crew.hire(specs, cluster.config.runtime, plan, lambda _: None)
    for keeper in supervisor._crew:
        keeper.report = lambda trouble, name=keeper.spec.id: told.append(name)
    supervisor._on_gpu_event(event)
    assert told == expected


async def test_the_router_is_told_what_is_wrong_with_a_gpu(supervisor, admin) -> None:
    [keeper, *_] = supervisor._keepers
    uuid = "GPU-0"
    keeper.spec = replace(keeper.spec, devices=(uuid,))
    supervisor._on_gpu_event(GpuEvent(uuid, "ecc", None, True, "uncorrectable memory error"))
    reading = Reading(uuid, 0, 1, throttle_reasons=("heat (hardware)",))
    supervisor._on_readings({uuid: reading}, Inventory(DriverState.OK))
    await supervisor._reporter.push()
    told = {entry["id"]: entry for entry in admin.pushes[-1]["replicas"]}
    mine = told.pop(keeper.spec.id)
    assert "uncorrectable memory error" in mine["fault"]
    assert "heat (hardware)" in mine["slowed"]
    assert not any("fault" in entry or "slowed" in entry for entry in told.values())


def test_asked_twice_it_hurries(cluster) -> None:
    supervisor = Supervisor(cluster)
    supervisor.request_stop()
    assert supervisor.is_stopping
    assert not supervisor._stop_at_once.is_set()
    supervisor.request_stop()
    assert supervisor._stop_at_once.is_set()


async def test_drains_are_in_the_launchers_log_once_each(supervisor, admin, caplog) -> None:
    caplog.set_level("INFO", logger="launcher")
    supervisor._keepers[1].instance.phase = Phase.READY
    for state in ("draining", "draining", "active"):
        admin.admin["replica-1"] = state
        await supervisor._reporter.push()
        supervisor._reporter.publish()
    said = [record.getMessage() for record in caplog.records if "drained" in record.getMessage()]
    assert said == [
        "replica-1: drained by an operator, gets no calls",
        "replica-1: undrained by an operator, gets calls again",
    ]


async def test_what_adoption_stops_or_replaces_is_told(supervisor, make_spec, make_handle) -> None:
    strays = (make_handle("gone", 2), make_handle("replica-0", 1))  # the second: of an older start
    specs = [make_spec("replica-0"), make_spec("replica-1")]
    outdated = ((specs[1], make_handle("replica-1", 3)),)
    supervisor._restore(Plan((), (), outdated, strays), specs, [])
    assert supervisor._reporter.snapshot().notes == (
        "replica-1: its config changed: replaced in its turn, pid 1 serves on",
        "gone: no longer in the config: stopped, pid 1",
    )
