"""Real processes: start-up log, readiness, drain, exit codes."""

import http.client
import json
import signal
import socket

import pytest

LISTENING = r"listening on http://127\.0\.0\.1:(\d+)"
FAST = ("--load-s", "0", "--time-scale", "0")


def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection.getresponse()


def test_log_phrases_come_in_order_and_own_up(process):
    simulator = process(*FAST)
    simulator.read_until(LISTENING)
    phrases = [
        "Args {",
        "This is a simulator",
        "Starting check and download process for",
        "Files are already present on the host",
        "Successfully downloaded weights",
        "Starting shard",
        "Waiting for shard to be ready...",
        "Server started at unix://",
        "Shard ready in",
        "Starting Webserver",
        "Warming up model",
        "Setting max batch total tokens to 120000",
        "Connected",
    ]
    positions = [simulator.text.index(phrase) for phrase in phrases]
    assert positions == sorted(positions)


def test_json_log(process):
    simulator = process(*FAST, "--json-output", "--version", "1.4.4")
    simulator.read_until(LISTENING)
    lines = [json.loads(line) for line in simulator.log]
    messages = [line.get("message") or line["fields"]["message"] for line in lines]
    assert "Connected" in messages
    assert "Starting download process." in messages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_while_serving_exits_with_0(process, number):
    simulator = process(*FAST)
    simulator.read_until(LISTENING)
    simulator.popen.send_signal(number)
    assert simulator.finish() == 0
    assert "signal received, starting graceful shutdown" in simulator.text


def test_signal_while_loading_exits_with_0(process):
    simulator = process("--load-s", "600")
    simulator.read_until("Starting check and download")
    simulator.popen.terminate()
    assert simulator.finish() == 0
    assert "Connected" not in simulator.text


def test_drain_finishes_calls_in_flight_and_accepts_no_more(process):
    simulator = process("--load-s", "0", "--time-scale", "4")
    port = int(simulator.read_until(LISTENING)[1])
    busy = http.client.HTTPConnection("127.0.0.1", port)
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 100}}
    reply = post(busy, "/generate_stream", body)
    assert b'"index":1,' in reply.readline()
    simulator.popen.terminate()
    simulator.read_until("Waiting for webserver to gracefully shutdown")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    rest = reply.read()
    assert rest.count(b"data: ") == 99
    assert b'"generated_text":" ' in rest
    assert simulator.finish() == 0
    busy.close()


def test_drain_closes_idle_connections_while_others_go_on(process):
    simulator = process("--load-s", "0")
    port = int(simulator.read_until(LISTENING)[1])
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    idle.request("GET", "/health")
    assert idle.getresponse().read() == b""
    busy = http.client.HTTPConnection("127.0.0.1", port)
    reply = post(busy, "/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 8000}})
    reply.readline()
    simulator.popen.terminate()
    assert idle.sock.recv(1) == b""
    assert reply.readline() == b"\n"
    assert reply.readline().startswith(b"data: ")
    for connection in (idle, busy):
        connection.close()


def test_drain_gives_up_after_the_graceful_time(process):
    simulator = process("--load-s", "0", "--graceful-termination-timeout", "0.2")
    port = int(simulator.read_until(LISTENING)[1])
    busy = http.client.HTTPConnection("127.0.0.1", port)
    reply = post(busy, "/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 8000}})
    reply.readline()
    simulator.popen.terminate()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        reply.read()
    assert simulator.finish() == 0
    busy.close()


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--speed", "x"], 2, "--speed"),
        (["--max-total-tokens", "999999"], 1, "Not enough memory to handle"),
        (["--max-total-tokens", "999999"], 1, "Error: WebserverFailed"),
        (["--max-input-tokens", "9", "--max-total-tokens", "9"], 1, "Error: ArgumentValidation("),
    ],
)
def test_exit_codes(process, argv, code, text):
    simulator = process(*FAST, *argv)
    assert simulator.finish() == code
    assert text in simulator.text


def test_port_in_use_exits_with_1(process):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        simulator = process(*FAST, "--port", str(taken.getsockname()[1]))
        assert simulator.finish() == 1
    assert "Webserver Crashed" in simulator.text
    assert "Traceback" not in simulator.text


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_port_is_closed_while_loading(process):
    port = free_port()
    simulator = process("--port", str(port), "--load-s", "600")
    simulator.read_until("Starting check and download")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_accept_then_close_while_loading(process):
    port = free_port()
    simulator = process("--port", str(port), "--load-s", "2", "--accept-then-close")
    simulator.read_until("Starting check and download")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as early:
        assert early.recv(1) == b""
    simulator.read_until(LISTENING)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
