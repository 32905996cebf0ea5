"""Specs as the config makes them, and the one engine that runs anywhere: llama-server."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.placement import replica_specs


@pytest.fixture(scope="session")
def specs():
    """`specs({"id": "org/m"}, "tgi")`: the replicas of one model."""

    def specs(model, engine, **sections):
        data = {"models": [{"id": "org/m", **model}], "engine": engine, **sections}
        return replica_specs(ClusterConfig.model_validate(data))

    return specs


@pytest.fixture(scope="session")
def spec(specs):
    """The first of them."""
    return lambda *args, **sections: specs(*args, **sections)[0]


@pytest.fixture(scope="session")
def refused(specs):
    """What is refused about a config, as `place: found ..., expected ...` lines."""

    def refused(model, engine, **sections):
        try:
            specs(model, engine, **sections)
        except ValueError as exc:
            return str(exc)
        return ""

    return refused


# ---- llama-server

HERE = Path(__file__).parent
FAKES = HERE.parent.parent / "fakes"
BUILD_S = 900


def load_fake(name):
    """A module of tests/fakes: `tests` is no package, so it is loaded by its place."""
    full_name = f"gpu_fleet_fakes_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, FAKES / f"{name}.py")
        module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE) and "llama_server" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(BUILD_S))


@pytest.fixture(scope="session")
def llama_server():
    """The program. Building it takes minutes, which only CI has: else it must be there."""
    fake = load_fake("llama_server")
    program = fake.cache_dir() / f"llama-server-{fake.VERSION}" / "llama-server"
    if not os.environ.get("CI") and not program.exists():
        pytest.skip("llama-server is not built; `python -m tests.fakes.llama_server` does that")
    return fake.llama_server()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return load_fake("tiny_gguf").tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
