"""The JSON Schema that editors use takes what the loader takes, and says what each key means."""

import json

import jsonschema
import pytest
import yaml

from launcher.commands import schema


@pytest.fixture(scope="module")
def validator():
    found = schema.cluster_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.mark.parametrize(
    "text",
    [
        "models: [a]",
        "models: [{id: a, engine: tgi, devices: [0, 'cuda:1', GPU-1]}]\nengine: simulator",
        "models: [a]\nruntime: process",
        "models: [{id: a, replicas: '${N}'}]\nrouter: {port: '${PORT:-1}', log_calls: '${L}'}",
        "cluster: '${C}'\nmodels: [a]\nrouter: {policy: '${P}'}",
        "x-base: &b {replicas: 2}\nmodels: [{id: a, <<: *b}]",
        "models: [a]\nengine: {args: {a: 1, b: x, c: true, d: null, e: 0.5}}",
        "models: [a]\nengine: {per_replica: [{a: 1}]}",
    ],
)
def test_what_the_loader_takes_is_not_underlined(validator, text):
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "models: []",
        "models: [a]\nfoo: 1",
        "models: [{id: a, quantise: awq}]",
        "models: [{id: a, replicas: 0}]",
        "models: [{id: a, replicas: four}]",
        "models: [a]\nengine: vlm",
        "models: [a]\nrouter: {policy: fastest}",
        "models: [a]\nrouter: {port: 70000}",
        "cluster: My Cluster\nmodels: [a]",
    ],
)
def test_what_the_loader_refuses_is_underlined(validator, text):
    assert list(validator.iter_errors(yaml.safe_load(text)))


def described(found, path=""):
    """Every key of every mapping in the schema, with whether something is said about it."""
    if isinstance(found, dict):
        for key, value in found.get("properties", {}).items():
            says = "description" in value or "$ref" in json.dumps(value)
            yield f"{path}.{key}", says
        for key, value in found.items():
            yield from described(value, f"{path}.{key}")
    if isinstance(found, list):
        for value in found:
            yield from described(value, path)


def test_every_key_says_what_it_means():
    keys = dict(described(schema.cluster_schema()))
    assert len(keys) > 50
    assert [key for key, says in keys.items() if not says] == []


def test_the_command_prints_the_schema(capsys):
    assert schema.run() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in printed
    assert printed == schema.cluster_schema()
