"""Every example config loads, agrees with the schema editors use, and becomes replicas."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from launcher.commands.schema import schema_text
from launcher.config import load_cluster_config
from launcher.engines import ENGINES
from launcher.placement import replica_specs
from router.config import RouterFile, load_model, read_source

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLES = sorted({*CONFIGS.glob("*.yaml")} - {*CONFIGS.glob("compose*.yaml")})
CLUSTERS = [path for path in EXAMPLES if path.name != "router-only.yaml"]


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_every_example_becomes_commands(path):
    specs = replica_specs(load_cluster_config(path))
    commands = [ENGINES[spec.engine_name].command(spec, 31_000, "127.0.0.1") for spec in specs]
    assert len({spec.id for spec in specs}) == len(specs) == 4
    assert all(spec.model_id in command.argv for spec, command in zip(specs, commands, strict=True))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_every_example_names_the_schema_and_satisfies_it(path):
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    schema = json.loads((CONFIGS / "schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(text))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_router_reads_every_example(path):
    config = load_model(read_source(path), RouterFile)
    assert config.router.port == 8080


def test_the_router_only_example_names_two_replicas():
    config = load_model(read_source(CONFIGS / "router-only.yaml"), RouterFile)
    assert [replica.url for replica in config.replicas] == [
        "http://127.0.0.1:8081",
        "http://127.0.0.1:8082",
    ]


def test_the_committed_schema_is_what_the_command_prints():
    assert (CONFIGS / "schema.json").read_text() == schema_text()
