"""vLLM's OpenAI server: `vllm` on the PATH, or its image."""

import os
from collections.abc import Mapping

from launcher.engines.vllm_family import FamilyEngine, Program
from launcher.engines.vllm_flags import FLAGS

VLLM = Program(
    name="vllm",
    serve=("vllm", "serve"),
    image="vllm/vllm-openai",
    newest_tag="v0.29.0",
    first=(0, 6, 0),
    example="0.29.0",
    port=8000,
    cache_variable="VLLM_CACHE_ROOT",
    api_key="VLLM_API_KEY",
    flags=FLAGS,
    reserved_env={"VLLM_PORT": "runtime.first_port"},  # it means another port to vLLM
)


class VllmEngine(FamilyEngine):
    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(VLLM, environ)
