"""`launcher validate`: what was understood, or all problems on standard error."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from launcher.commands import validate
from launcher.commands import version as version_command
from tests.fakes.certificates import Authority


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("HF_TOKEN", "a-token")
    program = tmp_path / "bin" / "text-generation-launcher"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))

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
  - {id: org/small, name: small, devices: [0, cuda:1], quantize: awq}
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
            "  model    small: 2 replicas of tgi 3.3.5, on 0, cuda:1, awq",
            "  model    org/large: 1 replica of simulator",
            "  runtime  process, replicas on 127.0.0.1 from port 32000",
        ],
        [],
    )


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("devices: all", "a replica on every GPU of tgi"),
        ("devices: 4, gpus_per_replica: 2", "2 replicas of tgi"),
        ("devices: 'cuda:1'", "1 replica of tgi, on cuda:1"),
        ("devices: [[0, 1], GPU-8c]", "2 replicas of tgi, on 0 + 1, GPU-8c"),
        ("devices: {a: 0, b: 1}", "1 replica of tgi, on 0 + 1"),
        ("devices: [{type: single, device: 'cuda:3'}]", "1 replica of tgi, on cuda:3"),
        ("devices: {type: multiple, device_map: {a: 'cuda:0', b: 'cuda:1', c: 'cuda:0'}}",
         "1 replica of tgi, on cuda:0 + cuda:1"),
        ("replicas: 2, quantize: auto", "2 replicas of tgi, auto"),
    ],
)  # fmt: skip
def test_devices_are_told_as_they_are_understood(check, written: str, told: str):
    code, out, _ = check(f"models: [{{id: m, {written}}}]\nengine: tgi")
    assert (code, out[3]) == (0, f"  model    m: {told}")


def test_a_file_for_the_router_alone_is_told_back(check):
    text = "router: {port: 0}\nreplicas: [http://h:1, {url: http://h:2, model: m}]"
    assert check(text) == (
        0,
        [
            "c.yaml: fine",
            "  router   alone: `router --config` takes this file, `launcher up` does not",
            "  endpoint http://127.0.0.1:(a free port), policy expected_finish",
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


TGI = "models: [org/small]\nengine: tgi\n"


def test_a_program_that_is_not_there_is_a_warning(check, monkeypatch):
    assert check(TGI)[2] == []
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = check(TGI)
    assert (code, out[0]) == (0, "c.yaml: fine")
    [said] = err
    assert said.startswith("warning: engine tgi: its program text-generation-launcher is not on")


@pytest.mark.parametrize("more", ["devices: all", "devices: all, gpus_per_replica: 2"])
def test_a_program_that_is_not_there_is_a_warning_however_many_gpus_there_are(
    check, monkeypatch, more
):
    monkeypatch.setenv("PATH", "/nowhere")
    _, _, (said,) = check(f"models: [{{id: org/m, {more}}}]\nengine: tgi\n")
    assert said.startswith("warning: engine tgi: its program text-generation-launcher is not on")


def test_a_hub_model_without_a_token_is_a_warning(check, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    [said] = check(TGI)[2]
    assert said.startswith("warning: model org/small: neither HF_TOKEN nor")
    assert check(TGI.replace("engine: tgi", "engine: {name: tgi, env: {HF_TOKEN: t}}"))[2] == []
    assert check(TGI.replace("org/small", str(tmp_path)))[2] == []  # on this disk
    assert check("models: [org/small]")[2] == []  # the simulator downloads nothing


@pytest.mark.parametrize(
    ("host", "warns"),
    [("127.0.0.1", 0), ("localhost", 0), ("::1", 0), ("0.0.0.0", 1), ("::", 1), ("gpu.lan", 1)],
)
def test_an_endpoint_that_others_reach_is_a_warning(check, host: str, warns: int):
    for rest in ("models: [m]", "replicas: [http://h:1]"):
        code, _, err = check(f"router: {{host: '{host}'}}\n{rest}")
        assert code == 0
        assert len([line for line in err if line.startswith("warning: router.host")]) == warns


KEYS = f"keys: [{{name: a, hash: 'sha256:{'0' * 64}'}}]"


def test_with_keys_it_is_none_but_keys_without_tls_are_one(check) -> None:
    _, _, err = check(f"router: {{host: 0.0.0.0, {KEYS}}}\nmodels: [m]")
    [warning] = [line for line in err if line.startswith("warning: router.")]
    assert warning.startswith("warning: router.keys: sent to 0.0.0.0 without TLS")
    assert check(f"router: {{{KEYS}}}\nmodels: [m]")[2] == []


def test_a_certificate_that_cannot_be_used_is_a_warning(check) -> None:
    tls = "tls: {certificate: /nowhere/a.pem, key: /nowhere/b.pem}"
    code, out, err = check(f"router: {{{tls}, {KEYS}, host: 0.0.0.0}}\nmodels: [m]")
    assert code == 0
    assert any("https://0.0.0.0:8080" in line for line in out)
    first, second = err
    assert first.startswith("warning: router.tls.certificate: /nowhere/a.pem: found a file that")
    assert second.startswith("warning: router.tls.key: /nowhere/b.pem: found a file that cannot be")


@pytest.mark.parametrize("rest", ["models: [m]", "replicas: [http://h:1]"])
def test_a_key_of_another_certificate_is_a_problem(check, tmp_path, rest: str) -> None:
    pems = Authority(tmp_path)
    one, other = pems.files("one"), pems.files("other")

    def checked(**tls):
        return check(yaml.safe_dump({"router": {"tls": tls}, **yaml.safe_load(rest)}))

    assert checked(**one)[0] == 0
    code, out, err = checked(**one | {"key": other["key"]})
    assert (code, out) == (2, [])
    problem, total = err
    assert problem.startswith(f"c.yaml: router.tls.key: {other['key']}: found the key of another")
    assert total == "c.yaml: 1 problem"


def test_a_key_for_a_model_that_nobody_serves_is_a_problem(check) -> None:
    key = f"{{name: a, hash: 'sha256:{'0' * 64}', models: [large, smal]}}"
    models = "[{id: org/a, name: large}, {id: org/b, name: small}]"
    good = key.replace("smal", "small").replace("00", "11").replace("name: a", "name: b")
    text = f"models: {models}\nrouter:\n  keys:\n  - {good}\n  - {key}\n"
    code, _, err = check(text)
    assert code == 2
    assert err[0].startswith(
        'c.yaml:5: router.keys[1].models: found "smal", expected one of: large, small'
    )
    assert check(text.replace("smal]", "small]"))[0] == 0
    # An engine may serve adapters under names of their own.
    adapters = "engine: {name: vllm, args: {enable-lora: true, lora-modules: smal=/loras/smal}}\n"
    assert check(text + adapters)[0] == 0
