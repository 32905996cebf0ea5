"""What is counted, and that no client can make the page grow."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.call import Priority
from router.lease import Report
from router.metrics import MAX_REPLICA_LABELS, MAX_TENANT_LABELS, Metrics

pytestmark = pytest.mark.virtual_time


def samples(metrics):
    families = text_string_to_metric_families(metrics.page().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics)[f"fleet_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
async def metrics(world):
    one = world()
    made = Metrics(lambda: [one.dispatcher])
    made.world = one
    return made


async def test_every_call_is_counted_by_route_and_status(metrics):
    metrics.call_done("/generate", 200, 0.5)
    metrics.call_done("/generate", 200, 1.5)
    metrics.call_done("/generate", 429, 0.0)
    assert value(metrics, "calls_total", route="/generate", status="200") == 2
    assert value(metrics, "calls_total", route="/generate", status="429") == 1
    assert value(metrics, "call_seconds_sum", route="/generate") == 2.0
    assert value(metrics, "call_seconds_count", route="/generate") == 3


async def test_everything_asked_for_is_on_the_page(metrics):
    metrics.call_done("/generate", 200, 1.0)
    metrics.first_token("m", 0.2)
    metrics.between_tokens("m", 0.02)
    metrics.retried("ReplicaLost")
    metrics.cancelled("queue")
    metrics.shed("queue_full", "team")
    metrics.waited("m", 0.1)
    metrics.idled("m", 0.5)
    metrics.tokens("m", Report(prompt_tokens=7, generated_tokens=3))
    metrics.tokens("m", Report())
    assert value(metrics, "time_to_first_token_seconds_count", model="m") == 1
    assert value(metrics, "inter_token_seconds_count", model="m") == 1
    assert value(metrics, "retries_total", reason="ReplicaLost") == 1
    assert value(metrics, "cancellations_total", phase="queue") == 1
    assert value(metrics, "sheds_total", reason="queue_full") == 1
    assert value(metrics, "queue_wait_seconds_count", model="m") == 1
    assert value(metrics, "idle_while_waiting_seconds_total", model="m") == 0.5
    assert value(metrics, "prompt_tokens_total", model="m") == 7
    assert value(metrics, "generated_tokens_total", model="m") == 3


async def test_loads_and_queue_are_read_from_their_owners(metrics, settle):
    one = metrics.world
    one.add("a", requests=2)
    await one.acquire(input_tokens=10, new_tokens=5)
    await one.acquire(input_tokens=10, new_tokens=5)
    waiting = one.waiting(body=b"x" * 30)
    await settle()
    labels = {"model": "m", "replica": "a"}
    assert value(metrics, "replica_requests", **labels) == 2
    assert value(metrics, "replica_tokens", **labels) == 30
    assert value(metrics, "replica_request_limit", **labels) == 2
    assert value(metrics, "replica_health", state="healthy", **labels) == 1
    assert value(metrics, "replica_health", state="ejected", **labels) == 0
    assert value(metrics, "queue_calls", model="m") == 1
    assert value(metrics, "queue_bytes", model="m") == 30
    waiting.cancel()
    await settle()
    assert value(metrics, "queue_calls", model="m") == 0


async def test_a_replica_that_left_is_not_on_the_page_any_more(metrics):
    metrics.world.add("a", "b")
    assert 'replica="b"' in metrics.page().decode()
    metrics.world.sync(metrics.world.member("a"))
    assert 'replica="b"' not in metrics.page().decode()


async def test_replica_labels_are_bounded_however_many_come_and_go(metrics):
    """An autoscaler that names each replica anew for a year."""
    one = metrics.world
    for number in range(3 * MAX_REPLICA_LABELS):
        [replica] = one.sync(one.member(f"r{number}"))
        metrics.attempted(replica, "done")
        metrics.ejected(replica)
    names = set(re.findall(r'fleet_attempts_total{.*replica="([^"]+)"', metrics.page().decode()))
    assert len(names) <= MAX_REPLICA_LABELS + 1
    assert "other" in names
    total = sum(v for (name, _), v in samples(metrics).items() if name == "fleet_attempts_total")
    assert total == 3 * MAX_REPLICA_LABELS, "nothing is left out of the sum"


async def test_a_large_pool_does_not_make_the_page_grow_without_end(metrics):
    one = metrics.world
    one.sync(*(one.member(f"r{number}") for number in range(4 * MAX_REPLICA_LABELS)))
    page = metrics.page().decode()
    assert len(set(re.findall(r'replica="([^"]+)"', page))) <= MAX_REPLICA_LABELS


def test_two_routers_in_one_process_count_apart():
    first, second = Metrics(lambda: []), Metrics(lambda: [])
    first.shed("queue_full", "")
    assert ("fleet_sheds_total", (("reason", "queue_full"),)) not in samples(second)


async def test_tenants_are_told_by_name_up_to_a_bound(metrics):
    """Clients may make up any number of names; those of the config are always told."""
    made = Metrics(lambda: [], tenants=["gold"])
    for number in range(3 * MAX_TENANT_LABELS):
        made.shed("queue_full", f"t{number}")
        made.used(f"t{number}", 2, 1)
    made.shed("queue_full", "gold")
    made.used("gold", 2, 1)
    names = set(re.findall(r'fleet_tenant_sheds_total{.*tenant="([^"]*)"', made.page().decode()))
    assert len(names) == MAX_TENANT_LABELS + 1
    assert {"gold", "other", "t0"} <= names
    found = samples(made)
    sheds = [v for (name, _), v in found.items() if name == "fleet_tenant_sheds_total"]
    assert sum(sheds) == 3 * MAX_TENANT_LABELS + 1, "nothing is left out of the sum"
    assert value(made, "tenant_tokens_total", tenant="gold", kind="prompt") == 2
    assert value(made, "tenant_tokens_total", tenant="gold", kind="generated") == 1


async def test_waiting_calls_of_many_tenants_make_a_bounded_page(metrics, settle):
    one = metrics.world
    one.add("a", requests=1)
    await one.acquire()
    waiting = [one.waiting(tenant=f"t{number}") for number in range(64)]
    waiting.append(one.waiting(tenant="t0", priority=Priority.HIGH))
    await settle()
    found = {
        labels: v for (name, labels), v in samples(metrics).items() if "tenant_queue_calls" in name
    }
    assert sum(found.values()) == 64
    assert len(found) <= MAX_TENANT_LABELS + 1
    for task in waiting:
        task.cancel()
    await settle()
