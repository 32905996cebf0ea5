"""What this user's settings of Docker's own command line add to every container: proxies.

`docker run` gives them to containers as variables, so engines that get models through a proxy need
them here, too. Read by the docker runtime when it makes a container. Their values may hold a
password: they are in no message, and no printed command line needs them.
"""

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}


def read_proxies(url: str) -> dict[str, str]:
    """For containers of the engine at `url`; none where there are no such settings."""
    from docker.utils.config import load_general_config

    return proxies_of(load_general_config(), url)


def proxies_of(settings: Any, url: str) -> dict[str, str]:
    """From a `config.json`: those for that engine, else the default ones, in both spellings."""
    by_engine = _mapping(_mapping(settings).get("proxies"))
    chosen = _mapping(by_engine.get(url, by_engine.get("default")))
    set_ = {name: str(chosen[key]) for key, name in _NAMES.items() if chosen.get(key)}
    return set_ | {name.lower(): value for name, value in set_.items()}


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}
