"""Where the Docker Engine is looked for, and that no thread of ours keeps anybody waiting."""

import asyncio
import socket
import threading

import pytest

from launcher.docker import engine as module
from launcher.docker.engine import DockerEngine, read_all
from launcher.docker.refusals import NotThere, Refused
from router.errors import RuntimeAway, StartError


@pytest.fixture
def usual(tmp_path, monkeypatch):
    path = tmp_path / "docker.sock"
    monkeypatch.setattr(module, "_USUAL_SOCKET", str(path))
    return path


def test_the_config_comes_before_the_environment_and_that_before_the_usual_socket(usual):
    environ = {"DOCKER_HOST": "unix:///from/env.sock"}
    assert DockerEngine("unix:///from/config.sock", environ).url == "unix:///from/config.sock"
    assert DockerEngine(None, environ).url == "unix:///from/env.sock"
    assert DockerEngine(None, {"DOCKER_HOST": ""}).url == f"unix://{usual}"


def test_a_users_own_engine_is_found_where_the_machine_has_none(usual, tmp_path):
    (tmp_path / "user").mkdir()
    own = tmp_path / "user" / "docker.sock"
    environ = {"XDG_RUNTIME_DIR": str(own.parent)}
    assert DockerEngine(None, environ).url == f"unix://{usual}"
    own.touch()
    assert DockerEngine(None, environ).url == f"unix://{own}"
    usual.touch()
    assert DockerEngine(None, environ).url == f"unix://{usual}"


@pytest.mark.parametrize(
    ("url", "is_local", "socket_path"),
    [
        ("unix:///run/docker.sock", True, "/run/docker.sock"),
        ("tcp://127.0.0.1:2375", True, None),
        ("tcp://localhost:2375", True, None),
        ("tcp://gpu-box:2375", False, None),
        ("ssh://me@gpu-box", False, None),
        ("https://10.0.0.1:2376", False, None),
    ],
)
def test_whose_machine_it_is(url, is_local, socket_path):
    engine = DockerEngine(url, {})
    assert (engine.is_local, engine.socket_path) == (is_local, socket_path)


class Silent(DockerEngine):
    """Calls reach nobody; each takes until it is let go."""

    def __init__(self):
        super().__init__("tcp://127.0.0.1:1", {})
        self.go, self.has_begun = threading.Event(), threading.Event()

    def _client(self, timeout_s):
        return self

    def take_long(self):
        self.has_begun.set()
        assert self.go.wait(10)
        return "done"


@pytest.fixture
async def silent():
    engine = Silent()
    yield engine
    engine.go.set()
    engine._threads.shutdown(wait=True)


async def begun(engine, group, how):
    task = group.create_task(how(lambda api: api.take_long()))
    await asyncio.to_thread(engine.has_begun.wait, 10)
    return task


async def test_a_cancelled_look_is_let_go_of(silent):
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = await begun(silent, group, silent.look)
        task.cancel()
    assert task.cancelled()
    assert not silent.go.is_set()


async def test_a_cancelled_act_is_finished_first(silent):
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = await begun(silent, group, silent.act)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        silent.go.set()
    assert task.cancelled()


def answers(status, text):
    import requests

    reply = requests.Response()
    reply.status_code = status
    reply._content = f'{{"message": "{text}"}}'.encode()
    reply.url = "http://x"
    return reply


@pytest.mark.parametrize(("status", "kind"), [(404, NotThere), (409, Refused), (500, Refused)])
def test_the_sdks_errors_become_ours(status, kind):
    from docker.errors import create_api_error_from_http_exception
    from requests.exceptions import HTTPError

    engine = DockerEngine("unix:///x", {})
    with pytest.raises(HTTPError) as caught:
        create_api_error_from_http_exception(HTTPError(response=answers(status, "why not")))
    error = engine.translated(caught.value)
    assert type(error) is kind
    assert (error.status, error.text) == (status, "why not")


def test_what_is_nobodys_fault_but_ours_stays_what_it_is():
    bug = KeyError("x")
    assert DockerEngine("unix:///x", {}).translated(bug) is bug


def test_a_dead_network_is_an_engine_that_is_away():
    from docker.errors import DockerException
    from requests.exceptions import ConnectionError as RequestsConnectionError

    engine = DockerEngine("unix:///x", {})
    for exc in (RequestsConnectionError("reset"), OSError(32, "Broken pipe"), DockerException("x")):
        assert isinstance(engine.translated(exc), RuntimeAway)
    assert isinstance(engine.translated(PermissionError(13, "Permission denied")), StartError)


def test_a_socket_that_was_open_to_us_once_may_be_so_again(tmp_path):
    engine = DockerEngine(f"unix://{tmp_path}/docker.sock", {})
    denied = PermissionError(13, "Permission denied")
    first = engine.translated(denied)
    assert (first.recoverable, first.is_slow) == (False, False)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(engine.socket_path)
        door.listen()
        with pytest.raises(RuntimeAway):  # nobody speaks, but the door was open
            engine.connect(1)
    later = engine.translated(denied)
    assert (later.recoverable, later.is_slow) == (True, True)


async def test_a_long_reply_that_cannot_begin_is_an_error_not_a_hang():
    with pytest.raises(RuntimeAway):
        async with asyncio.timeout(5):
            await read_all(DockerEngine("unix:///nowhere", {}), lambda api: [], print, "x")
