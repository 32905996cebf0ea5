"""The section `engine`: which model server runs, with which flags."""

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from launcher.config.values import EnvName, Image, Size, Volume
from launcher.engines import ENGINES
from launcher.engines.flags import Arg
from router.config.mismatch import Path as KeyPath
from router.config.mismatch import refuse
from router.config.models import Seconds, ShorthandModel


class EngineConfig(ShorthandModel):
    """The model server that each replica runs. A plain text is its name."""

    shorthand: ClassVar[str] = "name"

    name: Literal["simulator", "tgi", "vllm", "aphrodite", "llamacpp"] = Field(
        "simulator", description="simulator needs no GPU and is no language model; others are real."
    )
    version: str | None = Field(
        None, description='The engine\'s version, in quotes ("3.3.5"); default: the newest known.'
    )
    image: Image | None = Field(
        None,
        description="The container's image, with its tag or digest; default: the engine's own.",
    )
    args: dict[str, Arg] = Field(
        default={},
        description="Flags of the engine, without dashes: `max-batch-size: 8`; true: flag alone.",
    )
    env: dict[EnvName, str] = Field(
        default={},
        repr=False,
        description="Environment variables. Write ${NAME} to keep secrets out of the file.",
    )
    per_replica: list[dict[str, Arg]] | None = Field(
        None, description="Flags that differ: the first entry is for each model's first replica."
    )
    volumes: list[Volume] = Field(
        default=[],
        description="Folders of this machine for the container: /host/folder:/in/container[:ro].",
    )
    shm_size: Size | None = Field(
        None, description='Shared memory of the container, like "1GiB"; default: the engine\'s.'
    )
    start_timeout_s: Seconds = Field(
        1800.0, description="From start to ready, in seconds. A first download takes long."
    )

    @model_validator(mode="after")
    def possible(self) -> Self:
        refuse(ENGINES[self.name].check_engine(self))
        return self

    def all_args(self) -> Iterator[tuple[KeyPath, dict[str, Arg]]]:
        """Every mapping of flags, with its place below `engine`."""
        yield ("args",), self.args
        for position, args in enumerate(self.per_replica or ()):
            yield ("per_replica", position), args

    def args_at(self, position: int) -> dict[str, Arg]:
        """The flags of a model's replica number `position`, counted from 0."""
        own = self.per_replica or []
        return {**self.args, **(own[position] if position < len(own) else {})}
