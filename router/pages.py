"""What the endpoint tells of itself: /info, /v1/models, /metrics, /docs."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import orjson
from aiohttp import web

from router import __version__
from router.dialects import EngineInfo
from router.dispatcher import Dispatcher
from router.errors import Forbidden, NoReplica
from router.fleet import Fleet
from router.metrics import CONTENT_TYPE, Metrics

SUMMED = ("max_concurrent_requests", "max_batch_total_tokens")
LEAST = (
    *("max_input_tokens", "max_input_length", "max_total_tokens", "max_best_of"),
    *("max_stop_sequences", "max_client_batch_size"),
)


class Pages:
    def __init__(self, fleet: Fleet, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock

    def info(self, model: str | None, allowed: frozenset[str] | None) -> web.Response:
        """The pool as if it were one engine: limits summed where they add up, else the least.

        With several pools, `?model=` names one; without it the first is told.
        """
        names = self._fleet.names_for(allowed)
        dispatcher = self._fleet.find(model or next(iter(names), None), allowed=allowed)
        return _json(pool_info(dispatcher, names))

    def models(self, allowed: frozenset[str] | None) -> web.Response:
        entries = [
            {"id": model, "object": "model", "created": 0, "owned_by": model}
            for model in self._fleet.names_for(allowed)
        ]
        return _json({"object": "list", "data": entries})

    def metrics(self, allowed: frozenset[str] | None) -> web.Response:
        """Tells of all models, so it is not for a key that may know of some only."""
        if allowed is not None:
            raise Forbidden("this key is for some models only; /metrics tells of all")
        return web.Response(body=self._metrics.page(), headers={"content-type": CONTENT_TYPE})

    def docs(self) -> web.Response:
        page = files("router").joinpath("docs.html").read_bytes()
        return web.Response(body=page, content_type="text/html", charset="utf-8")

    def openapi(self) -> web.Response:
        document = files("router").joinpath("openapi.json").read_bytes()
        return web.Response(body=document, content_type="application/json")

    def unhealthy(self, reason: str) -> web.Response:
        return _json({"error": f"unhealthy: {reason}", "error_type": "healthcheck"}, status=503)


def pool_info(dispatcher: Dispatcher, models: list[str]) -> dict[str, Any]:
    """Raises NoReplica while no engine has told anything yet."""
    infos = [r.info for r in dispatcher.pool if r.info is not None and r.info.told]
    if not infos:
        raise NoReplica("no replica has told its limits yet", retry_after_s=1)
    usable = [r.info for r in dispatcher.pool if r.is_usable and r.info and r.info.told]
    told: dict[str, Any] = dict(infos[0].told)
    told |= _combined(usable or infos)
    told |= {
        "router": "gpu-fleet",
        "fleet_version": __version__,
        "replicas": len(dispatcher.pool),
        "models": models,
    }
    return told


def _combined(infos: list[EngineInfo]) -> dict[str, Any]:
    combined: dict[str, Any] = {}
    for keys, combine in ((SUMMED, sum), (LEAST, min)):
        for key in keys:
            values = [info.told[key] for info in infos if isinstance(info.told.get(key), int)]
            if values:
                combined[key] = combine(values)
    return combined


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
