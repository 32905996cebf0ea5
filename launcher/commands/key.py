"""`launcher key NAME`: a new API key, printed once, and the lines of the config that let it in.

The key goes to standard output and nowhere else; what goes into the config is its hash.
"""

import secrets
import sys
from hashlib import sha256

from pydantic import ValidationError

from router.config import KeyConfig
from router.errors import ConfigError, ConfigProblem

_PREFIX = "fleet-"  # by which people, and scanners for lost secrets, know what it is
_RANDOM_BYTES = 32


def run(name: str) -> int:
    key = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    config = _config(name, sha256(key.encode()).hexdigest())
    print(key, flush=True)
    print(
        f"""\
Keep it: it is not stored, and this config has only its hash:

router:
  keys:
    - name: {config.name}
      hash: {config.hash}

Applications send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.""",
        file=sys.stderr,
    )
    return 0


def _config(name: str, digest: str) -> KeyConfig:
    try:
        return KeyConfig(name=name, hash=f"sha256:{digest}")
    except ValidationError:
        expected = "a letter or digit, then at most 62 of them, of dots, dashes and underscores"
        raise ConfigError(
            [ConfigProblem("command line", None, "NAME", repr(name[:80]), expected)]
        ) from None
