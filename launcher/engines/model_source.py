"""Where a replica's model comes from: the hub, or a folder or file of this machine. Pure.

Used by the engines. A model id that begins with / or ~ is a path; everything else is the hub's.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from launcher.engines.base import Mount

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # old and new versions read different ones
# Containers run as root without capabilities, and a person owns the folders: with this one they can
# write to the cache, and read a model that only its owner may read.
READS_AND_WRITES_FOLDERS = "DAC_OVERRIDE"

_PATH = re.compile(r"[/~]")


def is_local(model_id: str) -> bool:
    return _PATH.match(model_id) is not None


def host_path(model_id: str) -> str:
    """A path with its ~ resolved; a hub id as it is."""
    return os.path.expanduser(model_id) if is_local(model_id) else model_id


def is_inside(path: str, volumes: Iterable[Mount]) -> bool:
    """Whether the path is one in the container, as an operator's own volume brings it there."""
    wanted = PurePosixPath(path)
    return any(wanted.is_relative_to(volume.target) for volume in volumes)


def hub_tokens(environ: Mapping[str, str], own_env: Mapping[str, str]) -> dict[str, str]:
    """The hub's access token under both its names, from the config or else the environment."""
    places = (env.get(name) for env in (own_env, environ) for name in TOKEN_VARIABLES)
    token = next(filter(None, places), None)
    return dict.fromkeys(TOKEN_VARIABLES, token) if token is not None else {}


def nobody_special(home: str) -> dict[str, str]:
    """A home, and a name, for a user whom the image does not know. PyTorch asks for the name as it
    is imported, and fails without."""
    return {"HOME": home, "USER": "gpu-fleet"}


def joined(own: Iterable[Mount], volumes: Iterable[Mount]) -> tuple[Mount, ...]:
    """The launcher's mounts and the operator's, whose win where both have the same target."""
    targets = {PurePosixPath(volume.target) for volume in volumes}
    return (*(m for m in own if PurePosixPath(m.target) not in targets), *volumes)
