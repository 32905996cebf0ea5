"""The command line, its environment twins, the version table and the start-up checks."""

import pytest

from launcher.simulator.cli import parse
from launcher.simulator.era import CHANGES, era_of
from launcher.simulator.errors import StartRefused
from launcher.simulator.settings import check_start


def test_flag_wins_over_its_environment_twin():
    environ = {"MAX_TOTAL_TOKENS": "500", "PORT": "80", "MODEL_ID": "twin"}
    settings = parse(["--port", "81"], environ)
    assert (settings.port, settings.model_id) == (81, "twin")
    assert settings.limits.max_total_tokens == 500
    assert settings.limits.max_input_tokens == 499


def test_both_names_of_the_input_limit():
    for name in ("--max-input-tokens", "--max-input-length"):
        assert parse([name, "77"], {}).limits.max_input_tokens == 77


@pytest.mark.parametrize("gpu", ["a100", "a10g", "rtx4090"])
@pytest.mark.parametrize("version", ["1.4.4", "2.0.4", "2.2.0", "3.0.0", "3.3.7"])
def test_every_version_starts_with_its_defaults(version, gpu):
    check_start(parse(["--version", version, "--gpu", gpu], {}))


@pytest.mark.parametrize(
    "argv",
    [
        ["--version", "0.9"],
        ["--version", "1.3.4"],
        ["--speed", "0"],
        ["--speed", "nan"],
        ["--time-scale", "-1"],
        ["--time-scale", "inf"],
        ["--port", "70000"],
        ["--max-total-tokens", "0"],
        ["--eos-rate", "1.5"],
        ["--token-model", "words"],
        ["--unknown"],
        ["--max-total", "100"],
    ],
)
def test_bad_argument_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as exited:
        parse(argv, {})
    assert exited.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_bad_environment_twin_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exited:
        parse([], {"MAX_TOTAL_TOKENS": "many"})
    assert exited.value.code == 2
    assert "--max-total-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "name", "text"),
    [
        (["--max-input-tokens", "100", "--max-total-tokens", "100"], "Argument", "max_input"),
        (["--validation-workers", "0"], "Argument", "validation_workers"),
        (["--version", "1.4.4", "--max-batch-prefill-tokens", "512"], "Argument", "prefill"),
        (["--max-batch-prefill-tokens", "200000"], "Webserver", "Not enough memory to handle"),
        (["--max-total-tokens", "200000"], "Webserver", "Not enough memory to handle"),
    ],
)
def test_start_refusals(argv, name, text):
    with pytest.raises(StartRefused, match=text) as refused:
        check_start(parse(argv, {}))
    assert refused.value.name.startswith(name)


def test_version_changes_are_in_order():
    versions = [first for first, _ in CHANGES]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize(
    ("version", "field", "value"),
    [
        ("2.0.1", "waiting_served_ratio", 1.2),
        ("2.0.2", "waiting_served_ratio", 0.3),
        ("2.4.0", "v1_stream_errors", "flat"),
        ("2.4.1", "v1_stream_errors", "openai"),
        ("2.4.1", "default_max_new_tokens", 100),
        ("3.0.0", "default_max_new_tokens", None),
        ("3.0.0", "healthy_at_start", False),
        ("3.3.6-dev0", "chunking", True),
        ("v3.1.0", "slice_only_when_absent", True),
        ("3.1.1", "slice_only_when_absent", False),
    ],
)
def test_era_table(version, field, value):
    assert getattr(era_of(version), field) == value
