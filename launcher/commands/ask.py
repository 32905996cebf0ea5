"""`launcher ask`: one streamed answer, token by token, through the text-generation client.

The newcomer's first request, and the operator's first look when something seems wrong. The answer
goes to standard output, the numbers to standard error.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from launcher import status
from launcher.cluster import Cluster
from router.config import RouterConfig
from router.config.tls_files import client_context
from router.errors import ConfigError, ConfigProblem, OperatorError

REPLICA_HEADER = "x-fleet-replica"


@dataclass(frozen=True, slots=True)
class Way:
    """What the endpoint wants of its clients; a replica, which is asked past it, nothing."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; with no model named, of the only one."""

    prompt: str
    model: str | None
    max_new_tokens: int

    def as_json(self, body: dict[str, Any]) -> str:
        """The client's body, and the model, which it has no word for."""
        return json.dumps(body if self.model is None else {"model": self.model, **body})


def run(
    path: Path,
    prompt: str,
    *,
    replica_id: str | None = None,
    model: str | None = None,
    max_new_tokens: int = 100,
    key_env: str = "FLEET_API_KEY",
    timeout_s: float = 600.0,
) -> int:
    cluster = Cluster.load(path)
    if model is None and replica_id is None:
        _require_one_model(cluster)
    current = asyncio.run(status.read(cluster))
    url = _url(current, replica_id, cluster)
    way = _way(cluster.config.router, key_env) if replica_id is None else Way()
    try:
        question = Question(prompt, model, max_new_tokens)
        return asyncio.run(_ask(url, way, question, replica_id, timeout_s))
    except (aiohttp.ClientConnectionError, ConnectionError) as exc:
        raise OperatorError(
            f"nothing answers at {url} ({exc}); start it with `{cluster.command('up')}` "
            f"or see `{cluster.command('status')}`"
        ) from exc
    except TimeoutError as exc:
        raise OperatorError(f"no whole answer from {url} within {timeout_s:g} s") from exc


def _require_one_model(cluster: Cluster) -> None:
    """Raises ConfigError: the router would not know which one is meant."""
    names = [model.served_name for model in cluster.config.models]
    if len(names) > 1:
        expected = f"--model with one of: {', '.join(names)}"
        found = f"{len(names)} models"
        raise ConfigError([ConfigProblem(str(cluster.path), None, "", found, expected)])


def _url(current: status.ClusterStatus, replica_id: str | None, cluster: Cluster) -> str:
    """Where to ask; OperatorError when it is plain that nobody would answer."""
    if replica_id is None:
        if current.endpoint is None or current.router.pid is None:
            where = current.endpoint or "an endpoint"
            hint = f"`{cluster.command('up')}` starts it"
            raise OperatorError(f"no router runs, so nothing answers at {where}; {hint}")
        return current.endpoint
    found = next((r for r in current.replicas if r.id == replica_id), None)
    if found is None:
        known = ", ".join(replica.id for replica in current.replicas)
        raise OperatorError(f"found replica {replica_id!r}, expected one of: {known}")
    if found.url is None:
        raise OperatorError(f"{replica_id} is {found.phase} and has no address yet")
    return found.url


def _way(router: RouterConfig, key_env: str) -> Way:
    """As the config says. Raises OperatorError when there is no key to send, or no certificate."""
    key = os.environ.get(key_env, "")
    if router.keys and not key:
        raise OperatorError(f"the endpoint asks for an API key; found none in {key_env}, set it")
    return Way(
        {"Authorization": f"Bearer {key}"} if router.keys else {},
        client_context(router.tls) if router.tls else None,
    )


async def _ask(
    url: str, way: Way, question: Question, replica_id: str | None, timeout_s: float
) -> int:
    from text_generation import AsyncClient
    from text_generation import errors as theirs

    # Only what derives from one of these was an answer; the package has no common base class.
    refusals = tuple(
        kind
        for kind in vars(theirs).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    )
    tokens, begun_s = 0, time.monotonic()
    with _reply_headers(way.tls, question.as_json) as seen:
        client = AsyncClient(url, headers=way.headers, timeout=int(timeout_s))
        try:
            stream: Any = client.generate_stream(
                question.prompt, max_new_tokens=question.max_new_tokens
            )
            async for event in stream:
                tokens += 1
                if not event.token.special:
                    print(event.token.text, end="", flush=True)
        except refusals as exc:
            print(flush=True)
            raise OperatorError(f"{url} refused: {exc} ({type(exc).__name__})") from exc
    print(flush=True)
    who = replica_id or seen.headers.get(REPLICA_HEADER, "?")
    print(f"{tokens} tokens in {time.monotonic() - begun_s:.2f} s from {who}", file=sys.stderr)
    return 0


@contextmanager
def _reply_headers(
    tls: ssl.SSLContext | None, as_json: Callable[[dict[str, Any]], str]
) -> Iterator[SimpleNamespace]:
    """The reply's headers, which the client keeps to itself: its session is given a trace.

    And the certificate to trust and how to write the body, which it cannot be told either.
    """
    from text_generation import client as module

    seen = SimpleNamespace(headers={})

    async def on_reply(session: Any, context: Any, params: aiohttp.TraceRequestEndParams) -> None:
        seen.headers = params.response.headers

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(on_reply)
    original = module.ClientSession

    def session(**options: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
        opened: aiohttp.ClientSession
        opened = original(
            trace_configs=[trace], connector=connector, json_serialize=as_json, **options
        )
        return opened

    module.ClientSession = session
    try:
        yield seen
    finally:
        module.ClientSession = original
