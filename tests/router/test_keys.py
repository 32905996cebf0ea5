"""Who is let in by which key, how much it may, and what a call costs its key in the end."""

from asyncio import CancelledError
from contextlib import suppress
from hashlib import sha256

import pytest

from router.call import Cost
from router.config import KeyConfig
from router.errors import (
    ClientGone,
    RateLimited,
    RouterError,
    Unauthorized,
    UpstreamBroken,
    UpstreamRefusal,
)
from router.keys import KeyStore
from router.lease import Report
from router.record import Record


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def key(name, secret=None, **limits):
    digest = sha256((secret or f"secret-of-{name}").encode()).hexdigest()
    return KeyConfig(name=name, hash=f"sha256:{digest}", **limits)


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def record():
    return Record("id", "/generate", 0.0)


def admitted(store, name="a"):
    return store.admit(bearer(f"secret-of-{name}"), record())


COST = Cost(requests=1, input_tokens=10, reserve_tokens=100, expected_tokens=30)


# ---- who ----


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret-of-b"},
        {"authorization": "bearer   secret-of-b "},
        {"x-api-key": "secret-of-b"},
        {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": "secret-of-b"},
    ],
)
def test_a_key_is_taken_from_either_header(clock, headers):
    store = KeyStore([key("a"), key("b", tenant="team")], clock)
    account = store.account(headers)
    assert (account.name, account.tenant) == ("b", "team")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer"},
        {"authorization": "secret-of-a"},
        {"authorization": "Basic secret-of-a"},
        {"authorization": "Bearer Bearer secret-of-a"},
        {"authorization": "Bearer secret-of-"},
        {"authorization": "Bearer secret-of-aa"},
        {"authorization": "Bearer SECRET-OF-A"},
        {"authorization": "Bearer wrong", "x-api-key": "secret-of-a"},
        {"authorization": f"Bearer sha256:{sha256(b'secret-of-a').hexdigest()}"},
        {"x-api-key": sha256(b"secret-of-a").hexdigest()},
        {"x-api-key": "\udcff\x00"},
        {"cookie": "secret-of-a"},
    ],
)
def test_anything_else_is_unauthorized_and_the_message_repeats_nothing(clock, headers):
    store = KeyStore([key("a"), key("b")], clock)
    with pytest.raises(Unauthorized) as error:
        store.admit(headers, record())
    assert "secret" not in error.value.message
    assert not any(account.running for account in store._accounts.values())


def test_the_hash_of_nothing_is_no_way_in(clock):
    with pytest.raises(Unauthorized):
        KeyStore([key("a")], clock).account({"authorization": "Bearer " + "\0" * 32})


def test_without_keys_everybody_may_do_everything(clock):
    store = KeyStore([], clock)
    assert store.is_open
    with store.admit({}, one := record()) as permit:
        permit.charge(Cost(1, 10**9, 10**9, 10**9))
        assert permit.account.models is None
    assert one.account == ""


# ---- how much ----


def test_calls_a_minute_are_counted_and_retry_after_is_true(clock):
    store = KeyStore([key("a", requests_per_minute=2)], clock)
    for _ in range(2):
        admitted(store).__exit__(None, None, None)
    with pytest.raises(RateLimited) as error:
        admitted(store)
    assert error.value.retry_after_s == 30
    clock.now_s += 29
    with pytest.raises(RateLimited) as error:
        admitted(store)
    assert error.value.retry_after_s == 1
    clock.now_s += 1
    admitted(store)


def test_keys_of_one_name_share_their_limits_and_others_do_not(clock):
    store = KeyStore(
        [key("a", "old", max_concurrent=1), key("a", "new", max_concurrent=1), key("b")], clock
    )
    with store.admit(bearer("old"), record()):
        with pytest.raises(RateLimited):
            store.admit(bearer("new"), record())
        admitted(store, "b")
    with store.admit(bearer("new"), record()):
        pass


def test_calls_at_a_time_are_told_when_one_is_likely_to_end(clock):
    store = KeyStore([key("a", max_concurrent=2)], clock)
    for _ in range(20):  # one ends every four seconds
        with admitted(store):
            clock.now_s += 4
    with admitted(store), admitted(store):
        with pytest.raises(RateLimited) as error:
            admitted(store)
        assert 2 <= error.value.retry_after_s <= 8
    admitted(store)


def test_a_call_without_tokens_left_costs_no_call(clock):
    refusals = []
    store = KeyStore(
        [key("a", tokens_per_minute=50, requests_per_minute=2)],
        clock,
        lambda *it: refusals.append(it),
    )
    with admitted(store) as permit:
        permit.charge(COST)
        permit.record.report = Report(prompt_tokens=10, generated_tokens=30)
    for _ in range(5):
        with admitted(store) as permit, pytest.raises(RateLimited) as error:
            permit.charge(COST)
    assert error.value.retry_after_s == 36, "30 of 50 tokens are missing"
    assert refusals == [("a", "tokens")] * 5
    clock.now_s += 36
    with admitted(store) as permit:
        permit.charge(COST)


def left(store, name="a"):
    return store._accounts[name].tokens.left(store._clock())


ENDINGS = {
    "as reported": ({"attempts": 1, "report": Report(7, 5)}, 12),
    "more than expected": ({"attempts": 1, "report": Report(100, 900)}, 1000),
    "the answer only": ({"attempts": 1, "report": Report(None, 5)}, 15),
    "the prompt only, as embeddings": ({"attempts": 1, "report": Report(7, None)}, 7),
    "nothing told": ({"attempts": 1}, 40),
    "a stream that broke off": (
        {"attempts": 1, "events": 4, "error": UpstreamBroken("x")},
        14,
    ),
    "a client that left a stream": ({"attempts": 1, "events": 2, "error": ClientGone("x")}, 12),
    "a client that left while a replica worked": ({"attempts": 1, "error": ClientGone("x")}, 40),
    "a client that left the queue": ({"attempts": 0, "error": ClientGone("x")}, 0),
    "all replicas failed": ({"attempts": 3, "error": UpstreamBroken("x")}, 0),
    "the engine refused it": (
        {"attempts": 1, "told": UpstreamRefusal("x", status=422, error_type="validation")},
        0,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_in_the_end_a_call_costs_what_it_used(clock, name):
    known, used = ENDINGS[name]
    store = KeyStore([key("a", tokens_per_minute=10_000)], clock)
    failure = known.get("error")
    with suppress(RouterError, CancelledError), admitted(store) as permit:
        permit.charge(COST)
        assert left(store) == 10_000 - 40
        for field, value in known.items():
            setattr(permit.record, field, value)
        if failure is not None:
            raise CancelledError if isinstance(failure, ClientGone) else failure
    assert left(store) == 10_000 - used


def test_who_used_more_than_was_expected_pays_it_back(clock):
    store = KeyStore([key("a", tokens_per_minute=600)], clock)
    with admitted(store) as permit:
        permit.charge(COST)
        permit.record.report = Report(10, 1800)
    with admitted(store) as permit, pytest.raises(RateLimited) as error:
        permit.charge(COST)
    assert error.value.retry_after_s == (1810 - 600 + 40) / 10


def test_a_call_that_ends_in_an_exception_ends_for_its_key_as_well(clock):
    store = KeyStore([key("a", max_concurrent=1)], clock)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admitted(store):
            _ = 1 / 0
    assert store._accounts["a"].running == 0


# ---- another list ----


def test_a_new_list_takes_over_at_once_and_who_stays_keeps_what_was_used(clock):
    store = KeyStore([key("a", "one", requests_per_minute=2), key("b")], clock)
    store.admit(bearer("one"), record()).__exit__(None, None, None)
    running = admitted(store, "b")
    store.replace([key("a", "two", requests_per_minute=2), key("c")])
    for gone in ("one", "secret-of-b"):
        with pytest.raises(Unauthorized):
            store.account(bearer(gone))
    store.admit(bearer("two"), record())
    with pytest.raises(RateLimited):
        store.admit(bearer("two"), record())
    running.__exit__(None, None, None)
    store.replace([key("a", "two", tenant="t", models=["m"])])
    account = store.account(bearer("two"))
    assert (account.tenant, account.models, account.requests) == ("t", {"m"}, None)
    store.replace([])
    assert store.account({}).name == ""
