"""What a host without a GPU has for ``nvidia-container-runtime-hook``: it only says yes or no.

runc runs it before a container's start, with the container's state on standard input and the
bundle's ``config.json`` telling which GPUs dockerd promised. Beside it, one level up, lie ``gpus``
(ids, one a line; a number is a line of it) and, where every start shall fail, ``gpu-failure``.
Fails in the words of NVIDIA's own. Makes no device: programs inside see only the variable.
"""

import json
import sys
from pathlib import Path

HOST = Path(__file__).parents[1]
NO_GPU = ("", "void", "none")


def main() -> int:
    bundle = Path(json.load(sys.stdin)["bundle"])
    variables = json.loads((bundle / "config.json").read_text())["process"]["env"]
    # The last one counts, as in any environment.
    wanted = dict(pair.split("=", 1) for pair in variables).get("NVIDIA_VISIBLE_DEVICES", "")
    problem = None if wanted in NO_GPU else refusal(wanted)
    if problem is not None:
        print(f"nvidia-container-cli: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


def refusal(wanted: str) -> str | None:
    """Why these GPUs cannot be given; None if they can."""
    failure = HOST / "gpu-failure"
    if failure.exists():
        return failure.read_text()
    gpus = (HOST / "gpus").read_text().split()
    known = {"all", *gpus, *(str(index) for index in range(len(gpus)))}
    unknown = [id_ for id_ in wanted.split(",") if id_ not in known]
    return f"device error: {unknown[0]}: unknown device" if unknown else None


if __name__ == "__main__":
    sys.exit(main())
