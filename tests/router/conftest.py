"""What router tests share: the virtual clock, a dispatcher without sockets, and a whole router."""

import asyncio
import gc
import importlib.util
import sys
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

FAKES = Path(__file__).parents[1] / "fakes"

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def load_fake(name):
    """A module of tests/fakes: `tests` is no package, so it is loaded by its place."""
    full_name = f"gpu_fleet_fakes_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, FAKES / f"{name}.py")
        module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def pytest_configure(config):
    config.addinivalue_line("markers", "virtual_time: runs on a clock that jumps to the next timer")


def pytest_asyncio_loop_factories(config, item):
    if item.get_closest_marker("virtual_time"):
        return {"virtual": load_fake("virtual_clock").VirtualClockLoop}
    if "app" in getattr(item, "fixturenames", ()):
        return {"uvloop": uvloop.new_event_loop}  # what the router runs on
    return {"real": asyncio.new_event_loop}


@pytest.fixture
async def world():
    """Makes dispatchers over records of replicas; afterwards nothing of theirs may be left."""
    fakes = load_fake("dispatching")
    made = []

    def make(**options):
        made.append(fakes.World(asyncio.get_running_loop().time, **options))
        return made[-1]

    yield make
    for one in made:
        one.end_all()
    await fakes.settle()
    for one in made:
        one.end_all()
        one.check_at_rest()
    stray = asyncio.all_tasks() - {asyncio.current_task()}
    assert not stray


@pytest.fixture
def settle():
    """`await settle()`: everything ready runs, the clock stands still."""
    return load_fake("dispatching").settle


@pytest.fixture
def wire():
    """The module of scripted replicas: its steps, and the bytes they send."""
    return load_fake("scripted_replica")


@pytest.fixture
def until():
    """`await until(condition)`: looks until it holds, fails after a deadline."""
    return load_fake("router_rig").until


@pytest.fixture
async def app(wire):
    """`await app(replicas=2, timeouts={...})`: a router on a free port over scripted replicas.

    It is up when it is given, unless `is_up=False`; `None` replicas: it starts from its state
    folder. Afterwards its books must be at rest, and no
    task, connection or socket of anybody may be left.
    """
    rigs, client_class = load_fake("router_rig"), load_fake("raw_client").RawClient
    made = []

    async def make(replicas=1, *, is_up=True, is_deaf=False, entries=None, **options):
        scripted = replicas
        if isinstance(replicas, int):
            scripted = [wire.ScriptedReplica(f"r{i}") for i in range(replicas)]
            for replica in scripted:
                await replica.start(is_deaf=is_deaf)
        rig = rigs.Rig(scripted or [], client_class, **options)
        made.append(rig)
        await rig.app.start(None if scripted is None else rig.listed(**(entries or {})))
        if is_up and scripted:
            await rig.is_up()
        return rig

    yield make
    try:
        for rig in made:
            await rig.close()
    finally:
        gc.unfreeze()
        for rig in made:
            for replica in rig.replicas:
                await replica.close()
    await rigs.until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of tasks")
    gc.collect()


@pytest.fixture
def shapes():
    """The module of what vLLM and llama-server say."""
    return load_fake("openai_shapes")


@pytest.fixture
async def openai_replicas(wire, shapes):
    """`await openai_replicas(2, "llama", slots=4)`: scripted servers with that engine's pages."""

    async def make(count=1, engine="vllm", *, first=0, **options):
        made = [wire.ScriptedReplica(f"r{first + i}") for i in range(count)]
        for replica in made:
            shapes.ENGINES[engine](replica, **options)
            replica.otherwise = [shapes.as_json(shapes.answer())]
            await replica.start()
        return made

    return make


@pytest.fixture
async def openai_app(app, openai_replicas):
    """`await openai_app(2, "llama", slots=4, router={...})`: a router over such servers."""

    async def make(count=1, engine="vllm", *, router=None, **options):
        made = await openai_replicas(count, engine, **options)
        return await app(made, entries={"dialect": "openai"}, **(router or {}))

    return make


@pytest.fixture(scope="session")
def fake():
    """`fake("name")`: a module of tests/fakes."""
    return load_fake


@pytest.fixture(scope="session")
def tgi():
    """`tgi("3.3.5", "bpe")`: what the simulator of that version streams, as a function."""
    return load_fake("pure_tgi").PureTgi


@pytest.fixture
def raw_client():
    """The client that shows every byte."""
    return load_fake("raw_client").RawClient


@pytest.fixture
def authority(tmp_path):
    """An authority whose certificates are files, and that clients can trust."""
    return load_fake("certificates").Authority(tmp_path)


@pytest.fixture
def faults():
    """The module of the fault proxy."""
    return load_fake("fault_proxy")
