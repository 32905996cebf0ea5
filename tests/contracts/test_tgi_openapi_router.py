"""The router's replies, over a real simulator, against TGI's documents and our own schemas."""

import http.client
import json
import re
import subprocess
import sys
import urllib.parse

import pytest

VERSIONS = ("1.4.4", "3.3.5")


def is_answer(call, reply):
    """TGI answers an invalid stream with 200 and an error event; where the router sees at once
    that it is invalid (empty `inputs`), it refuses with 422 before any engine is asked."""
    return call.status == 200 and not (call.name == "stream: invalid" and reply.status == 422)


@pytest.fixture(scope="module")
def router_url(simulator_url):
    """``router_url("1.4.4")``: a router process over one simulator of that version."""
    urls, processes = {}, []

    def start(version):
        if version not in urls:
            command = [sys.executable, "-m", "router", "--port", "0"]
            process = subprocess.Popen(
                [*command, "--replica", simulator_url(version)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
            found = (re.search(r"serving on (http://\S+)", line) for line in process.stderr)
            urls[version] = next(match[1] for match in found if match)
        return urls[version]

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=30)


def asked(url, method, path, data=None, content_type="application/json"):
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=30)
    try:
        connection.request(method, path, data, {"content-type": content_type})
        reply = connection.getresponse()
        return reply.status, reply.headers.get("content-type", ""), reply.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def replies(openapi, contract_calls, router_url):
    """``replies(version)``: every call of that version with its reply through the router.

    Calls that need a fault are left out: a single fault is retried, so the client sees none.
    """
    made = {}

    def of(version):
        if version not in made:
            calls = [call for call in contract_calls.calls_for(version) if not call.fault]
            made[version] = [(call, answered(call, version)) for call in calls]
        return made[version]

    def answered(call, version):
        url = router_url(version)
        status, media, body = asked(url, call.method, call.path, call.data, call.content_type)
        return openapi.Reply(call.method, call.path, status, media, body)

    return of


@pytest.fixture
def answers(replies):
    """Those of the replies that answer the call."""
    return lambda version: [r for call, r in replies(version) if is_answer(call, r)]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_that_an_engine_answers_is_answered(replies, version):
    wrong = [
        f"{call.name} {call.method} {call.path}: {reply.status} {reply.body[:200]}"
        for call, reply in replies(version)
        if is_answer(call, reply) and reply.status != 200
    ]
    assert wrong == []
    assert len(replies(version)) > 30


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_validate_against_the_published_document(answers, tgi_documents, version):
    if version not in tgi_documents:
        pytest.skip(f"no OpenAPI document of {version} beside this checkout")
    document = tgi_documents[version]
    checked = [reply for reply in answers(version) if document.documents(reply.path)]
    assert len(checked) > 15
    assert [problem for reply in checked for problem in document.problems(reply)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_validate_against_our_schemas(answers, own_schemas, version):
    assert [p for reply in answers(version) for p in own_schemas.problems(reply)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_error_is_json_that_the_route_s_clients_understand(replies, version):
    """TGI leaves some to its HTTP layer as plain text, which its own client cannot read."""
    errors = [(call, r) for call, r in replies(version) if not is_answer(call, r)]
    assert len(errors) > 10
    for call, reply in errors:
        where = (call.name, call.path, reply.status, reply.body[:200])
        if call.name == "too large":  # too large for that engine's default, not for the router
            continue
        assert 400 <= reply.status < 600, where
        assert reply.media_type == "application/json", where
        error = json.loads(reply.body)
        if isinstance(error["error"], dict):
            assert call.path.startswith("/v1/"), where
            assert isinstance(error["error"]["message"], str), where
        else:
            assert isinstance(error["error"], str), where
            assert isinstance(error["error_type"], str), where
