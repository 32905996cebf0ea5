"""What holds for every engine: the rest of the launcher relies on no more than this."""

import pytest

from launcher.config import EngineConfig
from launcher.engines import ENGINES
from launcher.engines.aphrodite import AphroditeEngine
from launcher.engines.llamacpp import LlamaCppEngine
from launcher.engines.tgi import TgiEngine
from launcher.engines.vllm import VllmEngine

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
READ_THE_ENVIRONMENT = [TgiEngine, VllmEngine, AphroditeEngine, LlamaCppEngine]
EVERY = pytest.mark.parametrize("name", list(ENGINES))


def written(engine, spec):
    """A process and a container of one replica."""
    return engine.command(spec, 31_000, "127.0.0.1"), engine.container(spec, "/cache")


def words(*commands):
    """All that others on the machine can read, and all that a log or a message may quote."""
    return [word for command in commands for word in (*command.argv, repr(command))]


def test_the_config_knows_these_engines_and_no_others():
    field = EngineConfig.model_fields["name"]
    assert set(field.annotation.__args__) == set(ENGINES)


@EVERY
def test_attributes_agree(name):
    engine = ENGINES[name]
    assert engine.name == name
    assert engine.dialect in ("tgi", "openai")
    assert engine.uses_gpu or engine.runs_on_cpu
    assert engine.uses_gpu or not engine.downloads


@EVERY
def test_a_model_id_is_enough_for_a_process_and_a_container(name, spec):
    one = spec({}, name)
    command, container = written(ENGINES[name], one)
    assert one.dialect == ENGINES[name].dialect
    for either in (command, container):
        assert (either.ready_path, either.ready_timeout_s) == ("/health", 1800.0)
        assert "org/m" in either.argv
        assert all(isinstance(word, str) for word in either.argv)
        assert all(isinstance(value, str) for value in either.env.values())
    assert "31000" in command.argv
    assert "127.0.0.1" in command.argv
    assert 0 < container.port <= 65_535
    assert "127.0.0.1" not in container.argv
    assert container.image.count(":") == 1


@EVERY
def test_two_replicas_differ_only_where_they_must(name, specs):
    first, second = specs({"replicas": 2}, name)
    one, other = (ENGINES[name].container(spec, "/cache") for spec in (first, second))
    assert (one.image, one.argv, one.mounts) == (other.image, other.argv, other.mounts)
    differing = {key for key in one.env if one.env[key] != other.env[key]}
    assert differing <= {"VLLM_CACHE_ROOT", "APHRODITE_CACHE_ROOT"}


@EVERY
@pytest.mark.parametrize("variable", TOKENS)
def test_a_token_in_the_config_is_on_no_command_line(name, variable, spec):
    one = spec({}, {"name": name, "env": {variable: "hunter2"}})
    commands = written(ENGINES[name], one)
    assert all(command.env[variable] == "hunter2" for command in commands)
    assert not any("hunter2" in word for word in words(*commands))


@pytest.mark.parametrize("kind", READ_THE_ENVIRONMENT)
@pytest.mark.parametrize("variable", TOKENS)
def test_the_environment_s_token_travels_by_environment_under_both_names(kind, variable, spec):
    engine = kind({variable: "hunter2"})
    commands = written(engine, spec({}, engine.name))
    for command in commands:
        assert [command.env[token] for token in TOKENS] == ["hunter2", "hunter2"]
    assert not any("hunter2" in word for word in words(*commands))


@pytest.mark.parametrize("kind", READ_THE_ENVIRONMENT)
def test_the_config_s_token_wins_and_without_one_there_is_none(kind, spec):
    engine = kind({"HF_TOKEN": "theirs"})
    with_own = spec({}, {"name": engine.name, "env": {"HUGGING_FACE_HUB_TOKEN": "ours"}})
    for command in written(engine, with_own):
        assert [command.env[token] for token in TOKENS] == ["ours", "ours"]
    for command in written(kind({}), spec({}, engine.name)):
        assert not set(TOKENS) & set(command.env)


@EVERY
def test_an_operator_s_image_volumes_memory_and_variables_win(name, spec):
    section = {
        "name": name,
        "image": "registry.example/own:1",
        "volumes": ["/srv/a:/mnt/a:ro", "/srv/b:/mnt/b"],
        "shm_size": "3GiB",
        "env": {"EXTRA": "1"},
    }
    container = ENGINES[name].container(spec({}, section), "/cache")
    assert container.image == "registry.example/own:1"
    assert [(m.source, m.target, m.is_read_only) for m in container.mounts[-2:]] == [
        ("/srv/a", "/mnt/a", True),
        ("/srv/b", "/mnt/b", False),
    ]
    assert container.shm_bytes == 3 * 1024**3
    assert container.env["EXTRA"] == "1"


@EVERY
def test_quantize_auto_is_accepted_and_never_reaches_the_engine(name, spec):
    commands = written(ENGINES[name], spec({"quantize": "auto"}, name))
    assert not any("auto" in command.argv for command in commands)


@pytest.mark.parametrize("name", [name for name in ENGINES if ENGINES[name].uses_gpu])
def test_a_process_sees_its_own_gpus_and_a_container_needs_no_variable(name, specs):
    model = {"replicas": 2, "gpus_per_replica": 2}
    for number, one in enumerate(specs(model, name)):
        command, container = written(ENGINES[name], one)
        assert command.env["CUDA_VISIBLE_DEVICES"] == f"{2 * number},{2 * number + 1}"
        assert command.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert "CUDA_VISIBLE_DEVICES" not in container.env
        assert container.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    single = ENGINES[name].container(specs({}, name)[0], "/cache")
    assert not any(variable.startswith("CUDA") for variable in single.env)


@pytest.mark.parametrize("name", [name for name in ENGINES if not ENGINES[name].runs_on_cpu])
def test_an_engine_that_needs_gpus_is_not_started_without(name, refused):
    assert f"engine {name} does not run without" in refused({"devices": "cpu"}, name)


@EVERY
@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
def test_devices_are_not_chosen_behind_the_launcher_s_back(name, variable, refused):
    found = refused({}, {"name": name, "env": {variable: "0"}})
    assert ("models[].devices" in found) is ENGINES[name].uses_gpu


@EVERY
@pytest.mark.parametrize("flag", ["port", "host", "api-key", "no-such-flag-anywhere"])
def test_flags_that_are_not_the_operator_s_are_refused(name, flag, refused):
    hint = refused({}, {"name": name, "args": {flag: "1"}})
    assert "expected" in hint
    if flag == "api-key":
        assert "engine.env, as ${NAME}" in hint


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("simulator", "max-concurrent-requests"),
        ("tgi", "max-concurrent-requests"),
        ("vllm", "max-num-seqs"),
        ("aphrodite", "max-num-seqs"),
        ("llamacpp", "parallel"),
    ],
)
def test_the_router_is_told_how_many_requests_an_engine_takes_at_a_time(name, flag, spec):
    assert spec({}, name).max_requests is None
    model = {"max_total_tokens": 1000}
    assert spec(model, {"name": name, "args": {flag: 7}}).max_requests == 7


@EVERY
def test_lines_that_tell_nothing_say_nothing(name):
    engine = ENGINES[name]
    for line in ("", "hello", "x" * 1_000_000, "{" * 10_000):
        assert engine.phase_of(line) is None
        assert engine.token_budget_of(line) is None
        assert engine.fault_of(line) is None


def test_no_two_engines_share_an_image(spec):
    images = [ENGINES[name].container(spec({}, name), "/cache").image for name in ENGINES]
    assert len({image.partition(":")[0] for image in images}) == len(ENGINES)
