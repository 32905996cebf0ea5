"""Command line and config file become what the router runs with; the command line wins."""

import pytest

from router.errors import ConfigError, StartError
from router.options import RouterOptions, resolve

URL = "http://127.0.0.1:9000"


def options(**given):
    fields = {
        "config": None,
        "replica_urls": [],
        "host": None,
        "port": None,
        "state_dir": None,
        "policy": None,
    }
    return RouterOptions(**{**fields, **given})


def settings(**given):
    return resolve(options(**given))


def problem(**given):
    with pytest.raises(ConfigError) as caught:
        settings(**given)
    return str(caught.value)


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "router.yaml"
        path.write_text(text)
        return path

    return write


def test_urls_alone_are_enough():
    found = settings(replica_urls=[URL, "http://127.0.0.1:9001/"])
    assert [(r.id, r.url, r.model) for r in found.replicas.replicas] == [
        ("replica-0", "http://127.0.0.1:9000", "default"),
        ("replica-1", "http://127.0.0.1:9001", "default"),
    ]
    assert (found.config.host, found.config.port) == ("127.0.0.1", 8080)
    assert found.config.policy == "expected_finish"
    assert found.state_dir is None


def test_a_config_alone_is_enough(config):
    path = config(
        f"router: {{port: 9999, policy: round_robin}}\n"
        f"replicas:\n  - {URL}\n  - {{url: 'http://h:1', id: b, model: m, max_tokens: 5000}}\n"
    )
    found = settings(config=path)
    assert (found.config.port, found.config.policy) == (9999, "round_robin")
    assert [(r.id, r.model, r.max_tokens) for r in found.replicas.replicas] == [
        ("replica-0", "default", None),
        ("b", "m", 5000),
    ]


def dialects(found):
    return [replica.dialect for replica in found.replicas.replicas]


def test_the_dialect_is_tgi_unless_said_otherwise(config):
    assert dialects(settings(replica_urls=[URL])) == ["tgi"]
    assert dialects(settings(replica_urls=[URL], dialect="openai")) == ["openai"]
    path = config(
        "replicas: [{url: 'http://h:1', model: a, dialect: openai},"
        " {url: 'http://h:2', model: b, dialect: tgi}, {url: 'http://h:3', model: c}]\n"
    )
    assert dialects(settings(config=path)) == ["openai", "tgi", "tgi"]
    assert dialects(settings(config=path, dialect="openai")) == ["openai", "tgi", "openai"]


def test_one_model_has_one_dialect(config):
    path = config("replicas: [{url: 'http://h:1', dialect: openai}, 'http://h:2']\n")
    message = problem(config=path)
    assert "'default'" in message
    assert "openai and tgi" in message


def test_a_wrong_dialect_in_the_file_is_refused_with_its_line(config):
    message = problem(config=config("replicas:\n  - url: http://h:1\n    dialect: vllm\n"))
    assert "router.yaml:3" in message
    assert "openai" in message


def test_the_command_line_wins_over_the_file(config):
    path = config("router: {port: 9999, host: 0.0.0.0, log_calls: false}\nreplicas: [http://h:1]\n")
    found = settings(config=path, port=0, policy="power_of_two", replica_urls=[URL])
    assert (found.config.port, found.config.host) == (0, "0.0.0.0")
    assert found.config.policy == "power_of_two"
    assert found.config.log_calls is False
    assert [r.url for r in found.replicas.replicas] == [URL]


def test_with_a_state_folder_the_replicas_may_come_later(tmp_path):
    folder = tmp_path / "a" / "b"
    found = settings(state_dir=folder)
    assert found.replicas is None
    assert found.state_dir == folder
    assert folder.stat().st_mode & 0o777 == 0o700, "the admin socket in it is open to nobody else"


def test_neither_replicas_nor_a_state_folder_is_refused():
    message = problem()
    assert "--replica" in message
    assert "--state-dir" in message


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"port": 65_536}, "--port"),
        ({"port": -1}, "--port"),
        ({"policy": "best"}, "--policy"),
        ({"host": ""}, "--host"),
        ({"dialect": "vllm"}, "--dialect"),
    ],
)
def test_a_wrong_option_is_named(given, names):
    assert names in problem(replica_urls=[URL], **given)


@pytest.mark.parametrize(
    "url", ["", "h:1", "https://h:1", "http://h:1/v1", "http://u:p@h:1", "http://h:0", "http://h:x"]
)
def test_a_wrong_url_is_shown_with_what_was_expected(url):
    message = problem(replica_urls=[url])
    assert "--replica" in message
    assert repr(url) in message


def test_who_is_known_by_an_id_keeps_it_however_the_list_is_edited():
    known = {"http://h:1": "replica-0", "http://h:2": "replica-1", "http://h:3": "replica-2"}

    def ids(*urls):
        found = resolve(options(replica_urls=list(urls)), known)
        return [entry.id for entry in found.replicas.replicas]

    assert ids("http://h:3", "http://h:2") == ["replica-2", "replica-1"]
    assert ids("http://h:4", "http://h:3") == ["replica-0", "replica-2"]
    assert ids("http://h:3", "http://h:1", "http://h:4") == ["replica-2", "replica-0", "replica-1"]
    assert ids("http://h:4", "http://h:1", "http://h:5") == ["replica-1", "replica-0", "replica-2"]


def test_an_id_that_is_written_wins_over_the_one_it_is_known_by(config):
    path = config("replicas: [{url: 'http://h:1', id: a}, 'http://h:2']\n")
    found = resolve(options(config=path), {"http://h:1": "replica-1", "http://h:2": "replica-0"})
    assert [entry.id for entry in found.replicas.replicas] == ["a", "replica-0"]


def test_the_same_url_or_id_twice_is_refused(config):
    assert "twice" in problem(replica_urls=[URL, URL + "/"])
    path = config("replicas: [{url: 'http://h:1', id: a}, {url: 'http://h:2', id: a}]\n")
    assert "twice" in problem(config=path)
    path = config("replicas: [{url: 'http://h:1', id: replica-1}, {url: 'http://h:2'}]\n")
    assert "twice" in problem(config=path)


def test_a_state_folder_that_cannot_be_made_is_a_start_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="state folder"):
        settings(state_dir=tmp_path / "file" / "state")


def test_a_whole_cluster_config_is_taken_too(config):
    path = config(
        "cluster: c\nmodels: [{id: m}]\nengine: simulator\nruntime: {state_dir: x}\n"
        "router: {port: 7000}\n"
    )
    assert settings(config=path, replica_urls=[URL]).config.port == 7000


def test_a_key_nobody_knows_is_refused_with_its_line(config):
    message = problem(config=config("router:\n  prot: 8080\n"), replica_urls=[URL])
    assert "router.yaml:2" in message
    assert "prot" in message
