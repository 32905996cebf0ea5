"""One cluster as a command sees it: its config, where the config came from, its state folder."""

from dataclasses import dataclass
from pathlib import Path

from launcher.config import ClusterConfig, load_cluster_config
from launcher.state import StateFolder


@dataclass(frozen=True, slots=True)
class Cluster:
    """Loaded once per command."""

    path: Path
    config: ClusterConfig
    folder: StateFolder

    @classmethod
    def load(cls, path: Path) -> "Cluster":
        """Raises ConfigError. Nothing is made or changed on disk."""
        config = load_cluster_config(path)
        # Resolved, because processes are found again by this path, letter for letter.
        return cls(path, config, StateFolder(config.state_dir.resolve()))
