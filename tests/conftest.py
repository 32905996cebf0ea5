"""In which order tests run, and how several workers share them (`pytest -n 3`).

Tests over real processes are a lane, those of them that make load another, those over the Docker
Engine a third: one worker runs a lane, one test after the other, so that no two of them fight for
the cores, and what a lane shares is built once. The rest goes file by file.
"""

import pytest

PROCESSES, LOAD, DOCKER = "processes", "load", "docker"
LANES = {
    "tests/docker/": DOCKER,
    "tests/bench/test_bench_runs.py": LOAD,
    "tests/campaign/test_campaign_runs.py": LOAD,
    "tests/e2e/test_load.py": LOAD,
    "tests/e2e/test_models_come_and_go.py": LOAD,
    "tests/e2e/test_router_restarts.py": LOAD,
    "tests/e2e/test_stopped_replica.py": LOAD,
    "tests/e2e/test_streams_survive.py": LOAD,
    "tests/fuzz/test_fuzz_runs.py": LOAD,
    "tests/e2e/": PROCESSES,
    "tests/test_readme.py": PROCESSES,
}
"""By where a test is: the first that fits."""
ALONE = ("", PROCESSES, LOAD, DOCKER)
SHARED = (LOAD, DOCKER, PROCESSES, "")
"""The long ones first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(config, items):
    order = SHARED if hasattr(config, "workerinput") else ALONE
    items.sort(key=lambda item: (order.index(lane_of(item.nodeid)), waits_for_a_build(item)))


def lane_of(nodeid):
    return next((lane for place, lane in LANES.items() if nodeid.startswith(place)), "")


def waits_for_a_build(item):
    """CI builds llama-server while the others run."""
    return any(name.startswith("llama") for name in item.fixturenames)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # pytest-xdist 3.8 has marks for this (--dist loadgroup), which pytest 9.2 takes no notice of.
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return lane_of(nodeid) or nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Lanes(config, log)
