"""What replicas speak. Add a wire format: a file here and a line in DIALECTS."""

from router.dialects.base import Dialect, Ending, EngineInfo
from router.dialects.tgi import TgiDialect

DIALECTS: dict[str, Dialect] = {"tgi": TgiDialect()}

__all__ = ["DIALECTS", "Dialect", "Ending", "EngineInfo"]
