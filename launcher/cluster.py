"""One cluster as a command sees it: its config, where the config came from, its state folder."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from launcher.config import ClusterConfig
from launcher.config.lenient import read_leniently
from launcher.state import StateFolder
from router.config import load_model, read_source
from router.errors import ConfigError, ConfigProblem

DEFAULT_CONFIG = Path("fleet.yaml")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Loaded once per command. `text` is what `config` was made from: the file may have been saved
    again since."""

    path: Path
    config: ClusterConfig
    folder: StateFolder
    text: str = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "Cluster":
        """Raises ConfigError. Nothing is made or changed on disk."""
        require_default(path)
        source = read_source(path)
        config = load_model(source, ClusterConfig)
        # Resolved, because processes are found again by this path, letter for letter.
        return cls(path, config, StateFolder(config.state_dir.resolve()), source.text)

    @classmethod
    def load_leniently(cls, path: Path, *, is_quiet: bool = False) -> "Cluster":
        """The same for verbs that start nothing: variables that this shell lacks are no error.

        Which they are is noted on stderr. One that says which cluster it is remains an error.
        """
        require_default(path)
        source, config = read_leniently(path)
        if source.unset and not is_quiet:
            names = ", ".join(sorted({name for names in source.unset.values() for name in names}))
            print(
                f"note: not set in this shell: {names}; what runs is not affected", file=sys.stderr
            )
        return cls(path, config, StateFolder(config.state_dir.resolve()), source.text)

    def command(self, *words: str) -> str:
        """A launcher command for this cluster that can be pasted where this one was given."""
        return command_line(self.path, *words)


def require_default(path: Path) -> None:
    """Nobody named a file: say how to. Raises ConfigError."""
    if path == DEFAULT_CONFIG and not path.exists():
        expected = "a cluster config there, or another one named with -c PATH"
        raise ConfigError([ConfigProblem(str(path), None, "", "no such file", expected)])


def command_line(path: Path, *words: str) -> str:
    """`launcher VERB -c PATH ...`; the option is left out where it is the default."""
    verb, *rest = words
    config = [] if path == DEFAULT_CONFIG else ["-c", str(path)]
    return shlex.join(["launcher", verb, *config, *rest])
