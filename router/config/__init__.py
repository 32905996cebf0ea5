"""What the router can be told, and how YAML becomes checked values with a line in every error."""

from router.config.models import (
    DialectName,
    HealthConfig,
    KeyConfig,
    LimitsConfig,
    Policy,
    QueueConfig,
    ReplicaConfig,
    ResumeConfig,
    RetryConfig,
    RouterConfig,
    RouterFile,
    StrictModel,
    TimeoutConfig,
    TlsConfig,
    is_loopback,
)
from router.config.source import Source, load_model, read_source

__all__ = [
    "DialectName",
    "HealthConfig",
    "KeyConfig",
    "LimitsConfig",
    "Policy",
    "QueueConfig",
    "ReplicaConfig",
    "ResumeConfig",
    "RetryConfig",
    "RouterConfig",
    "RouterFile",
    "Source",
    "StrictModel",
    "TimeoutConfig",
    "TlsConfig",
    "is_loopback",
    "load_model",
    "read_source",
]
