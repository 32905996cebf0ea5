"""Whose containers these are: a cluster's name and its state folder, both. Pure.

Two clusters of one name would take each other's containers for their own; the folder tells them
apart. Asked by the docker runtime before it starts, removes or adopts anything, and for what other
clusters' containers have.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.docker.labels import CLUSTER, DEVICES, HOME
from router.errors import StartError


def marks_of(cluster: str, home: Path) -> dict[str, str]:
    """The labels that all of a cluster's containers have, and no others."""
    return {CLUSTER: cluster, HOME: str(home)}


def is_marked(inspected: Mapping[str, Any], marks: Mapping[str, str]) -> bool:
    """Whether a container, as `inspect` tells it, has these labels."""
    labels = inspected["Config"].get("Labels") or {}
    return bool(marks.items() <= labels.items())


def require_no_other_home(listed: Iterable[Mapping[str, Any]], marks: Mapping[str, str]) -> None:
    """`listed`: all containers of the cluster's name. Raises StartError if another has some."""
    foreign = [one for one in listed if one["Labels"].get(HOME) != marks[HOME]]
    if not foreign:
        return
    names = " ".join(map(_name_of, foreign))
    raise StartError(
        f"cluster {marks[CLUSTER]} on this Docker Engine is run from the state folder "
        f"{foreign[0]['Labels'].get(HOME)}, not from {marks[HOME]}: give this one another name "
        f"(cluster: ...); if that folder is gone, `docker rm -f {names}` ends what is left",
        recoverable=False,
    )


def devices_of_others(
    listed: Iterable[Mapping[str, Any]], marks: Mapping[str, str]
) -> dict[str, str]:
    """By device, the cluster that has it, as people name it: `cluster chat`. `listed`: running
    containers of whatever cluster."""
    found: dict[str, str] = {}
    for one in listed:
        labels = one.get("Labels") or {}
        if not marks.items() <= labels.items():
            for device in filter(None, labels.get(DEVICES, "").split(",")):
                found[device] = f"cluster {labels.get(CLUSTER, '?')}"
    return found


def _name_of(listed: Mapping[str, Any]) -> str:
    """One that is being removed has no names any more, then only its id."""
    names = listed.get("Names") or [listed["Id"][:12]]
    return str(names[0]).removeprefix("/")
