"""What a container is to see of this machine's files: whether it is there, and may be seen.

Looks at the disk, makes the folder for models, and nothing else. Asked by the docker runtime before
an engine is: Docker would make a missing folder itself, as root's.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from launcher.docker.container import ENGINE_SOCKETS, require_no_engine_socket
from launcher.engines.base import Mount
from router.errors import StartError


def require_folders(mounts: Iterable[Mount], cache_dir: Path, socket_path: str | None) -> None:
    """All can be mounted; `socket_path` is where the engine listens. Raises StartError."""
    sockets = [*ENGINE_SOCKETS, *([socket_path] if socket_path else [])]
    sockets += [os.path.realpath(socket) for socket in sockets]
    for mount in mounts:
        require_no_engine_socket(os.path.realpath(mount.source), sockets)
        if mount.source == str(cache_dir):
            _make(cache_dir)
        elif not os.path.exists(mount.source):
            raise StartError(
                f"found no {mount.source} on this machine, expected a file or folder for "
                f"{mount.target} in the container",
                is_slow=True,
            )


def _make(cache_dir: Path) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(
            f"{cache_dir}: cannot make the folder for models ({exc.strerror}); set "
            "runtime.docker.model_cache to one you may write to",
            is_slow=True,
        ) from exc
