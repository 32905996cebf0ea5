"""The simulator's replies against TGI's OpenAPI documents and against our own schemas."""

import http.client
import json
import urllib.parse

import pytest

VERSIONS = ("1.4.4", "3.3.5")


def answered(openapi, url, call):
    """Make a call, arming its fault first."""
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=30)
    headers = {"content-type": call.content_type}
    try:
        if call.fault:
            fault = json.dumps(call.fault)
            connection.request("POST", "/simulator/faults", fault, headers)
            assert connection.getresponse().read()
        connection.request(call.method, call.path, call.data, headers)
        reply = connection.getresponse()
        media = reply.headers.get("content-type", "") if reply.headers else ""
        return openapi.Reply(call.method, call.path, reply.status, media, reply.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def replies(openapi, contract_calls, simulator_url):
    """``replies(version)``: every call of that version with its reply, made once."""
    made = {}

    def of(version):
        if version not in made:
            url = simulator_url(version)
            calls = contract_calls.calls_for(version)
            made[version] = [(call, answered(openapi, url, call)) for call in calls]
        return made[version]

    return of


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_gets_its_status(replies, version):
    wrong = [
        f"{call.name} {call.method} {call.path}: {reply.status} {reply.body[:200]}"
        for call, reply in replies(version)
        if reply.status != call.status
    ]
    assert wrong == []


@pytest.mark.parametrize("version", VERSIONS)
def test_replies_validate_against_the_published_document(replies, tgi_documents, version):
    if version not in tgi_documents:
        pytest.skip(f"no OpenAPI document of {version} beside this checkout")
    document = tgi_documents[version]
    checked = [reply for _, reply in replies(version) if document.documents(reply.path)]
    assert len(checked) > 40
    assert [problem for reply in checked for problem in document.problems(reply)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_replies_validate_against_our_schemas(replies, own_schemas, version):
    problems = [p for _, reply in replies(version) for p in own_schemas.problems(reply)]
    assert problems == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_documented_route_and_status_is_met(replies, tgi_documents, version):
    if version not in tgi_documents:
        pytest.skip(f"no OpenAPI document of {version} beside this checkout")
    met = {(reply.method, reply.path, str(reply.status)) for _, reply in replies(version)}
    expected = set(tgi_documents[version].operations())
    assert expected - met == set()


def wrong_replies(openapi):
    def reply(path, value, status=200, media="application/json", method="POST"):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return openapi.Reply(method, path, status, media, body)

    stream = "text/event-stream"
    return [
        reply("/generate", [{"generated_text": "a"}]),
        reply("/generate", {"text": "a"}),
        reply("/generate", {"error": "a"}, status=424),
        reply("/generate", {"generated_text": "a"}, media="text/html"),
        reply("/generate", {"generated_text": "a", "details": {"finish_reason": "x"}}),
        reply("/generate_stream", b'data: {"index": 1}\n\n', media=stream),
        reply("/generate_stream", b"", media=stream),
        reply("/v1/chat/completions", {"id": "", "choices": []}),
        reply("/v1/chat/completions", b'data: {"error": 1}\n\n', media=stream),
        reply("/info", {"model_id": "a"}, method="GET"),
        reply("/tokenize", [{"id": 1}]),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_documents_find_wrong_replies(openapi, tgi_documents, version):
    if version not in tgi_documents:
        pytest.skip(f"no OpenAPI document of {version} beside this checkout")
    document = tgi_documents[version]
    assert [reply for reply in wrong_replies(openapi) if not document.problems(reply)] == []


def test_our_schemas_find_wrong_replies(openapi, own_schemas):
    wrong = [reply for reply in wrong_replies(openapi) if reply.media_type != "text/html"]
    assert [reply for reply in wrong if not own_schemas.problems(reply)] == []
