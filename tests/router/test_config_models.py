"""The router's options: defaults as documented, limits, and slips that are not guessed at."""

import pytest
from pydantic import ValidationError

from router.config import (
    HealthConfig,
    KeyConfig,
    LimitsConfig,
    QueueConfig,
    ReplicaConfig,
    RetryConfig,
    RouterConfig,
    RouterFile,
    TimeoutConfig,
    TlsConfig,
)
from router.config.models import AdminConfig, TenantConfig

MODELS = [
    TenantConfig,
    *(RouterConfig, QueueConfig, TimeoutConfig, HealthConfig, RetryConfig, AdminConfig),
    *(ReplicaConfig, RouterFile, KeyConfig, LimitsConfig, TlsConfig),
]


def test_the_defaults_are_those_of_the_design():
    config = RouterConfig()
    assert (config.host, config.port, config.policy) == ("127.0.0.1", 8080, "expected_finish")
    assert config.queue.max_bytes == 512 * 1024**2
    assert config.queue.max_overtake_s == 2.0
    assert config.timeouts.stream_open_after_s == 10.0
    assert config.retries.budget_share == 0.2
    assert config.retries.max_deaths == 2
    assert 0 < config.health.max_ejected_share < 1


@pytest.mark.parametrize("model", MODELS)
def test_a_key_that_is_not_known_is_refused(model):
    with pytest.raises(ValidationError, match="unknown_key"):
        model.model_validate({"unknown_key": 1, "url": "http://h:1"})


@pytest.mark.parametrize("model", MODELS)
def test_every_field_says_what_it_means(model):
    for name, field in model.model_fields.items():
        is_section = hasattr(field.annotation, "model_fields")
        has_pattern = bool(field.metadata) or "list" in str(field.annotation)
        assert field.description or is_section or has_pattern, name


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (RouterConfig, "port"),
        (RouterConfig, "max_body_bytes"),
        (QueueConfig, "max_calls"),
        (QueueConfig, "timeout_s"),
        (TimeoutConfig, "total_s"),
        (TimeoutConfig, "first_event_s"),
        (HealthConfig, "fall"),
        (HealthConfig, "interval_s"),
        (RetryConfig, "budget_share"),
        (AdminConfig, "port"),
    ],
)
@pytest.mark.parametrize("value", [True, False, "many", [], {}, float("nan"), float("inf"), -1])
def test_a_number_is_a_number_and_in_its_range(model, key, value):
    with pytest.raises(ValidationError, match=key):
        model.model_validate({key: value})


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (TimeoutConfig, {"total_s": 0}),
        (HealthConfig, {"fall": 0}),
        (HealthConfig, {"rise": 0}),
        (HealthConfig, {"max_ejected_share": 1.01}),
        (RetryConfig, {"max_attempts": 0}),
        (RetryConfig, {"budget_share": 1.5}),
        (RetryConfig, {"max_deaths": 0}),
        (RouterConfig, {"port": 65_536}),
        (RouterConfig, {"policy": "fastest"}),
        (RouterConfig, {"max_body_bytes": 10}),
        (QueueConfig, {"timeout_s": 1e9}),
        (ReplicaConfig, {"url": "http://h:1", "id": "../etc"}),
        (ReplicaConfig, {"url": "http://h:1", "id": "a" * 64}),
        (ReplicaConfig, {"url": "http://h:1", "max_requests": 0}),
        (ReplicaConfig, {"url": "http://h:1", "model": ""}),
        (AdminConfig, {"port": 9000}),
        (AdminConfig, {"port": 9000, "token": "short"}),
    ],
)
def test_an_impossible_value_is_refused(model, values):
    with pytest.raises(ValidationError):
        model.model_validate(values)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (QueueConfig, {"timeout_s": 0, "max_calls": 0, "max_bytes": 0, "max_overtake_s": 0}),
        (RouterConfig, {"port": 0}),
        (RetryConfig, {"budget_share": 0, "max_attempts": 1, "max_deaths": 1}),
        (HealthConfig, {"max_ejected_share": 0}),
        (TimeoutConfig, {"drain_s": 0, "first_event_s": None}),
        (AdminConfig, {"port": 0, "token": "0123456789abcdef"}),
    ],
)
def test_zero_is_meant_where_it_has_a_meaning(model, values):
    made = model.model_validate(values)
    assert {key: getattr(made, key) for key in values} == values


def test_a_replica_may_be_its_url_alone():
    made = ReplicaConfig.model_validate("http://10.0.0.7:8080/")
    assert (made.url, made.id, made.model) == ("http://10.0.0.7:8080", None, "default")


def test_secrets_do_not_show():
    config = RouterConfig(
        engine_api_key="hunter2hunter2", admin=AdminConfig(port=0, token="swordfish-swordfish")
    )
    assert "hunter2" not in repr(config)
    assert "swordfish" not in repr(config)


def test_configs_do_not_change_after_they_were_read():
    with pytest.raises(ValidationError):
        RouterConfig().port = 1


def test_tenants_have_a_weight_of_one_and_may_be_as_urgent_as_they_like_unless_told():
    config = RouterConfig.model_validate({"tenants": {"a": {}, "": {"weight": 0.5}}})
    assert (config.tenants["a"].weight, config.tenants["a"].max_priority) == (1.0, "high")
    assert config.tenants[""].weight == 0.5
    assert config.queue.tenant_header == "x-fleet-tenant"


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenants": {"a b": {}}},
        {"tenants": {"x" * 65: {}}},
        {"tenants": {"*": {}}},
        {"tenants": {"a": {"weight": 0}}},
        {"tenants": {"a": {"weight": float("inf")}}},
        {"tenants": {"a": {"max_priority": "urgent"}}},
        {"queue": {"tenant_header": "X Team"}},
        {"queue": {"tenant_header": ""}},
    ],
)
def test_what_no_tenant_can_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        RouterConfig.model_validate(wrong)
