"""A real Docker Engine for all tests here, and the images they start replicas from.

One engine serves the whole session: starting it takes no time, making its images some seconds. It
is put in order after each test. Where it cannot run, tests are skipped, except in CI.
"""

import importlib.util
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAKES = HERE.parent / "fakes"
BUILD_S = 900


def load_fake(name):
    """A module of tests/fakes: `tests` is no package, so it is loaded by its place."""
    return load_module(f"gpu_fleet_fakes_{name}", FAKES / f"{name}.py")


def load_module(full_name, path):
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, path)
        module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def pytest_collection_modifyitems(items):
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.docker)
        if "llama_image" in item.fixturenames and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(BUILD_S))


def require(problem):
    """Skips with the problem, if there is one; CI must have all that is needed."""
    if problem:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem, pytrace=False)


@pytest.fixture(scope="session")
def docker_engines():
    """The module ``docker_engine``: ``PrivateEngine``, ``GPUS``."""
    return load_fake("docker_engine")


@pytest.fixture(scope="session")
def images():
    """The module ``images``: more kinds of images, such as ``crash_image``."""
    return load_fake("images")


@pytest.fixture(scope="session")
def shared_engine(docker_engines):
    require(docker_engines.missing())
    with docker_engines.PrivateEngine() as engine:
        yield engine


@pytest.fixture(scope="session")
def shared_client(shared_engine):
    client = shared_engine.client()
    yield client
    client.close()


@pytest.fixture
def engine(docker_engines, shared_engine, shared_client):
    """May be killed, stopped, robbed of its GPUs: the next test finds it whole and empty."""
    yield shared_engine
    if not shared_engine.is_running:
        shared_engine.start()
    shared_engine.resume()
    shared_engine.heal_gpus()
    shared_engine.set_gpus(*docker_engines.GPUS)
    for container in shared_client.containers.list(all=True):
        container.remove(force=True)
    shared_client.networks.prune()
    shared_client.volumes.prune()


@pytest.fixture
def docker_client(engine, shared_client):
    """A client of the Docker SDK."""
    return shared_client


@pytest.fixture
def make_engine(docker_engines):
    """``make_engine(hook=False)``: one of this test's own, without images."""
    require(docker_engines.missing())
    with ExitStack() as made:
        yield lambda **options: made.enter_context(docker_engines.PrivateEngine(**options))


@pytest.fixture(scope="session")
def simulator_image(shared_engine, images):
    """The tag of an image with this checkout's simulator."""
    return images.simulator_image(shared_engine)


@pytest.fixture(scope="session")
def tgi_image(shared_engine, images):
    """The tag of an image with TGI's command line; see ``tgi_shim``."""
    return images.tgi_image(shared_engine)


@pytest.fixture(scope="session")
def product_image(shared_client):
    """The tag of the product's own image, built from this checkout."""
    return load_fake("product_image").product_image(shared_client)


@pytest.fixture(scope="session")
def llama_image(shared_engine, images):
    """The tag of an image with a real llama-server, which is built if it never was."""
    llama_server = load_fake("llama_server")
    gone = llama_server.missing_programs()
    require(f"building llama-server needs {', '.join(gone)}" if gone else None)
    return images.llama_image(shared_engine, llama_server.llama_server())


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """A model for it, alone in its folder."""
    return load_fake("tiny_gguf").tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def loads():
    """The module `tests/e2e/load.py`: clients that check every answer."""
    return load_module("gpu_fleet_e2e_load", HERE.parent / "e2e" / "load.py")


@pytest.fixture(scope="session")
def fleet_on(docker_engines):
    """``with fleet_on(engine, client) as fleet``: a `ContainerFleet`, ended by `launcher down`,
    which must do."""
    module = load_module("gpu_fleet_container_fleet", HERE / "container_fleet.py")
    nvml = load_fake("nvml")

    def gpus(folder):
        made = nvml.FakeNvml(folder)
        for uuid in docker_engines.GPUS:
            made.add_gpu(uuid)
        return made

    return lambda engine, client: module.container_fleet(engine, client, gpus)


@pytest.fixture(scope="session")
def fleets(shared_engine, shared_client, fleet_on, tgi_image):
    """``with fleets() as fleet``: one on the session's engine."""
    return lambda: fleet_on(shared_engine, shared_client)


@pytest.fixture
def fleet(engine, fleets):
    with fleets() as fleet:
        yield fleet
