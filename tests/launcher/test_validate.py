"""`launcher validate`: what was understood, or all problems on standard error."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from launcher.commands import validate
from launcher.commands import version as version_command


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")

    def check(text):
        Path("c.yaml").write_text(text)
        code = validate.run(Path("c.yaml"))
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return check


def test_a_good_file_is_told_back(check):
    text = """\
cluster: lab
models:
  - {id: org/small, name: small, devices: [0, 1], quantize: awq}
  - {id: org/large, replicas: 1, engine: simulator}
engine: {name: tgi, version: "3.3.5"}
runtime: {first_port: 32000}
router: {host: "::1", port: 9000, policy: round_robin}
"""
    assert check(text) == (
        0,
        [
            "c.yaml: fine",
            "  cluster  lab, state in /state/gpu-fleet/lab",
            "  endpoint http://[::1]:9000, policy round_robin",
            "  model    small: 2 replicas of tgi 3.3.5, on 0, 1, awq",
            "  model    org/large: 1 replica of simulator",
            "  runtime  process, replicas on 127.0.0.1 from port 32000",
        ],
        [],
    )


def test_a_file_for_the_router_alone_is_told_back(check):
    text = "router: {port: 0}\nreplicas: [http://h:1, {url: http://h:2, model: m}]"
    assert check(text) == (
        0,
        [
            "c.yaml: fine",
            "  router   alone: `router --config` takes this file, `launcher up` does not",
            "  endpoint http://127.0.0.1:(a free port), policy least_tokens",
            "  replica  http://h:1, model default",
            "  replica  http://h:2, model m",
        ],
        [],
    )


def test_problems_go_to_standard_error_and_are_counted(check):
    assert check("models: [a, a]\nrouter:\n  port: x") == (
        2,
        [],
        [
            'c.yaml:1: models[1].id: found the name "a", which models[0] has, '
            "expected a name of its own for each model",
            'c.yaml:3: router.port: found a text "x", expected a whole number',
            "c.yaml: 2 problems",
        ],
    )


def test_one_problem_is_one(check):
    assert check("models: []")[2][-1] == "c.yaml: 1 problem"


def test_a_file_that_is_not_there_is_a_problem(capsys):
    assert validate.run(Path("/nowhere/c.yaml")) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_version_is_the_installed_one(capsys):
    assert version_command.run() == 0
    pattern = rf"gpu-fleet {re.escape(version('gpu-fleet'))} \(Python 3\.\d+\.\d+\S*\)\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)
