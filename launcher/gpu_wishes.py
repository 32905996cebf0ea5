"""What models ask for in GPUs, and what their replicas are given: the words of `assignment`. Pure.

`assignment` decides where the machine tells its GPUs, `unseen_gpus` where it does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.config import ClusterConfig, ModelConfig, leaves_room
from launcher.device_request import Group, index_of

_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model as it asks for GPUs. `place` is where in the config, for messages."""

    place: str
    model: ModelConfig
    uses_gpus: bool
    may_share: bool


def wanted_models(config: ClusterConfig) -> list[Wanted]:
    """The config's models, in its order."""
    return [
        Wanted(
            f"models[{index}]",
            model,
            config.uses_gpus(model),
            leaves_room(model, config.engine_of(model)),
        )
        for index, model in enumerate(config.models)
    ]


@dataclass(frozen=True, slots=True)
class Assigned:
    """The devices of replica number `position`; none for those that need none.

    With `trouble` it cannot be started: it runs on where it is, or waits for somebody to see to it.
    """

    position: int
    devices: Group
    trouble: str = ""


Running = Sequence[Group | None]
"""By replica number, where it runs; () for one that is known and does not run, None for others."""


def numbered(groups: Iterable[Group]) -> list[Assigned]:
    return [Assigned(position, group) for position, group in enumerate(groups)]


def without_gpus(wanted: Wanted) -> list[Assigned]:
    return numbered([()] * (wanted.model.replica_count or 1))


def running_at(running: Running, position: int) -> Group:
    """Where it runs; () if it does not."""
    return (running[position] or ()) if position < len(running) else ()


def may_be(written: str, uuid: str) -> bool:
    """Whether a device of the config may mean a GPU that nobody can look up."""
    return index_of(written) is not None or uuid.startswith(written)


def few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
