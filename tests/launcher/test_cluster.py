"""A cluster as verbs load it: strictly to start something, leniently to look and to stop."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.cluster import Cluster
from launcher.config import ClusterConfig
from router.errors import ConfigError

TOKEN = """\
cluster: shop
runtime: {{name: process, state_dir: {state}}}
engine: {{name: simulator, env: {{HF_TOKEN: "${{HF_TOKEN}}"}}}}
models: [some/model]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    for name in ("HF_TOKEN", "PORT", "NAME", "MODEL", "WHERE"):
        monkeypatch.delenv(name, raising=False)

    def write(text: str) -> Path:
        path = tmp_path / "fleet.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def leniently(write: Callable[[str], Path]) -> Callable[[str], ClusterConfig]:
    return lambda text: Cluster.load_leniently(write(text)).config


def test_a_variable_that_is_not_set_is_an_error_for_who_starts_something(write) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        Cluster.load(write(TOKEN.format(state="/tmp/s")))


def test_it_is_none_for_who_only_looks_and_is_noted(write, capsys) -> None:
    cluster = Cluster.load_leniently(write(TOKEN.format(state="/tmp/s")))
    assert cluster.config.cluster == "shop"
    assert capsys.readouterr().err == (
        "note: not set in this shell: HF_TOKEN; what runs is not affected\n"
    )


def test_nothing_is_noted_where_a_script_reads_or_all_is_set(write, capsys, monkeypatch) -> None:
    path = write(TOKEN.format(state="/tmp/s"))
    Cluster.load_leniently(path, is_quiet=True)
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    cluster = Cluster.load_leniently(path)
    assert cluster.config.engine.env == {"HF_TOKEN": "secret-token"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "models: [m]\nrouter: {port: '${PORT}'}",
        "models: ['${MODEL}']\nrouter: {port: '${PORT}'}",
        "models: [{id: m, replicas: '${PORT}', devices: ['${NAME}']}]",
        "models: [m]\nengine: {name: tgi, args: {max-batch-size: '${PORT}'}}",
        "models: [m]\nrouter: {port: '${PORT}', timeouts: {total_s: '${NAME}'}}",
    ],
)
def test_a_value_that_may_not_stay_as_written_is_left_out(leniently, text: str) -> None:
    assert leniently(text).router.port == ClusterConfig(models=["m"]).router.port


def test_a_default_and_a_set_variable_still_count(leniently, monkeypatch) -> None:
    monkeypatch.setenv("PORT", "8123")
    config = leniently("models: ['${MODEL}']\nrouter: {port: '${PORT}', host: '${WHERE:-::1}'}")
    assert (config.router.port, config.router.host) == (8123, "::1")


@pytest.mark.parametrize(
    "text",
    [
        "cluster: ${NAME}\nmodels: [m]",
        "runtime: ${NAME}\nmodels: [m]",
        "runtime: {state_dir: '/var/lib/${NAME}'}\nmodels: [m]",
        "runtime: {name: docker, docker: {url: 'tcp://${NAME}:2376'}}\nmodels: [m]",
    ],
)
def test_which_cluster_it_is_is_not_guessed(leniently, text: str) -> None:
    with pytest.raises(ConfigError, match="NAME}, which is not set"):
        leniently(text)


def test_what_else_is_wrong_is_told_together_with_the_variables(leniently) -> None:
    with pytest.raises(ConfigError) as caught:
        leniently("models: ['${MODEL}']\nruoter: {}")
    assert [problem.path for problem in caught.value.problems] == ["models[0]", "ruoter"]


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (("down",), 0),
        (("status",), 3),
        (("status", "--json"), 3),
        (("logs", "router"), 1),  # it has written none yet
        (("drain", "some-model-0"), 1),  # nothing runs
        (("undrain", "some-model-0"), 1),
    ],
)
def test_verbs_that_start_nothing_need_no_variables(
    write, tmp_path: Path, words: tuple[str, ...], exit_code: int
) -> None:
    path = write(TOKEN.format(state=tmp_path / "state"))
    done = CliRunner().invoke(app, [*words, "-c", str(path)])
    assert done.exit_code == exit_code
    assert ("HF_TOKEN" in done.stderr) == ("--json" not in words)


def test_down_goes_by_what_runs_though_its_variables_are_not_set(write, tmp_path: Path) -> None:
    from launcher.commands import down

    cluster = Cluster.load_leniently(write(TOKEN.format(state=tmp_path / "state")))
    cluster.folder.create()
    cluster.folder.config_copy.write_text(cluster.text.replace("name: process", "name: docker"))
    assert down._as_it_runs(cluster).config.runtime.name == "docker"
