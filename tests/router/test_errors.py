"""The table of errors: status, whose fault, what may be tried again. As the design lists it."""

import inspect
import json

import pytest

from router import errors
from router.apis import GENERATION_APIS
from router.errors import (
    ConfigError,
    ConfigProblem,
    OperatorError,
    Retry,
    RouterError,
    StartError,
    UpstreamFault,
    UpstreamRefusal,
)

# class: status, error_type, retry, hurts health
TABLE = {
    "InvalidRequest": (422, "validation", Retry.NEVER, False),
    "BodyTooLarge": (413, "validation", Retry.NEVER, False),
    "ModelNotFound": (404, "validation", Retry.NEVER, False),
    "ClientGone": (499, None, Retry.NEVER, False),
    "QueueFull": (429, "overloaded", Retry.NEVER, False),
    "QueueTimeout": (503, "overloaded", Retry.NEVER, False),
    "NoReplica": (503, "overloaded", Retry.NEVER, False),
    "ShuttingDown": (503, "overloaded", Retry.NEVER, False),
    "UpstreamShed": (429, "overloaded", Retry.ELSEWHERE, False),
    "ConnectFailed": (502, "generation", Retry.SAFE, True),
    "ReplicaLoading": (503, "overloaded", Retry.SAFE, True),
    "RouteNotServed": (404, "not_found", Retry.NEVER, False),
    "UpstreamTimeout": (504, "generation", Retry.BUDGET, True),
    "UpstreamBroken": (502, "incomplete_generation", Retry.BUDGET, True),
    "ReplicaLost": (502, "incomplete_generation", Retry.SAFE, True),
    "PoisonCall": (422, "validation", Retry.NEVER, False),
    "Unauthorized": (401, None, Retry.NEVER, False),
    "Forbidden": (403, None, Retry.NEVER, False),
    "RateLimited": (429, "rate_limited", Retry.NEVER, False),
}
CLASSES = [
    one
    for _, one in inspect.getmembers(errors, inspect.isclass)
    if issubclass(one, RouterError) and one not in (RouterError, UpstreamRefusal, UpstreamFault)
]


@pytest.mark.parametrize("name", TABLE)
def test_each_class_is_what_the_design_says(name):
    one = getattr(errors, name)("x")
    status, error_type, retry, hurts = TABLE[name]
    assert (one.status, one.retry, one.hurts_health) == (status, retry, hurts)
    assert error_type in (None, one.error_type)


@pytest.mark.parametrize("one", CLASSES)
def test_only_a_replicas_failure_may_be_tried_again_or_hurts_it(one):
    made = one("x")
    if made.hurts_health:
        assert made.status >= 500
        assert made.retry is not Retry.NEVER
    if made.status < 500 and made.retry is not Retry.NEVER:
        assert one is errors.UpstreamShed


@pytest.mark.parametrize("one", CLASSES)
@pytest.mark.parametrize("text", ["", "é", "\udcff raw bytes of a path", "a\nb", "x" * 10_000])
def test_any_message_can_be_sent_in_either_shape(one, text):
    made = one(text)
    for api in GENERATION_APIS.values():
        json.loads(api.error_body(made))
        assert api.error_event(made).endswith(b"\n\n")


def test_a_refusal_and_a_fault_carry_what_the_replica_said():
    refusal = UpstreamRefusal("x", status=422, error_type="template_error")
    assert (refusal.status, refusal.error_type, refusal.retry) == (
        422,
        "template_error",
        Retry.NEVER,
    )
    assert not refusal.hurts_health
    fault = UpstreamFault("x", status=500, error_type="incomplete_generation")
    assert (fault.status, fault.error_type, fault.retry) == (
        500,
        "incomplete_generation",
        Retry.BUDGET,
    )
    assert fault.hurts_health
    assert UpstreamFault("x").status == 424, "one's status is not the class's"


def test_retry_after_is_the_instances_own():
    assert errors.QueueFull("x", retry_after_s=7).retry_after_s == 7
    assert errors.QueueFull("x").retry_after_s is None


def test_a_config_error_shows_every_problem_with_its_place():
    problems = [
        ConfigProblem("fleet.yaml", 3, "models[1].devices", "1 device", "2 devices"),
        ConfigProblem("command line", None, "--port", "99999", "a port"),
        ConfigProblem("fleet.yaml", 1, "", "nothing", "a mapping"),
    ]
    error = ConfigError(problems)
    assert str(error).splitlines() == [
        "fleet.yaml:3: models[1].devices: found 1 device, expected 2 devices",
        "command line: --port: found 99999, expected a port",
        "fleet.yaml:1: found nothing, expected a mapping",
    ]
    assert error.exit_code == 2
    assert error.problems == problems


def test_other_operator_errors_exit_with_one():
    for name in ("DeviceError", "PlacementError", "StartError", "StopError", "StateError"):
        one = getattr(errors, name)
        assert issubclass(one, OperatorError)
        assert one("x").exit_code == 1
    assert StartError("x").recoverable
    assert not StartError("x", recoverable=False).recoverable
