"""Specs as the config makes them, for tests of what engines write."""

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
