"""Aphrodite, a fork of vLLM: `aphrodite` on the PATH, or its image.

Its version numbers follow vLLM's, and so do its flags. Before 0.6 its image was driven by
environment variables and listened elsewhere: refused.
"""

import os
from collections.abc import Mapping

from launcher.engines.flags import Flag
from launcher.engines.vllm_family import FamilyEngine, Program
from launcher.engines.vllm_flags import FLAGS

APHRODITE = Program(
    name="aphrodite",
    serve=("aphrodite", "run"),
    image="alpindale/aphrodite-openai",
    newest_tag="latest",  # the only tag that its documentation names
    first=(0, 6, 0),
    example="0.6.5",
    port=2242,
    cache_variable="APHRODITE_CACHE_ROOT",
    api_key="APHRODITE_API_KEY",
    flags={**FLAGS, "launch-kobold-api": Flag("switch", until=(0, 10, 0))},
    reserved_env={"APHRODITE_PORT": "runtime.first_port"},
)


class AphroditeEngine(FamilyEngine):
    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(APHRODITE, environ)
