"""What an operator can write in a cluster config: each field's meaning, unit, default and trap.

`Cluster.load` reads one of them for every launcher verb. Here only what is written is judged;
whether the devices are there and the models fit is another file's question.
"""

from launcher.config.cluster import ClusterConfig, load_cluster_config
from launcher.config.engine import EngineConfig
from launcher.config.model import MAX_REPLICAS, ModelConfig, leaves_room
from launcher.config.runtime import DockerConfig, RestartConfig, RuntimeConfig

__all__ = [
    "MAX_REPLICAS",
    "ClusterConfig",
    "DockerConfig",
    "EngineConfig",
    "ModelConfig",
    "RestartConfig",
    "RuntimeConfig",
    "leaves_room",
    "load_cluster_config",
]
