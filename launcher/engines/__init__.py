"""The engines the launcher can start. A new one is a file here and a line in `ENGINES`."""

from launcher.engines.aphrodite import AphroditeEngine
from launcher.engines.base import Command, Engine
from launcher.engines.llamacpp import LlamaCppEngine
from launcher.engines.simulator import SimulatorEngine
from launcher.engines.tgi import TgiEngine
from launcher.engines.vllm import VllmEngine

ENGINES: dict[str, Engine] = {
    "simulator": SimulatorEngine(),
    "tgi": TgiEngine(),
    "vllm": VllmEngine(),
    "aphrodite": AphroditeEngine(),
    "llamacpp": LlamaCppEngine(),
}

__all__ = ["ENGINES", "Command", "Engine"]
