"""What a verb returns or raises becomes a message and an exit code; help costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli
from launcher.cluster import command_line
from launcher.commands import up
from launcher.config import load_cluster_config
from router.errors import ConfigError, ConfigProblem, OperatorError, StateError


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.app(list(args), prog_name="launcher")
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        (StateError("in use by pid 7"), 1, "error: in use by pid 7\n"),
        (ConfigError([ConfigProblem("f", 3, "a", "x", "y")]), 2, "error: f:3: a: found x, expect"),
        (OperatorError("one\ntwo"), 1, "error: one\nerror: two\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("oops"), 70, "This is a bug in gpu-fleet"),
    ],
)
def test_trouble_becomes_a_message_and_an_exit_code(
    monkeypatch, capsys, trouble: BaseException, code: int, said: str
) -> None:
    def fails(*args: object, **kwargs: object) -> int:
        raise trouble

    monkeypatch.setattr(up, "run", fails)
    assert run("up") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert ("Traceback" in captured.err) == (code == 70)


def test_up_without_a_config_explains_the_two_next_steps(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("up") == 2
    said = capsys.readouterr().err
    assert "launcher up -c configs/local.yaml" in said
    assert "write fleet.yaml" in said


def test_the_config_that_up_suggests_is_a_good_one(tmp_path: Path) -> None:
    assert len(up.EXAMPLE.splitlines()) == 6
    path = tmp_path / "fleet.yaml"
    path.write_text(up.EXAMPLE)
    assert load_cluster_config(path).models[0].replicas == 2


@pytest.mark.parametrize("args", [("status",), ("down",), ("validate",), ("drain", "replica-0")])
def test_without_a_fleet_yaml_the_option_that_names_another_is_told(
    args: tuple[str, ...], monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    said = capsys.readouterr().err
    assert "fleet.yaml: found no such file, expected" in said
    assert "named with -c PATH" in said


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("fleet.yaml", "launcher logs router"),
        ("a/b.yaml", "launcher logs -c a/b.yaml router"),
        ("my own.yaml", "launcher logs -c 'my own.yaml' router"),
    ],
)
def test_a_hint_can_be_pasted(path: str, expected: str) -> None:
    assert command_line(Path(path), "logs", "router") == expected


def test_a_config_that_is_not_there_is_named(capsys, tmp_path) -> None:
    assert run("status", "-c", str(tmp_path / "absent.yaml")) == 2
    assert "absent.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("args", [("bogus",), ("drain",), ("logs", "-n", "-1", "replica-0")])
def test_wrong_usage_exits_with_2(args: tuple[str, ...], capsys) -> None:
    assert run(*args) == 2
    assert "Usage: launcher" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", ["up", "down", "status", "logs", "drain", "undrain", "ask", "validate"]
)
def test_every_verb_that_needs_a_cluster_takes_its_config(verb: str, capsys) -> None:
    assert run(verb, "--help") == 0
    assert "--config" in capsys.readouterr().out


def test_help_imports_neither_pydantic_nor_aiohttp() -> None:
    code = (
        "import launcher.cli, sys; print([m for m in ('pydantic', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
