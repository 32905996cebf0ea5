"""Getting images: each is pulled once however many replicas start, and all hear how far it is.

`PullProgress` adds up what the engine says per layer, and is pure; `Pulls` asks the engine. Used by
the docker runtime before it makes a container. A pull that is cancelled goes on where it was the
next time: the engine keeps whole layers.
"""

import asyncio
import logging
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from launcher.docker.engine import DockerEngine, read_all
from launcher.docker.refusals import (
    NotThere,
    Refused,
    is_credentials_trouble,
    is_login_wanted,
    pull_error,
)
from router.errors import StartError

if TYPE_CHECKING:
    from docker import APIClient

    from launcher.runtimes.base import Say

log = logging.getLogger("launcher")

Policy = Literal["missing", "always", "never"]
_SAY_EVERY_S = 0.5
_STALL_S = 600.0  # a slow registry sends something all the time
_KB, _MB, _GB = 10**3, 10**6, 10**9


class Pulls:
    """Of one engine. What was pulled in this launcher's life is not asked for again."""

    def __init__(self, engine: DockerEngine, stall_s: float = _STALL_S) -> None:
        self._engine = engine
        self._stall_s = stall_s  # without progress for so long, a pull is given up
        self._locks: dict[str, asyncio.Lock] = {}
        self._listeners: dict[str, list[Say]] = {}
        self._is_fresh: set[str] = set()

    async def ensure(self, image: str, policy: Policy, say: "Say") -> None:
        """Return once the engine has the image; raises StartError, RuntimeAway."""
        listeners = self._listeners.setdefault(image, [])
        listeners.append(say)
        try:
            async with self._locks.setdefault(image, asyncio.Lock()):
                is_here = await self._is_here(image)
                if is_here and (policy != "always" or image in self._is_fresh):
                    return
                if policy == "never":
                    raise StartError(
                        f"the image {image} is not on this Docker Engine, and "
                        f"runtime.docker.pull is never: `docker pull {image}` gets it",
                        is_slow=True,
                    )
                await self._pull(image, is_here=is_here)
        finally:
            listeners.remove(say)

    async def _is_here(self, image: str) -> bool:
        def inspect(api: Any) -> None:
            api.inspect_image(image)

        try:
            await self._engine.look(inspect)
        except NotThere:
            return False
        return True

    async def _pull(self, image: str, *, is_here: bool) -> None:
        """A failure is none where an older image of that name is here."""
        try:
            await self._fetch(image)
        except StartError as exc:
            if not is_here:
                raise
            log.warning("%s; the one that is here is used", exc)
        self._is_fresh.add(image)

    async def _fetch(self, image: str) -> None:
        progress, loop = PullProgress(), asyncio.get_running_loop()
        said, said_s = progress.text, time.monotonic() - _SAY_EVERY_S

        def begin(api: "APIClient") -> Any:
            _limit(api, self._stall_s)
            return _begin(api, image)

        def each(event: Mapping[str, Any]) -> None:
            nonlocal said, said_s
            # Its own words for a failure after the reply has begun; nothing else says it.
            if problem := _problem_of(event):
                raise Refused(500, problem)
            if progress.feed(event):
                loop.call_soon_threadsafe(self._put_off, limit)
            if progress.text != said and time.monotonic() - said_s >= _SAY_EVERY_S:
                said, said_s = progress.text, time.monotonic()
                loop.call_soon_threadsafe(self._say, image, said)

        self._say(image, said)
        try:
            async with asyncio.timeout(self._stall_s) as limit:
                await read_all(self._engine, begin, each, f"pull {image}")
        except Refused as exc:
            raise pull_error(exc.text, image) from exc
        except TimeoutError as exc:
            raise StartError(
                f"cannot pull the image {image}: the registry sends nothing, for "
                f"{self._stall_s:g} s now; it is asked again later"
            ) from exc

    def _put_off(self, limit: asyncio.Timeout) -> None:
        with suppress(RuntimeError):  # the pull has ended meanwhile
            limit.reschedule(asyncio.get_running_loop().time() + self._stall_s)

    def _say(self, image: str, text: str) -> None:
        for say in self._listeners.get(image, ()):
            say(text)


def _limit(api: Any, stall_s: float) -> None:
    """The SDK has a pull wait for its first word without a limit, and its thread with it."""
    post = api.post
    api.post = lambda url, **how: post(url, **{**how, "timeout": 2 * stall_s})


def _begin(api: "APIClient", image: str) -> Any:
    """The reply to a pull, without a login where this user's logins cannot be got: most images
    need none. One that does need it is refused for what keeps them from us."""
    from docker.errors import APIError, DockerException

    # The SDK also tells of a missing helper on stderr, whether a login is needed or not.
    warnings.filterwarnings("ignore", "docker-credential-", UserWarning)
    try:
        return api.pull(image, stream=True, decode=True)
    except DockerException as exc:
        if not is_credentials_trouble(str(exc)):
            raise
        log.debug("docker: %s is pulled without a login: %s", image, exc)
        try:
            return api.pull(image, stream=True, decode=True, auth_config={})
        except APIError as refused:
            raise exc if is_login_wanted(str(refused)) else refused from None


def _problem_of(event: Mapping[str, Any]) -> str:
    """ "" for what is none. Engines are about to say it in the detail only."""
    detail = event.get("errorDetail") or {}
    return str(detail.get("message") or event.get("error") or detail or "")


@dataclass(slots=True)
class _Layer:
    done_bytes: int = 0
    total_bytes: int | None = None  # None until its download begins
    is_down: bool = False
    is_ready: bool = False
    was_here: bool = False
    last: tuple[str, int] = ("", 0)  # what was said of it, and how far


class PullProgress:
    """How far one pull is. Layers say their size only once their turn has come."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def feed(self, event: Mapping[str, Any]) -> bool:
        """One message of the engine: whether it is of any progress."""
        status, layer_id = str(event.get("status", "")), event.get("id")
        if not layer_id or status.startswith(("Pulling from", "Retrying")):
            return False
        layer = self._layers.setdefault(layer_id, _Layer())
        detail = event.get("progressDetail") or {}
        before, layer.last = layer.last, (status, int(detail.get("current", 0)))
        if status == "Downloading":
            layer.done_bytes = int(detail.get("current", 0))
            layer.total_bytes = int(detail.get("total", 0)) or layer.total_bytes
        elif status in ("Verifying Checksum", "Download complete", "Extracting"):
            layer.is_down = True
        elif status == "Pull complete":
            layer.is_down = layer.is_ready = True
        elif status == "Already exists":
            layer.was_here = True
        return layer.last != before

    @property
    def text(self) -> str:
        """`pulling the image: 1.2 of 9.8 GB`; `at least` while layers wait for their turn."""
        layers = [layer for layer in self._layers.values() if not layer.was_here]
        total_bytes = sum(layer.total_bytes or 0 for layer in layers)
        if layers and all(layer.is_down for layer in layers):
            ready = sum(layer.is_ready for layer in layers)
            return f"pulling the image: unpacking, {ready} of {len(layers)} layers"
        if not total_bytes:
            return "pulling the image"
        done_bytes = sum(_done(layer) for layer in layers)
        is_whole = all(layer.total_bytes is not None or layer.is_down for layer in layers)
        unit, unit_bytes = _unit(total_bytes)
        done, total = _number(done_bytes / unit_bytes), _number(total_bytes / unit_bytes)
        return f"pulling the image: {done} of {'' if is_whole else 'at least '}{total} {unit}"


def _done(layer: _Layer) -> int:
    return (layer.total_bytes or 0) if layer.is_down else layer.done_bytes


def _unit(size_bytes: int) -> tuple[str, int]:
    if size_bytes >= _GB:
        return "GB", _GB
    return ("MB", _MB) if size_bytes >= _MB else ("KB", _KB)


def _number(amount: float) -> str:
    return f"{amount:.1f}" if amount < 100 else f"{amount:.0f}"
