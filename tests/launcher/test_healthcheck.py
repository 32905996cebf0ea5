"""What HEALTHCHECK asks finds by itself what a container is for, and says whether that serves."""

import http.server
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import trustme

from launcher import healthcheck

IDLE = "import sys; sys.stdin.read()"
SERVER = """
    import http.server, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(sys.argv[-1]) if self.path == "/health" else 404)
            self.end_headers()
        def log_message(self, *args): pass
    server = http.server.HTTPServer((sys.argv[-2], 0), Handler)
    print(flush=True)
    server.serve_forever()
"""


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/opt/gpu-fleet/bin/python /opt/gpu-fleet/bin/router --port 8080", "router"),
        ("/usr/bin/python3.12 -m router --config x --fd 3", "router"),
        ("python -I -u -m router", "router"),
        ("router --port 8080", "router"),
        ("python /opt/gpu-fleet/bin/launcher up -c /etc/gpu-fleet/fleet.yaml", "launcher"),
        ("python -m launcher up", "launcher"),
        ("python -m launcher logs router", ""),
        ("launcher validate", ""),
        ("python -m launcher.simulator --port 80", "simulator"),
        ("python -m launcher.healthcheck", ""),
        ("python -c router", ""),
        ("docker-init -- router --port 8080", ""),
        ("sleep 100", ""),
        ("", ""),
    ],
)
def test_a_command_line_tells_the_role(command: str, role: str) -> None:
    assert healthcheck.role_of(command.split()) == role


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000:0050", ("127.0.0.1", 80)),
        ("0B4D1EAC:1F90", ("172.30.77.11", 8080)),
        ("00000000000000000000000000000000:1F90", ("::1", 8080)),
        ("00000000000000000000000001000000:1F90", ("::1", 8080)),
        ("B80D01200000000067452301EFCDAB89:0001", ("2001:db8::123:4567:89ab:cdef", 1)),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="written as a little-endian kernel does")
def test_the_kernels_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert healthcheck.address_of(text) == address


@pytest.fixture
def start(monkeypatch) -> Iterator:
    """`start(role)` is an idle process, `start(role, host, status)` one whose /health says so."""
    started: list[subprocess.Popen[bytes]] = []
    roles: dict[int, str] = {}
    monkeypatch.setattr(healthcheck, "role_of", lambda argv: roles[int(argv[0])])
    monkeypatch.setattr(healthcheck, "_argv", lambda pid: [str(pid)])

    def run(role: str, host: str = "", status: int = 0) -> int:
        program = "\n".join(line[4:] for line in SERVER.splitlines()) if host else IDLE
        argv = [sys.executable, "-c", program, host, str(status)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        if host:
            process.stdout.readline()
        roles[process.pid] = role
        return process.pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(("status", "is_well"), [(200, True), (503, False)])
@pytest.mark.parametrize("role", ["router", "simulator"])
def test_who_serves_is_asked(start, role: str, host: str, status: int, is_well: bool) -> None:
    found, line = healthcheck.verdict([start("launcher"), start(role, host, status), start("")])
    if role == "simulator":  # one of a launcher's: the endpoint counts
        assert (found, line) == (False, "a launcher runs, but no router: the endpoint is down")
        found, line = healthcheck.verdict([start(role, host, status)])
    assert found is is_well
    assert line.startswith("http://127.0.0.1:")
    assert line.endswith(f"/health: {status}")


def test_one_router_that_serves_is_enough(start) -> None:
    leaving, coming = start("router", "127.0.0.1", 503), start("router", "127.0.0.1", 200)
    assert healthcheck.verdict([leaving, coming])[0] is True


def test_a_router_that_does_not_listen_is_not_well(start) -> None:
    assert healthcheck.verdict([start("router")]) == (False, "the router does not listen")


def test_one_that_closes_without_an_answer_is_not_well(monkeypatch) -> None:
    class Closing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True

    with http.server.HTTPServer(("127.0.0.1", 0), Closing) as server:
        serving = threading.Thread(target=server.handle_request)
        serving.start()
        address = server.server_address[:2]
        monkeypatch.setattr(healthcheck, "_listening", lambda pid: [address])
        is_well, line = healthcheck._first_well([1], "router")
        serving.join()
    assert not is_well
    assert line.startswith(f"http://127.0.0.1:{address[1]}/health: ")


def test_a_container_that_serves_no_http_is_well(start) -> None:
    assert healthcheck.verdict([start("")]) == (True, "nothing here serves HTTP")


def test_it_is_quick_to_start() -> None:
    code = "import sys, launcher.healthcheck; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"aiohttp", "pydantic", "typer", "asyncio"} & set(done.stdout.split()) == set()


def test_a_router_with_tls_is_asked_over_tls(start, tmp_path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    pem = tmp_path / "server.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    class Well(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.HTTPServer):
        def handle_error(self, *args: object) -> None:  # plain HTTP is no TLS
            pass

    with Server(("127.0.0.1", 0), Well) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            found, line = healthcheck._health(*server.server_address[:2])
        finally:
            server.shutdown()
            serving.join()
    assert found, line
    assert line.startswith("https://127.0.0.1:")
