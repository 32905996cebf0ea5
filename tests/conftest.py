"""In which order tests run, and how several workers share them (`pytest -n 3`).

Tests over real processes are a lane, those over the Docker Engine another: one worker runs a lane,
one test after the other, so that each has a core for itself, and what a lane shares is built once.
The rest goes file by file.
"""

import pytest

PROCESSES, DOCKER = "processes", "docker"
LANES = {
    "tests/docker/": DOCKER,
    "tests/e2e/": PROCESSES,
    "tests/bench/test_bench_runs.py": PROCESSES,
    "tests/campaign/test_campaign_runs.py": PROCESSES,
    "tests/fuzz/test_fuzz_runs.py": PROCESSES,
    "tests/test_readme.py": PROCESSES,
}
ALONE = ("", PROCESSES, DOCKER)
SHARED = (PROCESSES, DOCKER, "")
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
