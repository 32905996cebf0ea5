"""One suite over every dialect: whatever a replica sends, an answer of ours comes out.

A dialect reads bytes from a machine that may be broken, so none of its methods may fail in a way
that its Protocol does not name.
"""

import json
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.call import Ask, Cost
from router.config import DialectName
from router.dialects import DIALECTS, Ending, EngineInfo
from router.errors import RouterError, UpstreamShed
from router.estimates import Estimates
from router.lease import Report

pytestmark = pytest.mark.parametrize("name", DIALECTS)
WORDS = [
    *("error", "error_type", "message", "type", "generated_text", "details", "usage", "choices"),
    *("finish_reason", "input_length", "generated_tokens", "index", "token", "version"),
    *("max_total_tokens", "max_input_tokens", "max_batch_total_tokens", "model_id"),
    *("max_concurrent_requests", "completion_tokens", "prompt_tokens", "max_batch_size"),
    *("data", "id", "max_model_len", "total_slots", "default_generation_settings", "n_ctx"),
    *("delta", "response", "timings", "predicted_per_token_ms", "stop", "code", "detail"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=10,
)
DOCUMENTS = st.dictionaries(st.sampled_from(WORDS), JSON, max_size=6).map(json.dumps)
BYTES = st.binary(max_size=100) | DOCUMENTS.map(str.encode)
TUNED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_it_is_listed_under_its_own_name(name):
    dialect = DIALECTS[name]
    assert dialect.name == name
    for path in (dialect.health_path, *dialect.info_paths, dialect.metrics_path):
        assert path.startswith("/")


@pytest.mark.parametrize("model_id", [None, "org/model"])
def test_its_smallest_call_is_one_that_clients_could_make(name, model_id):
    path, body = DIALECTS[name].one_token(EngineInfo(model_id=model_id))
    assert path in DIALECTS[name].routes
    ask = GENERATION_APIS[path].parse(path, body)
    assert ask.new_tokens == 1
    assert ask.input_chars > 0
    assert not ask.stream


def test_the_config_knows_it(name):
    assert sorted(get_args(DialectName)) == sorted(DIALECTS)


def test_its_routes_are_all_read_by_some_api(name):
    """Else a call on one could never come in."""
    assert DIALECTS[name].routes
    assert DIALECTS[name].routes <= {*GENERATION_APIS, *TOKENIZER_APIS}


def test_every_route_is_some_dialects(name):
    """Else every call on it would be refused."""
    served = frozenset().union(*(dialect.routes for dialect in DIALECTS.values()))
    assert served == {*GENERATION_APIS, *TOKENIZER_APIS}


@given(bodies=st.lists(st.none() | BYTES, min_size=3, max_size=3))
@TUNED
def test_any_info_is_read_or_refused(name, bodies):
    paths = DIALECTS[name].info_paths
    pages = {path: body for path, body in zip(paths, bodies, strict=False) if body is not None}
    try:
        info = DIALECTS[name].info(pages)
    except ValueError:
        return
    assert isinstance(info, EngineInfo)
    assert info.capacity.requests >= 1
    assert info.capacity.tokens is None or info.capacity.tokens >= 1
    assert info.model_id is None or isinstance(info.model_id, str)
    assert all(isinstance(alias, str) for alias in info.aliases)
    json.dumps(dict(info.told))
    DIALECTS[name].cost(Ask(input_chars=10), info, Estimates())


@given(page=BYTES)
@TUNED
def test_any_metrics_page_is_read_or_says_nothing(name, page):
    queued = DIALECTS[name].engine_queue(page)
    assert queued is None or isinstance(queued, int)


@given(status=st.integers(100, 999), body=BYTES, content_type=st.sampled_from(["", "text/html"]))
@TUNED
def test_any_reply_is_judged(name, status, body, content_type):
    dialect = DIALECTS[name]
    for kind in (content_type, "application/json"):
        judged = dialect.refusal(status, {"content-type": kind}, body)
        assert judged is None or isinstance(judged, RouterError)
    for error in (judged, dialect.refused(status, body)):
        if error is not None:
            json.loads(GENERATION_APIS["/generate"].error_body(error))


@given(event=BYTES, prefix=st.sampled_from([b"data:", b"data: ", b""]))
@TUNED
def test_any_first_event_is_judged(name, event, prefix):
    judged = DIALECTS[name].failure(prefix + event)
    assert judged is None or isinstance(judged, RouterError)


@given(
    path=st.sampled_from(list(GENERATION_APIS)),
    events=st.lists(st.sampled_from([b"data: [DONE]", b":"]) | BYTES.map(b"data: ".__add__)),
)
@TUNED
def test_any_end_of_a_stream_is_judged(name, path, events):
    ending = DIALECTS[name].ending(path, b"".join(event + b"\n\n" for event in events))
    assert isinstance(ending, Ending)
    assert ending.generated_tokens is None or ending.generated_tokens >= 0
    if ending.error is not None:
        json.loads(GENERATION_APIS[path].error_body(ending.error))


@given(headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5)), body=BYTES)
@TUNED
def test_any_reply_makes_a_report(name, headers, body):
    report = DIALECTS[name].report(headers, body)
    assert isinstance(report, Report)
    for told in (report.prompt_tokens, report.generated_tokens, report.between_tokens_s):
        assert told is None or told >= 0


@given(
    chars=st.integers(1, 10**9),
    sequences=st.integers(1, 1024),
    images=st.integers(0, 100),
    new_tokens=st.integers(0, 2**32 - 1) | st.sampled_from(["absent", "rest"]),
    truncate=st.none() | st.integers(0, 2**63),
    total=st.none() | st.integers(1, 2**31),
)
@TUNED
def test_any_ask_costs_something_and_longer_answers_no_less(
    name, chars, sequences, images, new_tokens, truncate, total
):
    ask = Ask(
        sequences=sequences,
        input_chars=chars,
        images=images,
        new_tokens=new_tokens,
        truncate_tokens=truncate,
    )
    info = EngineInfo(max_total_tokens=total)
    cost = DIALECTS[name].cost(ask, info, Estimates())
    assert isinstance(cost, Cost)
    assert cost.requests == sequences
    assert min(cost.input_tokens, cost.reserve_tokens, cost.expected_tokens) >= 1
    if isinstance(new_tokens, int):
        longer = DIALECTS[name].cost(ask._replace(new_tokens=new_tokens + 100), info, Estimates())
        assert longer.reserve_tokens >= cost.reserve_tokens
        assert longer.expected_tokens >= cost.expected_tokens


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_replica_is_a_shed_and_no_fault(name, status):
    judged = DIALECTS[name].refusal(status, {}, b"")
    assert isinstance(judged, UpstreamShed)
    assert not judged.hurts_health


def test_a_silent_end_is_never_whole(name):
    for path in GENERATION_APIS:
        assert not DIALECTS[name].ending(path, b"").is_whole
