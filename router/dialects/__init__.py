"""What replicas speak. Add a wire format: a file here and a line in DIALECTS."""

from router.dialects.base import Dialect, Ending, EngineInfo
from router.dialects.openai import OpenAiDialect
from router.dialects.tgi import TgiDialect

DIALECTS: dict[str, Dialect] = {"tgi": TgiDialect(), "openai": OpenAiDialect()}
"""`config.DialectName` lists the same names."""

__all__ = ["DIALECTS", "Dialect", "Ending", "EngineInfo"]
