"""Every example config loads, agrees with the schema editors use, and becomes replicas."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from launcher.commands.schema import schema_text
from launcher.config import load_cluster_config
from launcher.docker.dry_run import planned_container
from launcher.docker.run_words import docker_run_words
from launcher.engines import ENGINES
from launcher.imagined import imagined
from launcher.placement import replica_specs
from router.config import RouterFile, load_model, read_source

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLES = sorted({*CONFIGS.glob("*.yaml")} - {*CONFIGS.glob("compose*.yaml")})
CLUSTERS = [path for path in EXAMPLES if path.name != "router-only.yaml"]


REPLICAS = {"fine-tuned.yaml": 1, "vllm.yaml": 8}
TWO = ("aphrodite.yaml", "llamacpp.yaml", "tensor-parallel.yaml")
GPUS = imagined("8xA100-80")


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_every_example_becomes_commands(path):
    config = load_cluster_config(path)
    specs = replica_specs(config, GPUS)
    expected = REPLICAS.get(path.name, 2 if path.name in TWO else 4)
    assert len({spec.id for spec in specs}) == len(specs) == expected
    for spec in specs:
        if config.runtime.name == "docker":
            words = docker_run_words(planned_container(spec, config, 31_000))
        else:
            words = ENGINES[spec.engine_name].command(spec, 31_000, "127.0.0.1").argv
        assert any(Path(spec.model_id).name in word or spec.model_id in word for word in words)


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
