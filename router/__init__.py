"""The data plane: one HTTP endpoint in front of many replicas."""

__version__ = "0.1.0"
