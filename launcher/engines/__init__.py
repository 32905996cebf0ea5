"""The engines the launcher can start. A new one is a file here and a line in `ENGINES`."""

from launcher.engines.base import Command, Engine
from launcher.engines.simulator import SimulatorEngine
from launcher.engines.tgi import TgiEngine

ENGINES: dict[str, Engine] = {
    "simulator": SimulatorEngine(),
    "tgi": TgiEngine(),
}

__all__ = ["ENGINES", "Command", "Engine"]
