"""The few things done to containers, each so that doing it twice, or too late, does no harm.

What another tool did meanwhile (ended it, removed it, unpaused it) is no error. Used by the docker
runtime, which decides; errors are Refused, RuntimeAway.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.docker.container import Container, create_body
from launcher.docker.engine import DockerEngine
from launcher.docker.refusals import NotThere, Refused
from router.errors import OperatorError, StartError

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger("launcher")

_REMOVAL_S = 10.0
_LOOK_S = 0.05
_IN_PROGRESS = 409


class Containers:
    """Of one engine."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    async def inspect(self, ref: str) -> dict[str, Any] | None:
        """By id or name; None when there is none."""
        try:
            return await self._engine.look(lambda api: api.inspect_container(ref))
        except NotThere:
            return None

    async def labelled(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """All that have these labels, in whatever state, as the engine lists them."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        return await self._engine.look(
            lambda api: api.containers(all=True, filters={"label": wanted})
        )

    async def running_with(self, label: str) -> list[dict[str, Any]]:
        """All that run and have that label, whatever its value."""
        return await self._engine.look(lambda api: api.containers(filters={"label": [label]}))

    async def run(self, container: Container) -> dict[str, Any]:
        """Make and start it; what `inspect` says then. When that fails nothing of it is left,
        also when it is cancelled half-way."""
        made: list[str] = []

        def create(api: Any) -> None:
            answer = api.create_container_from_config(create_body(container), container.name)
            made.append(answer["Id"])

        try:
            await self._engine.act(create)
            await self._engine.act(lambda api: api.start(made[0]))
            found = await self.inspect(made[0])
            if found is None:
                raise StartError(f"{container.name}: the container was removed at once")
        except BaseException:
            for container_id in made:
                await self._discard(container_id)
            raise
        return found

    async def signal(self, container_id: str, name: str) -> None:
        try:
            await self._engine.act(lambda api: api.kill(container_id, name))
        except Refused as exc:  # it has ended meanwhile
            _ignore(container_id, exc)

    async def unpause(self, container_id: str) -> None:
        try:
            await self._engine.act(lambda api: api.unpause(container_id))
        except Refused as exc:  # somebody else was quicker
            _ignore(container_id, exc)

    async def remove(self, container_id: str) -> None:
        """With its anonymous volumes, by force. Returns once it is gone."""

        def remove(api: "APIClient") -> None:
            api.remove_container(container_id, v=True, force=True)

        try:
            await self._engine.act(remove)
        except NotThere:
            return
        except Refused as exc:
            if exc.status != _IN_PROGRESS:
                raise
            await self._until_gone(container_id, exc)

    async def _until_gone(self, container_id: str, refused: Refused) -> None:
        try:
            async with asyncio.timeout(_REMOVAL_S):
                gone = False
                while not gone:
                    await asyncio.sleep(_LOOK_S)
                    gone = await self.inspect(container_id) is None
        except TimeoutError:
            raise refused from None

    async def _discard(self, container_id: str) -> None:
        try:
            await self.remove(container_id)
        except (OperatorError, Refused) as exc:  # the error that led here is the one to tell
            log.warning("docker: container %s is removed later: %s", container_id[:12], exc)


def _ignore(container_id: str, exc: Refused) -> None:
    log.debug("docker: container %s: %s", container_id[:12], exc)
