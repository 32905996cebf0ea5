"""Order and bounds of waiting calls, and how tenants and priorities share them."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import Ask, Call, Cost, Priority
from router.request_queue import LOOK_AHEAD, PASSES, RequestQueue, Ticket

HIGH, NORMAL, LOW = Priority


def called(size=1, tenant="", priority=NORMAL):
    return SimpleNamespace(body=b"x" * size, tenant=tenant, priority=priority)


def ticket(size=1, *, tenant="", priority=NORMAL, tokens=10, is_retry=False):
    cost = Cost(requests=1, input_tokens=tokens, reserve_tokens=tokens, expected_tokens=0)
    call = called(size, tenant, priority)
    return Ticket(call, cost, enqueued_s=0.0, grant=None, account=None, is_retry=is_retry)


def join(queue, one, **how):
    one.account = queue.account(one.call)
    queue.join(one, **how)
    return one


def filled(*tickets, max_calls=100, max_bytes=1000, weights=None):
    queue = RequestQueue(max_calls, max_bytes, weights)
    for one in tickets:
        join(queue, one)
    return queue


def take(queue):
    """The head has its turn."""
    head = queue.head
    queue.take(head)
    queue.charge(head.call, head.account, head.tokens)
    return head


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
    join(queue, retried, at_head=True)
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
    reason = queue.refusal(called(size))
    assert (word in reason) if word else reason is None


def test_a_bound_of_zero_lets_nothing_wait():
    assert filled(max_calls=0).refusal(called(0)) is not None


@given(st.lists(st.tuples(st.sampled_from(["join", "head", "leave"]), st.integers(0, 30))))
def test_bytes_are_exactly_those_of_the_calls_that_wait(steps):
    queue, first, others = filled(), [], []
    for step, number in steps:
        inside = [*first, *others]
        if step == "leave" and inside:
            one = inside[number % len(inside)]
            (first if one in first else others).remove(one)
            assert queue.leave(one)
        elif step == "join":
            others.append(ticket(number))
            join(queue, others[-1])
        elif step == "head":
            first.append(ticket(number))
            join(queue, first[-1], at_head=True)
        inside = [*first, *others]
        assert list(queue) == inside
        assert queue.waiting_bytes == sum(len(one.call.body) for one in inside)
        assert queue.head is (inside[0] if inside else None)


# ---- tenants ----


def test_each_tenant_s_calls_keep_their_order_and_turns_go_round():
    queue = filled(*(ticket(tenant=name) for name in "aaaabbc"))
    assert [take(queue).call.tenant for _ in range(7)] == list("abcabaa")


def test_turns_go_by_tokens_not_by_calls():
    long = [ticket(tenant="long", tokens=100) for _ in range(10)]
    short = [ticket(tenant="short", tokens=10) for _ in range(100)]
    queue = filled(*long, *short)
    served = Counter()
    for _ in range(55):
        served[take(queue).call.tenant] += 1
    assert served == {"long": 5, "short": 50}


def test_a_weight_of_three_is_three_times_the_tokens():
    calls = [ticket(tenant=name) for name in "ab" * 50]
    queue = filled(*calls, weights={"a": 3.0})
    served = Counter(take(queue).call.tenant for _ in range(40))
    assert served == {"a": 30, "b": 10}


def test_what_a_call_came_to_is_put_right_when_it_ends():
    queue = filled(*(ticket(tenant=name, tokens=100) for name in "ababab"))
    first, second = take(queue), take(queue)
    queue.settle(second.call, second.account, -95)
    assert [take(queue).call.tenant for _ in range(2)] == ["b", "a"]
    queue.settle(first.call, first.account, 0)


def test_a_flood_does_not_delay_a_quiet_tenant_s_call_by_more_than_a_turn():
    queue = filled(*(ticket(tenant="flood") for _ in range(90)))
    for _ in range(20):
        take(queue)
    mine = join(queue, ticket(tenant="quiet"))
    assert mine in [take(queue), take(queue)]


def test_those_who_may_pass_a_blocked_head_are_those_who_would_come_next():
    calls = [
        ticket(tenant=name, tokens=tokens)
        for name, tokens in zip("aabacbb" * 5, range(1, 36), strict=True)
    ]
    queue = filled(*calls)
    head, behind = queue.head, list(queue.behind_head())
    assert len(behind) == LOOK_AHEAD
    assert [take(queue) for _ in range(1 + LOOK_AHEAD)] == [head, *behind]


# ---- priorities ----


def test_high_comes_before_normal_before_low_and_fairness_is_within():
    queue = filled(*(ticket(priority=one) for one in (LOW, NORMAL, HIGH, LOW, NORMAL, HIGH)))
    assert [take(queue).call.priority for _ in range(6)] == [HIGH, HIGH, NORMAL, NORMAL, LOW, LOW]


@pytest.mark.parametrize("tokens", [1, 10, 300])
def test_a_priority_that_waits_gets_a_ninth_of_the_tokens(tokens):
    """Whatever the sizes: no flood above it starves it."""
    queue = filled(*(ticket(priority=LOW, tokens=tokens) for _ in range(30)), max_calls=10**6)
    served = Counter()
    while sum(served.values()) < 9000:
        join(queue, ticket(priority=HIGH, tokens=10))
        taken = take(queue)
        served[taken.call.priority] += taken.tokens
        assert served[LOW] <= 30 * tokens
        if served[LOW] == 30 * tokens:
            break
    total = sum(served.values())
    assert served[LOW] == pytest.approx(total / (1 + PASSES), abs=tokens + 10)


def test_the_lowest_two_do_not_starve_each_other():
    queue = filled(*(ticket(priority=one) for one in [NORMAL, LOW] * 20), max_calls=10**6)
    served = Counter()
    for _ in range(110):
        join(queue, ticket(priority=HIGH))
        served[take(queue).call.priority] += 1
    assert served[NORMAL] >= 10
    assert served[LOW] >= 10
    assert served[HIGH] >= 80


def test_a_retried_call_goes_before_every_priority():
    queue = filled(ticket(priority=HIGH))
    retried = join(queue, ticket(priority=LOW, is_retry=True), at_head=True)
    assert queue.head is retried


def test_a_retried_call_of_one_that_was_idle_for_long_brings_no_credit_for_anybody():
    queue = filled(*(ticket(tenant="busy", tokens=1000) for _ in range(5)))
    old = queue.account(called(tenant="old"))
    for _ in range(4):
        take(queue)
    retried = join(queue, ticket(tenant="old", is_retry=True), at_head=True)
    take(queue)
    assert old is retried.account
    take(queue)
    assert len(queue) == 0
    late = join(queue, ticket(tenant="late"))
    assert late.account.counter >= 4000


# ---- places ----


def places(queue):
    return {name: one.count for name, one in queue.places.items()}


def giving_way(queue, call):
    return queue.giving_way(call, queue.account(call))


def test_a_tenant_within_its_share_takes_the_newest_place_of_the_one_that_holds_most():
    flood = [ticket(tenant="flood") for _ in range(9)]
    queue = filled(*flood, ticket(tenant="other"), max_calls=10)
    assert giving_way(queue, called(tenant="quiet")) == [flood[-1]]


@pytest.mark.parametrize("tenant", ["a", "b"])
def test_one_that_holds_its_share_takes_nobody_s_place(tenant):
    queue = filled(*(ticket(tenant=name) for name in "abab"), max_calls=4)
    assert giving_way(queue, called(tenant=tenant)) == []


def test_the_flood_itself_is_refused_not_the_others():
    queue = filled(*(ticket(tenant=name) for name in "aaab"), max_calls=4)
    assert giving_way(queue, called(tenant="a")) == []
    assert giving_way(queue, called(tenant="b")) != []


def test_shares_of_places_follow_the_weights():
    queue = filled(*(ticket(tenant=name) for name in "aabb"), max_calls=4, weights={"a": 3.0})
    [leaving] = giving_way(queue, called(tenant="a"))
    assert leaving.call.tenant == "b"


def test_what_is_least_urgent_gives_way_first():
    order = [LOW, HIGH, NORMAL, LOW, NORMAL, HIGH]
    flood = [ticket(tenant="flood", priority=one) for one in order]
    queue = filled(*flood, max_calls=6)
    leaving = []
    for _ in range(3):
        [one] = giving_way(queue, called(tenant="quiet", priority=LOW))
        leaving.append(one)
        queue.leave(one)
        join(queue, ticket(tenant="quiet", priority=LOW))
    assert leaving == [flood[3], flood[0], flood[4]]
    assert giving_way(queue, called(tenant="quiet", priority=LOW)) == []


def test_a_tenant_may_put_a_call_before_a_less_urgent_one_of_its_own():
    calls = [ticket(priority=one) for one in (LOW, NORMAL)]
    queue = filled(*calls, max_calls=2)
    assert giving_way(queue, called(priority=HIGH)) == [calls[0]]
    assert giving_way(queue, called(priority=NORMAL)) == [calls[0]]
    assert giving_way(queue, called(priority=LOW)) == []


def test_a_call_that_was_admitted_before_gives_way_to_nobody():
    flood = [ticket(tenant="flood", is_retry=position > 0) for position in range(3)]
    queue = filled(*flood, max_calls=3)
    join(queue, ticket(tenant="flood", is_retry=True), at_head=True)
    assert giving_way(queue, called(tenant="quiet")) == []  # two would have to leave: one may
    queue.leave(flood[2])
    assert giving_way(queue, called(tenant="quiet")) == [flood[0]]


def test_bytes_are_shared_like_places():
    flood = [ticket(30, tenant="flood") for _ in range(3)]
    queue = filled(*flood, ticket(10, tenant="quiet"), max_bytes=100)
    assert giving_way(queue, called(40, tenant="quiet")) == [flood[2], flood[1]]
    assert giving_way(queue, called(41, tenant="quiet")) == []  # over half of them
    assert giving_way(queue, called(1, tenant="flood")) == []


NAMES = st.sampled_from("abcd")
CALLS = st.lists(st.tuples(NAMES, st.integers(0, 40), st.sampled_from(Priority)), max_size=60)


@given(CALLS, st.tuples(NAMES, st.integers(0, 60), st.sampled_from(Priority)))
def test_who_gives_way_makes_room_and_held_more_than_who_comes(held, comes):
    queue = filled(max_calls=8, max_bytes=150, weights={"a": 2.0})
    for name, size, priority in held:
        if queue.refusal(call := called(size, name, priority)) is None:
            join(queue, ticket(size, tenant=call.tenant, priority=priority))
    name, size, priority = comes
    call = called(size, name, priority)
    is_full = queue.refusal(call) is not None
    weights = {one: 2.0 if one == "a" else 1.0 for one in "abcd"}
    leaving = giving_way(queue, call) if is_full else []
    for one in leaving:
        if one.call.tenant == name:
            assert one.call.priority > priority
        else:
            held_by = queue.places[one.call.tenant]
            mine = queue.places.get(name)
            count, size_held = (mine.count, mine.body_bytes) if mine else (0, 0)
            assert (
                held_by.count / weights[one.call.tenant] > count / weights[name]
                or held_by.body_bytes / weights[one.call.tenant] > size_held / weights[name]
            )
    for one in leaving:
        queue.leave(one)
    assert not leaving or queue.refusal(call) is None


@given(CALLS)
def test_what_each_tenant_holds_adds_up(calls):
    queue = filled(max_calls=10**6, max_bytes=10**9)
    inside = [
        join(queue, ticket(size, tenant=name, priority=priority)) for name, size, priority in calls
    ]
    for one in inside[::2]:
        queue.leave(one)
    inside = inside[1::2]
    assert places(queue) == Counter(one.call.tenant for one in inside)
    assert sorted(map(id, queue)) == sorted(map(id, inside))
    for one in inside:
        queue.leave(one)
    assert (len(queue), queue.places, queue.waiting_tokens) == (0, {}, 0.0)
    assert not any(one.account.users for one in inside)


# ---- what is ahead ----


@given(
    st.lists(st.tuples(NAMES, st.integers(1, 50), st.sampled_from(Priority)), max_size=40),
    NAMES,
    st.sampled_from(Priority),
)
def test_what_is_ahead_of_a_call_is_what_has_its_turn_before_it(waiting, tenant, priority):
    """To within a call of each tenant, and of each priority below, as turns are whole calls."""
    queue = filled(max_calls=10**6)
    for name, tokens, its in waiting:
        join(queue, ticket(tenant=name, tokens=tokens, priority=its))
    for _ in range(len(waiting) // 4):
        take(queue)
    mine = ticket(tenant=tenant, tokens=20, priority=priority)
    told = queue.tokens_ahead(mine.call, queue.account(mine.call), mine.tokens)
    join(queue, mine)
    ahead, below = 0.0, 0.0
    while (taken := take(queue)) is not mine:
        ahead += taken.tokens
        below += taken.tokens * (taken.call.priority > priority)
    assert told - 4 * 50 - 50 * PASSES <= ahead <= told + 4 * 50 + below + 50 * PASSES


def test_of_one_tenant_all_that_waits_is_ahead_exactly():
    queue = filled(*(ticket(tokens=tokens) for tokens in (5, 10, 20)))
    call = called()
    assert queue.tokens_ahead(call, queue.account(call), 7.0) == 35.0


def test_the_flood_of_others_is_ahead_only_as_far_as_shares_have_it():
    queue = filled(*(ticket(tenant="flood") for _ in range(50)), *(ticket(tenant="me"),))
    call = called(tenant="me")
    assert queue.tokens_ahead(call, queue.account(call), 10.0) == 20.0


def test_weights_that_change_leave_the_sum_of_weights_right():
    queue = RequestQueue(64, 1 << 20, {"a": 9.0, "t": 1.0})

    def ticket(tenant, priority):
        call = Call("i", "/", Ask(), b"", (), 0, 9, 9, tenant=tenant, priority=priority)
        return Ticket(call, Cost(1, 1, 1, 1), 0.0, None, queue.account(call))

    other, first = ticket("a", Priority.NORMAL), ticket("t", Priority.NORMAL)
    queue.join(other)
    queue.join(first)
    queue.use(1 << 20, {"a": 9.0, "t": 10.0})
    second = ticket("t", Priority.LOW)
    queue.join(second)
    queue.leave(first)
    queue.leave(second)
    assert queue.share(other.account) == 1.0
