"""The `router` command as a process: what it refuses, and on which socket it serves."""

import asyncio
import hashlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-m", "router"]
GENERATE = {"inputs": "hello"}


def refused(*args, **options):
    """Exit code and message of a command that must not serve."""
    done = subprocess.run(
        [*PROGRAM, *args], capture_output=True, text=True, timeout=30, check=False, **options
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


class Router:
    def __init__(self, process):
        self.process = process
        self.port = 0

    async def serving(self):
        """Once it says so."""
        said = b""
        async with asyncio.timeout(30):
            while not (found := re.search(rb"serving on https?://[^:]+:(\d+)", said)):
                line = await self.process.stderr.readline()
                assert line, said
                said += line
        self.port = int(found[1])
        return self

    async def stopped(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            out, err = await self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
async def router():
    """`await router("--replica", url)`: a router process that serves; it ends with the test."""
    started = []

    async def start(*args, **options):
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        started.append(process)
        return await Router(process).serving()

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def replica(wire):
    replica = wire.ScriptedReplica()
    await replica.start()
    yield replica
    await replica.close()


async def post(port, path="/generate", body=GENERATE):
    """Status and body; the connection is refused while nobody listens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    async with asyncio.timeout(20):
        reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(reply.split()[1]), reply.partition(b"\r\n\r\n")[2]


# ---- refusals ----


@pytest.mark.parametrize(
    "url", ["nonsense", "https://a:1", "http://", "http://a:99999", "http://a:1/x", "http://u@a:1"]
)
def test_a_bad_replica_url_exits_with_2_and_shows_it(url):
    code, said = refused("--port", "0", "--replica", url)
    assert code == 2
    assert "--replica" in said
    assert url in said
    assert "expected" in said


@pytest.mark.parametrize("second", ["http://a:1", "http://a:1/", "http://A:1"])
def test_two_equal_urls_exit_with_2(second):
    code, said = refused("--replica", "http://a:1", "--replica", second)
    assert code == 2
    assert "'http://a:1' twice" in said


def test_no_replica_at_all_exits_with_2():
    code, said = refused("--port", "0")
    assert code == 2
    assert "--replica" in said


@pytest.mark.parametrize(("option", "value"), [("--port", "70000"), ("--policy", "luck")])
def test_a_bad_option_exits_with_2_and_names_it(option, value):
    code, said = refused("--replica", "http://a:1", option, value)
    assert code == 2
    assert option in said
    assert value in said


def test_a_missing_config_exits_with_2_and_names_it(tmp_path):
    path = tmp_path / "none.yaml"
    code, said = refused("--config", str(path))
    assert code == 2
    assert str(path) in said


def test_a_wrong_config_exits_with_2_and_names_every_line(tmp_path):
    path = tmp_path / "router.yaml"
    path.write_text("router:\n  prot: 1\n  policy: luck\nreplicas:\n  - http://a:1\n")
    code, said = refused("--config", str(path))
    assert code == 2
    assert f"{path}:2" in said
    assert f"{path}:3" in said


def test_a_port_in_use_exits_with_1_and_names_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = refused("--replica", "http://a:1", "--port", str(port))
    assert code == 1
    assert f"127.0.0.1:{port}" in said


def test_an_fd_that_is_not_open_exits_with_2():
    code, said = refused("--replica", "http://a:1", "--fd", "77")
    assert code == 2
    assert "--fd" in said


def test_an_fd_that_is_no_socket_exits_with_2(tmp_path):
    with (tmp_path / "file").open("w") as file:
        number = file.fileno()
        code, said = refused("--replica", "http://a:1", "--fd", str(number), pass_fds=[number])
    assert code == 2
    assert "a listening socket" in said


def test_an_fd_that_does_not_listen_exits_with_2():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number = sock.fileno()
        code, said = refused("--replica", "http://a:1", "--fd", str(number), pass_fds=[number])
    assert code == 2
    assert "a listening socket" in said


def test_version_is_printed():
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"router \d+\.\d+\.\d+\n", done.stdout)


# ---- serving ----


async def test_it_serves_replicas_given_by_url_and_ends_on_sigterm(router, replica):
    process = await router("--port", "0", "--replica", replica.url)
    assert await post(process.port) == (200, b'{"generated_text": "ok"}')
    code, out, _ = await process.stopped()
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["status"] for line in lines if line["event"] == "call"] == [200]


async def test_it_serves_a_config_file(router, replica, tmp_path):
    path = tmp_path / "router.yaml"
    path.write_text(
        f"router: {{port: 0, log_calls: false}}\nreplicas:\n  - {{url: {replica.url}, id: one}}\n"
    )
    process = await router("--config", str(path))
    assert (await post(process.port))[0] == 200
    code, out, _ = await process.stopped(signal.SIGINT)
    assert code == 0
    assert '"event":"call"' not in out


async def test_the_command_line_wins_over_the_config(router, replica, tmp_path):
    path = tmp_path / "router.yaml"
    path.write_text("router: {port: 1}\nreplicas: [http://127.0.0.1:9]\n")
    process = await router("-c", str(path), "--port", "0", "--replica", replica.url)
    assert (await post(process.port))[0] == 200
    await process.stopped()


@pytest.fixture
def listener():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(16)
        yield sock


async def test_it_serves_on_an_inherited_socket(router, replica, listener):
    fd = listener.fileno()
    process = await router("--fd", str(fd), "--replica", replica.url, pass_fds=[fd])
    assert process.port == listener.getsockname()[1]
    assert (await post(process.port))[0] == 200
    await process.stopped()


async def test_calls_wait_in_the_backlog_while_routers_change(router, replica, listener):
    """The listener outlives its router: connections are not refused in between."""
    fd, port = listener.fileno(), listener.getsockname()[1]
    first = await router("--fd", str(fd), "--replica", replica.url, pass_fds=[fd])
    assert (await post(port))[0] == 200
    first.process.kill()
    await first.process.communicate()
    loop = asyncio.get_running_loop()
    early = loop.create_task(post(port))
    await router("--fd", str(fd), "--replica", replica.url, pass_fds=[fd])
    assert (await early)[0] == 200


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "router", *sys.argv[2:]])
"""


async def test_it_serves_on_the_socket_that_systemd_hands_over(replica, listener):
    fd = listener.fileno()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ACTIVATE, str(fd), "--replica", replica.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[fd],
    )
    router = await Router(process).serving()
    assert router.port == listener.getsockname()[1]
    assert (await post(router.port))[0] == 200
    assert (await router.stopped())[0] == 0


def test_a_socket_of_systemd_for_another_process_is_not_taken():
    env = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = refused("--replica", "http://a:1", "--port", port, env=env)
    assert code == 1
    assert "cannot listen" in said


async def test_it_starts_from_its_state_folder_alone(router, replica, tmp_path):
    process = await router("--port", "0", "--state-dir", str(tmp_path))
    status, body = await post(process.port)
    assert (status, json.loads(body)["error_type"]) == (503, "overloaded")
    assert (tmp_path / "router.sock").is_socket()
    await process.stopped()


# ---- SIGHUP ----


async def line(process, kind):
    """The next log line of that kind."""
    async with asyncio.timeout(20):
        while data := await process.stdout.readline():
            if (said := json.loads(data))["event"] == kind:
                return said
    raise AssertionError(f"it ended before a line of {kind}")


async def test_sighup_reads_the_file_again_in_the_same_process(router, replica, tmp_path):
    path = tmp_path / "router.yaml"
    path.write_text(f"router: {{port: 0}}\nreplicas: [{replica.url}]\n")
    process = await router("--config", str(path), "--policy", "round_robin")
    path.write_text("router: {prot: 0}\n")
    process.process.send_signal(signal.SIGHUP)
    assert f"{path}:1: router.prot" in (await line(process.process, "reload"))["refused"][0]
    path.write_text(
        f"router: {{policy: least_requests, log_calls: false}}\nreplicas: [{replica.url}]\n"
    )
    process.process.send_signal(signal.SIGHUP)
    said = await line(process.process, "reload")
    assert said["changed"] == ["log_calls: true -> false"]  # the command line still wins
    assert said["needs_restart"] == ["port: 0 -> 8080"]
    assert (said["joined"], said["left"]) == ([], [])
    assert (await post(process.port))[0] == 200
    assert (await process.stopped())[0] == 0


ON_A_TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    err = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.dup2(err, 1), os.dup2(err, 2)
    os.execv(sys.executable, [sys.executable, "-m", "router", *sys.argv[2:]])
print(pid, flush=True)
sys.stdin.read()
os.close(terminal)
os.waitpid(pid, 0)
"""


async def test_a_closed_terminal_stops_it_and_a_signal_from_there_does_not(
    replica, tmp_path, until
):
    path, said = tmp_path / "router.yaml", tmp_path / "said"
    path.write_text(f"router: {{port: 0}}\nreplicas: [{replica.url}]\n")
    terminal = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ON_A_TERMINAL, str(said), "--config", str(path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pid = int(await terminal.stdout.readline())
    await until(lambda: said.exists() and "serving on" in said.read_text())
    os.kill(pid, signal.SIGHUP)
    await until(lambda: '"event":"reload"' in said.read_text())
    assert '"event":"drain"' not in said.read_text()
    terminal.stdin.close()
    async with asyncio.timeout(20):
        await terminal.wait()
    assert '"event":"drain"' in said.read_text()


async def test_the_open_file_limit_is_raised(router, replica):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 1_048_576 if hard == resource.RLIM_INFINITY else min(hard, 1_048_576)
    process = await router(
        "--port",
        "0",
        "--replica",
        replica.url,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
    )
    assert resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)[0] == wanted
    await process.stopped()


# ---- keys and TLS ----


async def test_https_and_keys_of_a_config_hold_for_the_router_alone(
    router, replica, raw_client, authority, tmp_path
):
    digest = hashlib.sha256(b"secret").hexdigest()
    section = {"port": 0, "tls": authority.files(), "keys": [{"name": "a", "hash": "sha256:"}]}
    section["keys"][0]["hash"] += digest
    config = tmp_path / "router.json"  # JSON is YAML
    config.write_text(json.dumps({"router": section, "replicas": [replica.url]}))
    running = await router("--config", str(config))
    for fields, status in (([], 401), (["x-api-key: secret"], 200)):
        client = await raw_client.connect(running.port, tls=authority.client)
        client.post("/generate", GENERATE, *fields)
        assert (await client.reply()).status == status
        client.leave()
    assert (await running.stopped())[0] == 0


def test_a_certificate_that_is_not_there_ends_it(tmp_path):
    tls = {"certificate": "/nowhere/cert.pem", "key": "/nowhere/key.pem"}
    config = tmp_path / "router.json"
    config.write_text(json.dumps({"router": {"tls": tls}, "replicas": ["http://127.0.0.1:9"]}))
    code, said = refused("--config", str(config), "--port", "0")
    assert code == 1
    assert "router.tls.certificate: /nowhere/cert.pem: found a file that cannot be read" in said


@pytest.mark.parametrize(("host", "is_told"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_who_is_open_to_a_network_without_keys_is_told_so(
    router, replica, raw_client, host, is_told
):
    running = await router("--replica", replica.url, "--host", host, "--port", "0")
    client = await raw_client.connect(running.port)
    client.ask("GET", "/health", "Connection: close")
    await client.reply()
    client.leave()
    code, _, said = await running.stopped()
    assert code == 0
    assert ("router.keys is empty" in said) is is_told
