"""``python -m launcher.simulator``."""

from __future__ import annotations

import sys

from launcher.simulator.cli import main

if __name__ == "__main__":
    sys.exit(main())
