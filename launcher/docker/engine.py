"""The connection to a Docker Engine: calls on threads of their own, foreign errors made ours.

The SDK blocks, so nothing of it ever runs on the event loop, and it is imported by the first call.
Long replies (events, logs, pulls) are `LongReply`s: a client and a thread each, closed from
anywhere. Used by the docker runtime and its parts; it decides nothing.
"""

import asyncio
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from launcher.docker.refusals import NotThere, Refused, not_answering
from router.errors import OperatorError

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger("launcher")

T = TypeVar("T")

_USUAL_SOCKET = "/var/run/docker.sock"
_THREADS = 16
_LOOK_TIMEOUT_S = 10.0
_ACT_TIMEOUT_S = 120.0  # a hook that wakes eight GPUs takes its time
_LOCAL = ("", "localhost", "127.0.0.1", "::1")


class DockerEngine:
    """One Docker Engine. Calls raise Refused, RuntimeAway, StartError (it never will answer)."""

    def __init__(self, url: str | None, environ: Mapping[str, str] = os.environ) -> None:
        self.url = url or environ.get("DOCKER_HOST") or f"unix://{_usual_socket(environ)}"
        self._environ = environ
        self._was_reached = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._clients: dict[float, APIClient] = {}
        # One for each kind of call: who only looks must not wait for who may wait long.
        self._connecting = {kind: threading.Lock() for kind in (_LOOK_TIMEOUT_S, _ACT_TIMEOUT_S)}

    @property
    def is_local(self) -> bool:
        """Whether its containers' ports and folders are this machine's."""
        parts = urlsplit(self.url)
        return parts.scheme == "unix" or (parts.hostname or "") in _LOCAL

    @property
    def socket_path(self) -> str | None:
        """Where it listens, if that is a unix socket."""
        parts = urlsplit(self.url)
        return parts.path if parts.scheme == "unix" else None

    async def look(self, call: "Callable[[APIClient], T]") -> T:
        """Ask something; it is soon answered. Cancelled, it is let go of."""
        return await self._submit(call, _LOOK_TIMEOUT_S)

    async def act(self, call: "Callable[[APIClient], T]") -> T:
        """Change something. Cancelled, it is finished first: nobody is left guessing."""
        doing = self._submit(call, _ACT_TIMEOUT_S)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            while not doing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([doing])
            if not doing.cancelled():
                doing.exception()  # taken note of; the cancellation is what counts
            raise

    def connect(self, timeout_s: float) -> "APIClient":
        """A client of its own, for a thread; blocks. The caller closes it."""
        try:
            self._knock()
            import docker
            from docker.utils import kwargs_from_env

            options = kwargs_from_env({**self._environ, "DOCKER_HOST": self.url})
            options["base_url"] = options.get("base_url") or self.url
            return docker.APIClient(
                timeout=int(timeout_s),
                use_ssh_client=self.url.startswith("ssh://"),
                max_pool_size=_THREADS,
                **options,
            )
        except Exception as exc:
            raise self.translated(exc) from exc

    def translated(self, exc: Exception) -> Exception:
        """Ours for a foreign one; what is neither the SDK's nor the network's stays as it is."""
        from docker.errors import APIError, DockerException, NotFound
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        if isinstance(exc, OperatorError | Refused):
            return exc
        if isinstance(exc, APIError):
            kind = NotThere if isinstance(exc, NotFound) else Refused
            status = exc.response.status_code if exc.response is not None else 500
            return kind(status, str(exc.explanation or exc))
        if isinstance(exc, DockerException | RequestException | HTTPError | OSError):
            return not_answering(str(exc), self.url, was_reached=self._was_reached)
        return exc

    async def aclose(self) -> None:
        """Connections and threads end; what the engine runs goes on."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _submit(self, call: "Callable[[APIClient], T]", timeout_s: float) -> "asyncio.Future[T]":
        run = functools.partial(self._run, call, timeout_s)
        return asyncio.get_running_loop().run_in_executor(self._threads, run)

    def _run(self, call: "Callable[[APIClient], T]", timeout_s: float) -> T:
        client = self._client(timeout_s)
        try:
            self._knock()
            return call(client)
        except Exception as exc:
            raise self.translated(exc) from exc

    def _knock(self) -> None:
        """Whether anybody listens. The SDK leaks a socket, and its errors say less, if not."""
        if self.socket_path is not None:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(_LOOK_TIMEOUT_S)
                door.connect(self.socket_path)
            self._was_reached = True

    def _client(self, timeout_s: float) -> "APIClient":
        with self._connecting[timeout_s]:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = self.connect(timeout_s)
            return self._clients[timeout_s]


def _usual_socket(environ: Mapping[str, str]) -> str:
    """The machine's, or that of a Docker Engine that this user runs without being root."""
    own = os.path.join(environ.get("XDG_RUNTIME_DIR", ""), "docker.sock")
    is_own = not os.path.exists(_USUAL_SOCKET) and os.path.isabs(own) and os.path.exists(own)
    return own if is_own else _USUAL_SOCKET


class LongReply:
    """Reads one endless or very long reply after the other, in one thread, until it is closed."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._closed = threading.Event()
        self._response: Any = None

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def read(
        self,
        begin: "Callable[[APIClient], Iterable[T]]",
        opened: Callable[[], None] = lambda: None,
    ) -> Iterator[T]:
        """Blocks for each item. Ends when the reply does, or on `close`; raises as calls do."""

        def remember(response: Any, *_args: object, **how: object) -> None:
            if how.get("stream"):  # not what is asked on the way to it
                self._response = response
                if self.is_closed:
                    self._cut()

        try:
            with closing(self._engine.connect(_ACT_TIMEOUT_S)) as client:
                client.hooks["response"].append(remember)
                items = begin(client)
                opened()
                for item in items:
                    if self.is_closed:
                        return
                    yield item
        except Exception as exc:
            if not self.is_closed:
                raise self._engine.translated(exc) from exc
        finally:
            response, self._response = self._response, None
            if response is not None:
                response.close()

    def pause(self, seconds: float) -> None:
        """Wait, unless it is closed."""
        self._closed.wait(seconds)

    def close(self) -> None:
        """End it, from any thread, also while it waits for the next item."""
        self._closed.set()
        self._cut()

    def _cut(self) -> None:
        response = self._response
        if response is None:
            return
        from docker.errors import DockerException
        from docker.types import CancellableStream

        # It may end by itself meanwhile, and then has no socket any more.
        with suppress(OSError, AttributeError, DockerException):
            CancellableStream(iter(()), response).close()


async def read_all(
    engine: DockerEngine,
    begin: "Callable[[APIClient], Iterable[T]]",
    each: Callable[[T], None],
    name: str,
) -> None:
    """Call `each`, in a thread, for every item of a long reply. Cancelled, the reply is closed."""
    reply, loop = LongReply(engine), asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def finish(exc: Exception | None) -> None:
        if not ended.done():
            ended.set_exception(exc) if exc else ended.set_result(None)

    def run() -> None:
        problem: Exception | None = None
        try:
            for item in reply.read(begin):
                each(item)
        except Exception as exc:
            problem = exc
        with suppress(RuntimeError):  # the loop may be gone
            loop.call_soon_threadsafe(finish, problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        await ended
    finally:
        reply.close()
