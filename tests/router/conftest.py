"""What router tests share: the virtual clock, and a dispatcher without sockets."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

FAKES = Path(__file__).parents[1] / "fakes"


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
