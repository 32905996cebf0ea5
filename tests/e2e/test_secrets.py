"""No secret is found anywhere but where it belongs: a whole fleet over TLS, with keys, searched.

Every place a secret can be written in gets one of its own, recognisable; good and bad calls,
verbs and configs are tried; then all that anybody can read is searched for them.
"""

import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from hashlib import sha256
from pathlib import Path

import pytest
import trustme

pytestmark = pytest.mark.e2e

CANARY = re.compile(rb"(?i)c4nary[a-z0-9_-]*")
API_KEY = "fleet-C4NARY-api-key-0123456789"
OTHER_KEY = "fleet-C4NARY-other-key-0123456789"
WRONG_KEY = "fleet-C4NARY-wrong-key-0123456789"
ENGINE_KEY = "C4NARY-engine-key-0123456789"
ADMIN_TOKEN = "C4NARY-admin-token-0123456789"
HUB_TOKEN = "hf_C4NARYhubtoken0123456789"
PROMPT = "C4NARY-prompt"
COOKIE = "C4NARY-cookie"
QUERY = "C4NARY-query"
BODY = {"inputs": f"say {PROMPT}", "parameters": {"max_new_tokens": 4}}
SECRETS = {
    "E2E_ENGINE_KEY": ENGINE_KEY,
    "E2E_ADMIN_TOKEN": ADMIN_TOKEN,
    "E2E_HUB_TOKEN": HUB_TOKEN,
    "FLEET_API_KEY": API_KEY,
}


def entry(name: str, key: str, **limits: object) -> dict[str, object]:
    return {"name": name, "hash": f"sha256:{sha256(key.encode()).hexdigest()}", **limits}


@pytest.fixture
def secret_fleet(fleet, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    issued = trustme.CA().issue_cert("127.0.0.1")
    certificate, key = fleet.folder / "cert.pem", fleet.folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    fleet.config["models"][0]["replicas"] = 2
    fleet.config["engine"]["env"] = {
        "HF_TOKEN": "${E2E_HUB_TOKEN}",
        "API_KEY": "${E2E_ENGINE_KEY}",  # replicas ask for it
    }
    fleet.config["router"] |= {
        "engine_api_key": "${E2E_ENGINE_KEY}",
        "admin": {"port": 0, "token": "${E2E_ADMIN_TOKEN}"},
        "tls": {"certificate": str(certificate), "key": str(key)},
        "keys": [entry("app", API_KEY), entry("slow", OTHER_KEY, requests_per_minute=1)],
    }
    fleet.write()
    return fleet


class Caller:
    """Keeps every byte that came back."""

    def __init__(self, endpoint: str, certificate: Path) -> None:
        self.endpoint = endpoint
        self.tls = ssl.create_default_context(cafile=str(certificate))
        self.tls.check_hostname = False
        self.tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.seen = b""

    def __call__(self, path: str, body: object = None, key: str = API_KEY, **fields: str) -> int:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        request = urllib.request.Request(self.endpoint + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20, context=self.tls) as reply:
                self._keep(reply)
                return reply.status
        except urllib.error.HTTPError as reply:
            with reply:
                self._keep(reply)
                return reply.status

    def _keep(self, reply) -> None:
        self.seen += str(reply.headers).encode() + reply.read()


def good_and_bad_calls(call: Caller) -> None:
    cookie = {"Cookie": f"a={COOKIE}"}
    assert call("/generate", BODY, **cookie) == 200
    assert call("/generate_stream", BODY) == 200
    assert call(f"/generate?api_key={QUERY}", BODY, Authorization="", X_Api_Key=API_KEY) == 200
    assert call("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}) == 200
    for path in ("/generate", "/v1/chat/completions", "/v1/messages", "/info", "/metrics"):
        body = None if path in ("/info", "/metrics") else BODY
        assert call(path, body, key=WRONG_KEY) == 401
        assert call(path, body, Authorization=f"Basic {WRONG_KEY}", X_Api_Key=WRONG_KEY) == 401
    assert [call("/generate", BODY, key=OTHER_KEY) for _ in range(2)] == [200, 429]
    refused = [
        ("/generate", f'{{"inputs": "{PROMPT}"'.encode(), 422),
        ("/generate", {"inputs": {PROMPT: PROMPT}}, 422),
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": PROMPT}}, 422),
        ("/generate", {"inputs": PROMPT, "parameters": {"temperature": -1}}, 422),
        ("/v1/chat/completions", {"messages": PROMPT}, 422),
        (f"/nowhere?key={QUERY}", BODY, 404),
        (f"/metrics?key={QUERY}", BODY, 405),
    ]
    for path, body, status in refused:
        assert call(path, body, **cookie) == status, (path, call.seen[-500:])
    assert call("/generate", BODY, Content_Type="text/plain") == 415
    for path in ("/info", "/metrics", "/v1/models", "/health", f"/health?key={QUERY}"):
        assert call(path) == 200


def found_in(data: bytes) -> set[bytes]:
    return {match.group().lower() for match in CANARY.finditer(data)}


def processes_of(fleet) -> dict[int, bytes]:
    return {
        found.process.pid: Path(f"/proc/{found.process.pid}/cmdline").read_bytes()
        for found in fleet.running()
    }


def test_no_secret_is_told_to_anybody(secret_fleet, monkeypatch) -> None:
    fleet = secret_fleet
    fleet.run("validate")
    fleet.run("up", "-d")
    status = fleet.until_ready()
    assert status["endpoint"].startswith("https://127.0.0.1:")
    call = Caller(status["endpoint"], fleet.folder / "cert.pem")
    good_and_bad_calls(call)
    past_the_router = Caller(status["replicas"][0]["url"], fleet.folder / "cert.pem")
    assert past_the_router("/generate", BODY) == 401, "what clients send is no key to a replica"
    answer = fleet.run("ask", "hello")
    assert "tokens in" in answer.stderr

    said = [fleet.look("--json").stdout, fleet.look().stdout, answer.stdout, answer.stderr]
    for verb in (["plan"], ["up", "--dry-run"], ["logs", "router", "-n", "9999"], ["doctor"]):
        done = subprocess.run(fleet.command(*verb), capture_output=True, text=True, timeout=60)
        said += [done.stdout, done.stderr]
    admin = ["curl", "-s", "--unix-socket", str(fleet.state_dir / "router.sock")]
    state = subprocess.run([*admin, "http://a/admin/state"], capture_output=True, check=True)
    assert b'"pools"' in state.stdout
    arguments = processes_of(fleet)
    assert len(arguments) >= 4
    # The rotated key is taken over, and the config that does it shows no hash.
    fleet.config["router"]["keys"] = [entry("app", OTHER_KEY)]
    fleet.write()
    said.append(fleet.run("up", "-d").stdout)
    fleet.until(lambda s: s["router"]["phase"] == "ready" and call("/info", key=OTHER_KEY) == 200)
    assert call("/info", key=API_KEY) == 401
    assert sha256(OTHER_KEY.encode()).hexdigest()[:12] not in "".join(said)
    monkeypatch.setenv("FLEET_API_KEY", WRONG_KEY)
    for words, told in (
        (["--key-env", "NOBODY"], "found none in NOBODY"),
        ([], "the API key is wrong"),
    ):
        done = fleet.run("ask", "hello", *words, rc=1)
        assert told in done.stderr
        said += [done.stdout, done.stderr]
    fleet.run("down")
    files = {path: path.read_bytes() for path in fleet.state_dir.rglob("*") if path.is_file()}
    assert any(path.name.startswith("router") for path in files)

    places = {
        "what verbs said": "".join(said).encode(),
        "what the endpoint replied": call.seen.replace(PROMPT.encode(), b""),
        "the admin API": state.stdout,
        **{f"argv of {pid}": argv for pid, argv in arguments.items()},
        **{str(path): data for path, data in files.items()},
        **{f"the launcher's {path.name}": path.read_bytes() for path in fleet.folder.glob("out*")},
    }
    assert {place: found_in(data) for place, data in places.items() if found_in(data)} == {}


BAD_CONFIGS = {
    "a key itself, for its hash": {"keys": [{"name": "a", "hash": API_KEY}]},
    "a key itself, for an entry": {"keys": [API_KEY]},
    "a key itself, for all": {"keys": API_KEY},
    "a key itself, from the environment": {"keys": [{"name": "a", "hash": "${FLEET_API_KEY}"}]},
    "a token too short": {"admin": {"port": 0, "token": "C4NARY"}},
    "a token that is a list": {"admin": {"port": 0, "token": ["C4NARY-admin-token"]}},
    "an engine key with a line end": {"engine_api_key": "C4NARY\nC4NARY"},
    "a private key, for its file": {"tls": {"certificate": "/c", "key": "-----C4NARY"}},
    "a secret as a port": {"port": "${E2E_ENGINE_KEY}"},
    "a secret as a policy": {"policy": "${E2E_ENGINE_KEY}"},
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_is_wrong_tells_none_either(secret_fleet, name) -> None:
    fleet = secret_fleet
    fleet.config["router"] |= BAD_CONFIGS[name]
    fleet.write()
    for verb in ("validate", "up", "status"):
        done = subprocess.run(fleet.command(verb), capture_output=True, timeout=60)
        if verb == "up":
            assert done.returncode in (1, 2), done.stderr
        assert found_in(done.stdout + done.stderr) == set(), verb
    router = [fleet.command("x")[0], "-m", "router", "-c", str(fleet.path)]
    done = subprocess.run(router, capture_output=True, timeout=60, env=os.environ.copy())
    assert done.returncode in (1, 2)
    assert found_in(done.stdout + done.stderr) == set()
