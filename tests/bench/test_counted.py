"""What a call and an event cost may not grow unnoticed: function calls are counted, not seconds.

Who makes something cheaper lowers the bound; who raises one says in the commit what it buys.
"""

import pytest
import uvloop

from tests.bench.counted import measured

MOST_PER_CALL = 495
MOST_PER_EVENT = 34


@pytest.fixture(scope="module")
def costs():
    return {name: cost.calls for name, cost in uvloop.run(measured(waiting=1000)).items()}


def test_a_call_costs_no_more_than_it_did(costs):
    assert 100 < costs["unary call"] <= MOST_PER_CALL


def test_an_event_costs_no_more_than_it_did(costs):
    assert 5 < costs["event"] <= MOST_PER_EVENT


def test_it_grows_little_with_the_fleet(costs):
    assert costs["unary call, 64 replicas"] <= 1.2 * costs["unary call"]


def test_it_grows_little_with_the_queue(costs):
    assert costs["unary call, others waiting"] <= 1.35 * costs["unary call"]
