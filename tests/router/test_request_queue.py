"""Order and bounds of waiting calls."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.request_queue import LOOK_AHEAD, RequestQueue, Ticket


def ticket(size=1):
    return Ticket(SimpleNamespace(body=b"x" * size), cost=None, enqueued_s=0.0, grant=None)


def filled(*tickets, max_calls=100, max_bytes=1000):
    queue = RequestQueue(max_calls, max_bytes)
    for one in tickets:
        queue.join(one)
    return queue


def test_an_empty_queue_has_no_head():
    queue = filled()
    assert queue.head is None
    assert list(queue.behind_head()) == []
    assert len(queue) == 0


def test_first_come_first_served():
    tickets = [ticket() for _ in range(5)]
    queue = filled(*tickets)
    assert list(queue) == tickets
    for one in tickets:
        assert queue.head is one
        queue.leave(one)


def test_a_call_whose_replica_died_goes_to_the_head():
    first, second, retried = ticket(), ticket(), ticket()
    queue = filled(first, second)
    queue.join(retried, at_head=True)
    assert list(queue) == [retried, first, second]


def test_leaving_twice_counts_once():
    one, other = ticket(10), ticket(20)
    queue = filled(one, other)
    assert queue.leave(one)
    assert not queue.leave(one)
    assert queue.waiting_bytes == 20
    assert len(queue) == 1


def test_only_a_few_behind_the_head_may_pass_it():
    tickets = [ticket() for _ in range(50)]
    assert list(filled(*tickets).behind_head()) == tickets[1 : 1 + LOOK_AHEAD]


def test_it_may_be_changed_while_it_is_walked():
    tickets = [ticket() for _ in range(5)]
    queue = filled(*tickets)
    for one in queue:
        queue.leave(one)
    assert (len(queue), queue.waiting_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("held", "size", "word"),
    [
        ([], 1, None),
        ([1, 1], 1, None),
        ([1, 1, 1], 1, "calls"),
        ([50], 50, None),
        ([50], 51, "bytes"),
        ([], 5000, None),  # alone it may wait whatever its size: the body bound is another one
    ],
)
def test_the_bounds_in_calls_and_in_bytes(held, size, word):
    queue = filled(*map(ticket, held), max_calls=3, max_bytes=100)
    reason = queue.refusal(SimpleNamespace(body=b"x" * size))
    assert (word in reason) if word else reason is None


def test_a_bound_of_zero_lets_nothing_wait():
    assert filled(max_calls=0).refusal(SimpleNamespace(body=b"")) is not None


@given(st.lists(st.tuples(st.sampled_from(["join", "head", "leave"]), st.integers(0, 30))))
def test_bytes_are_exactly_those_of_the_calls_that_wait(steps):
    queue, inside = filled(), []
    for step, number in steps:
        if step == "leave" and inside:
            one = inside.pop(number % len(inside))
            assert queue.leave(one)
        elif step == "join":
            inside.append(ticket(number))
            queue.join(inside[-1])
        elif step == "head":
            inside.insert(0, ticket(number))
            queue.join(inside[0], at_head=True)
        assert list(queue) == inside
        assert queue.waiting_bytes == sum(len(one.call.body) for one in inside)
        assert queue.head is (inside[0] if inside else None)
