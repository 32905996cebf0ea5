"""Do replies validate against TGI's OpenAPI documents, and against schemas of our own?

``OpenApiCheck`` holds one of TGI's published documents, corrected where it is known to be wrong
(``DEVIATIONS``); ``OwnSchemas`` holds ours, which are stricter and always there. Both answer
``problems(reply)`` with sentences, an empty list meaning that the reply is valid. Loaded through
the fixtures in ``conftest.py``; nothing in here talks to a server.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

OWN_SCHEMAS = Path(__file__).parent / "schemas"
#: Where a checkout that has TGI's documents keeps them: beside the repository.
DOCUMENTS = Path(__file__).parents[3] / "shared" / "data"
FILES = {"1.4.4": "tgi-1.4.4-openapi.json", "3.3.5": "tgi-3.3-openapi.json"}


@dataclass(frozen=True)
class Reply:
    """One answered request."""

    method: str
    path: str
    status: int
    content_type: str
    body: bytes

    @property
    def media_type(self) -> str:
        return self.content_type.partition(";")[0].strip()

    def payloads(self) -> list[Any]:
        """The JSON values in it: the body, or each event's data."""
        if self.media_type != "text/event-stream":
            return [json.loads(self.body)]
        lines = self.body.split(b"\n")
        data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return [json.loads(payload) for payload in data if payload != b"[DONE]"]


@dataclass(frozen=True)
class Deviation:
    """A place where a document is wrong, why we think so, and the correction."""

    versions: tuple[str, ...]
    why: str
    correct: Callable[[dict[str, Any]], None]


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _either(*names: str) -> dict[str, Any]:
    return {"anyOf": [_ref(name) for name in names]}


def _answer(document: dict[str, Any], path: str, status: str, media: str, schema: Any) -> None:
    operation = document["paths"].setdefault(path, {}).setdefault("post", {"responses": {}})
    reply = operation["responses"].setdefault(status, {"description": ""})
    reply.setdefault("content", {})[media] = {"schema": schema}


def _root_answers_a_list(document: dict[str, Any]) -> None:
    listed = {"type": "array", "items": _ref("GenerateResponse"), "minItems": 1, "maxItems": 1}
    _answer(document, "/", "200", "application/json", listed)


def _errors_come_in_events(document: dict[str, Any]) -> None:
    for path in ("/", "/generate_stream"):
        schema = _either("StreamResponse", "ErrorResponse")
        _answer(document, path, "200", "text/event-stream", schema)


def _early_chat(document: dict[str, Any]) -> None:
    path = "/v1/chat/completions"
    _answer(document, path, "200", "application/json", _ref("ChatCompletion"))
    schema = _either("ChatCompletionChunk", "ErrorResponse")
    _answer(document, path, "200", "text/event-stream", schema)


def _health_routes(document: dict[str, Any]) -> None:
    for path in ("/", "/ping"):
        document["paths"].setdefault(path, {})["get"] = document["paths"]["/health"]["get"]


def _late_openai_streams(document: dict[str, Any]) -> None:
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "http_status_code"],
                "properties": {"http_status_code": {"enum": [422]}},
            }
        },
    }
    document["components"]["schemas"]["OpenAiStreamError"] = error
    for path, name in (
        ("/v1/chat/completions", "ChatCompletionChunk"),
        ("/v1/completions", "Chunk"),
    ):
        _answer(document, path, "200", "text/event-stream", _either(name, "OpenAiStreamError"))


def _model_list(document: dict[str, Any]) -> None:
    listed = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"data": {"type": "array", "items": _ref("ModelInfo")}},
    }
    content = document["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]
    content["application/json"]["schema"] = listed


def _invocations_like_root(document: dict[str, Any]) -> None:
    listed = {"type": "array", "items": _ref("GenerateResponse"), "minItems": 1, "maxItems": 1}
    bodies = {"anyOf": [listed, _ref("ChatCompletion"), _ref("CompletionFinal")]}
    _answer(document, "/invocations", "200", "application/json", bodies)
    names = ("StreamResponse", "ChatCompletionChunk", "Chunk", "ErrorResponse")
    _answer(document, "/invocations", "200", "text/event-stream", _either(*names))


BOTH = ("1.4.4", "3.3.5")
DEVIATIONS = (
    Deviation(BOTH, "streams answer 200 and put errors into events", _errors_come_in_events),
    Deviation(BOTH, "GET / and /ping are aliases of /health", _health_routes),
    Deviation(("1.4.4",), "POST / answers a list of one", _root_answers_a_list),
    Deviation(("1.4.4",), "chat answers one object, and chunks only in a stream", _early_chat),
    Deviation(("3.3.5",), "errors in /v1 streams have a shape of their own", _late_openai_streams),
    Deviation(("3.3.5",), "/v1/models answers a list object", _model_list),
    Deviation(
        ("3.3.5",), "/invocations answers like the route it stands for", _invocations_like_root
    ),
)

#: Statuses of the HTTP layer, which the documents leave out: text or nothing, on every route.
TEXT_STATUSES = frozenset({400, 401, 404, 405, 413, 415, 422})
#: Documented statuses that no server sends: a stream's errors are events, and the 404s never occur.
NEVER_SENT = frozenset(
    {
        *(("/generate_stream", status) for status in ("422", "424", "429", "500")),
        *((path, "404") for path in ("/tokenize", "/chat_tokenize", "/v1/models")),
        # Aliases of /health, whose 503 is met there.
        *((path, "503") for path in ("/", "/ping")),
    }
)
#: Routes that a document does not have although its server does.
UNDOCUMENTED = {
    "1.4.4": frozenset({"/v1/completions", "/invocations", "/vertex", "/docs"}),
    "3.3.5": frozenset({"/vertex", "/docs"}),
}


def load_documents(folder: Path = DOCUMENTS) -> dict[str, "OpenApiCheck"]:
    """The checks for which a document is there, by version; empty where none is."""
    return {
        version: OpenApiCheck(version, json.loads((folder / name).read_text()))
        for version, name in FILES.items()
        if (folder / name).is_file()
    }


class OpenApiCheck:
    """One of TGI's documents, with its known errors corrected."""

    def __init__(self, version: str, document: dict[str, Any]) -> None:
        self.version = version
        document = copy.deepcopy(document)
        for deviation in DEVIATIONS:
            if version in deviation.versions:
                deviation.correct(document)
        self._paths = document["paths"]
        schemas = {"components": {"schemas": _as_json_schema(document["components"]["schemas"])}}
        resource = Resource.opaque(schemas)
        self._registry = Registry().with_resource("urn:tgi", resource)

    def documents(self, path: str) -> bool:
        """Whether the document has anything to say about a path."""
        return path not in UNDOCUMENTED[self.version]

    def operations(self) -> Iterator[tuple[str, str, str]]:
        """Every method, path and status that the document promises and a server can send."""
        for path, operations in self._paths.items():
            for method, operation in operations.items():
                for status in operation["responses"]:
                    if (path, status) not in NEVER_SENT:
                        yield method.upper(), path, status

    def problems(self, reply: Reply) -> list[str]:
        """What in a reply contradicts the document."""
        where = f"{reply.method} {reply.path} {reply.status}"
        if reply.status in TEXT_STATUSES and reply.media_type in ("text/plain", ""):
            return []
        operation = self._paths.get(reply.path, {}).get(reply.method.lower())
        if operation is None:
            return [f"{where}: the document has no such route"]
        answer = operation["responses"].get(str(reply.status))
        if answer is None:
            return [f"{where}: the document has no such status"]
        if "content" not in answer:
            return [f"{where}: found a body, expected none"] if reply.body else []
        media = answer["content"].get(reply.media_type)
        if media is None:
            return [f"{where}: found {reply.media_type}, expected {sorted(answer['content'])}"]
        if reply.media_type == "text/plain":
            return []
        schema = _absolute(_as_json_schema(media["schema"]))
        validator = Draft202012Validator(schema, registry=self._registry)
        return list(_explained(validator, reply.payloads(), where))


def _explained(validator: Any, payloads: list[Any], where: str) -> Iterator[str]:
    if not payloads:
        yield f"{where}: found no payload"
    for payload in payloads:
        for error in validator.iter_errors(payload):
            yield f"{where}: {error.json_path}: {error.message} in {json.dumps(payload)[:200]}"


def _as_json_schema(node: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` in the words of JSON Schema, all the way down."""
    if isinstance(node, list):
        return [_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: _as_json_schema(value) for key, value in node.items() if key != "nullable"}
    if node.get("nullable") is True:
        return {"anyOf": [converted, {"type": "null"}]}
    return converted


def _absolute(node: Any) -> Any:
    if isinstance(node, list):
        return [_absolute(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: f"urn:tgi{value}" if key == "$ref" else _absolute(value) for key, value in node.items()
    }


class OwnSchemas:
    """Our own schemas: ``schemas/index.json`` says which one is for which reply."""

    def __init__(self, folder: Path = OWN_SCHEMAS) -> None:
        index = json.loads((folder / "index.json").read_text())
        self._index: dict[str, str] = index["replies"]
        resources = [
            (path.name, Resource.from_contents(json.loads(path.read_text())))
            for path in folder.glob("*.json")
            if path.name != "index.json"
        ]
        self._registry = Registry().with_resources(resources)

    def problems(self, reply: Reply) -> list[str]:
        """What in a reply contradicts our schemas; every JSON reply must have one."""
        where = f"{reply.method} {reply.path} {reply.status}"
        if reply.media_type not in ("application/json", "text/event-stream"):
            return []
        kind = "events" if reply.media_type == "text/event-stream" else "json"
        group = "ok" if reply.status == 200 else "error"
        target = self._index.get(f"{reply.method} {reply.path} {group} {kind}")
        if target is None:
            target = self._index.get(f"* {group} {kind}")
        if target is None:
            return [f"{where} {kind}: no schema of ours for it"]
        validator = Draft202012Validator({"$ref": target}, registry=self._registry)
        return list(_explained(validator, reply.payloads(), where))
