"""What a Docker Engine's refusals mean, and what can be done about them. Pure tables.

Engines answer most troubles with status 500 and say what is wrong only in words, which differ by
version; so the words are matched. Called where the engine's answers become our errors: `engine`
(it does not answer at all), `pulls`, and the runtime (a container cannot be made or started).
"""

import re
from dataclasses import dataclass

from router.errors import OperatorError, RuntimeAway, StartError

_QUOTED_CHARS = 300


class Refused(Exception):
    """The engine understood and said no. Stays inside `launcher.docker` and its runtime."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text.strip()


class NotThere(Refused):
    """No such container, image or network."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """`found` in the words, lower case: what it means, and whether trying again may help, or only
    after somebody has seen to it (`is_slow`)."""

    found: str
    meaning: str
    recoverable: bool = True
    is_slow: bool = True


_TOOLKIT = (
    "install the NVIDIA Container Toolkit "
    "(https://docs.nvidia.com/datacenter/cloud-native/container-toolkit), "
    "then `sudo systemctl restart docker`"
)
_NO_SPACE = _Rule(
    "no space left on device",
    "the disk is full: `docker system df` shows what Docker keeps, `docker image prune` frees some",
)
_START = (
    _Rule(
        "invoking the nvidia container runtime hook directly",
        "the NVIDIA Container Toolkit here works another way: set runtime.docker.gpu_injection to "
        "runtime or cdi",
        recoverable=False,
    ),
    _Rule("could not select device driver", f"this Docker Engine has no GPUs to give: {_TOOLKIT}"),
    _Rule(
        r"nvidia-container-runtime-hook.*executable file not found",
        f"this Docker Engine had GPUs to give when it was started, and no more: {_TOOLKIT}",
    ),
    _Rule(
        "unknown device|device error",
        "this machine has no such GPU; compare models[].devices with `nvidia-smi -L`",
    ),
    _Rule(
        "unresolvable cdi devices|cdi device injection failed",
        "the Docker Engine knows no such CDI device: see `nvidia-ctk cdi list`, or set "
        "runtime.docker.gpu_injection to request",
    ),
    _Rule(
        "nvidia-container-cli|nvml error|driver not loaded",
        "the NVIDIA driver does not work on this machine: does `nvidia-smi`?",
    ),
    _Rule(
        "unknown runtime specified|unknown or invalid runtime name",
        "the Docker Engine has no runtime of that name: `sudo nvidia-ctk runtime configure "
        "--runtime=docker` and `sudo systemctl restart docker` add it; or set "
        "runtime.docker.gpu_injection to request",
    ),
    _Rule(
        "docker-init",
        "the program docker-init is missing on this machine: it comes with Docker; on Debian it is "
        "in the package tini",
    ),
    _NO_SPACE,
    _Rule(
        r"network \S+ not found",
        "there is no such network: `docker network create` makes it, or change "
        "runtime.docker.network",
    ),
    _Rule(
        "unable to find user|no matching entries in passwd|unable to find group",
        "the image has no such user: change runtime.docker.user",
        recoverable=False,
    ),
    _Rule(
        "is already in use by container",
        "another container has that name: `docker rm -f` removes it",
    ),
    _Rule("no such image", "the image is not on this Docker Engine: `docker pull` gets it"),
    # Before what the image lacks: these are this machine's, and away while they are upgraded.
    _Rule(
        r'exec: "?(/\S*/)?(containerd-shim|runc\b|crun\b|youki\b|nvidia-c)',
        "a program that the Docker Engine starts containers with is missing on this machine: while "
        "Docker or the NVIDIA Container Toolkit is upgraded that is so for a moment",
        is_slow=False,
    ),
    _Rule(
        'error mounting "?/dev/|error gathering device information',
        "a device of this machine cannot be given to it: does `nvidia-smi` work here? A driver "
        "that is loaded anew brings its devices back",
        is_slow=False,
    ),
    _Rule(
        "not a directory|mount a directory onto a file",
        "a folder can only be mounted on a folder, a file on a file: see engine.volumes",
        recoverable=False,
    ),
    _Rule(
        "executable file not found|exec: .*(no such file|permission denied)",
        "the image has no such program: is it the engine's image, and of the right version?",
        recoverable=False,
    ),
    _Rule(
        "minimum memory limit|range of cpus|invalid (reference|container name)",
        "the Docker Engine refuses what the config asks for",
        recoverable=False,
    ),
    _Rule("permission denied", "the Docker Engine may not do that on this machine"),
    _Rule("cannot allocate memory|resource temporarily unavailable", "the machine is short of it"),
)
_PULL = (
    _NO_SPACE,
    _Rule("toomanyrequests|rate limit", "the registry limits how often you pull: `docker login`"),
    # Before what is refused: registries that hide what they have say "denied" for both.
    _Rule(
        "pull access denied|repository does not exist|name unknown|repository name not known",
        "the registry has no such repository, or only shows it after `docker login`",
    ),
    _Rule(
        r"manifest unknown|manifest for .* not found|failed to resolve reference (\S+: )+not found",
        "the registry has no such tag: see engine.version and engine.image",
        recoverable=False,
    ),
    _Rule(
        "unauthorized|denied|forbidden|no basic auth|authentication required",
        "the registry refuses it: `docker login` to it",
    ),
    _Rule(
        "no matching manifest",
        "the image does not exist for this machine's kind of processor",
        recoverable=False,
    ),
    _Rule("invalid reference", "that is no image name: see engine.image", recoverable=False),
    _Rule("x509|certificate", "the registry's certificate is not trusted by the Docker Engine"),
    _Rule(
        r"dial tcp|no such host|timeout|timed out|connection re|proxyconnect|\beof\b|tls handshake",
        "the registry cannot be reached; `docker pull` on another machine, `docker save` and "
        "`docker load` also bring an image here",
        is_slow=False,
    ),
    # Last: a layer that a registry lacks for a moment, or that two pulls got into disorder.
    _Rule("not found", "a part of the image is not where it should be", is_slow=False),
)


def start_error(refused: Refused, what: str) -> StartError:
    """Why `what` could not be started, for the operator."""
    return _error(refused.text, what, _START)


def pull_error(text: str, image: str) -> StartError:
    """Why `image` could not be pulled, for the operator."""
    return _error(text, f"cannot pull the image {image}", _PULL)


def is_login_wanted(text: str) -> bool:
    """Whether a pull was refused for want of a login, as far as a registry tells that."""
    return bool(re.search("unauthorized|denied|forbidden|authentication required", text.lower()))


def is_credentials_trouble(words: str) -> bool:
    """Whether the SDK could not even find out which login to use."""
    return "credentials store error" in words.lower()


def credentials_error(words: str) -> StartError:
    """The helper that keeps this user's logins does not work, from the SDK's words."""
    helper = re.search(r"docker-credential-[\w.-]*\w", words)
    return StartError(
        f"cannot get your logins for registries from {helper[0] if helper else 'their helper'}: "
        f"install it, or take credsStore and credHelpers out of ~/.docker/config.json and `docker "
        f"login` again ({_short(words)})",
        is_slow=True,
    )


def is_port_taken(refused: Refused) -> bool:
    words = refused.text.lower()
    return "port is already allocated" in words or "address already in use" in words


def is_limit_refused(refused: Refused) -> bool:
    """Whether the engine may not allow a container what it is not allowed itself."""
    return "error setting rlimit" in refused.text.lower()


def not_answering(words: str, where: str, *, was_reached: bool = False) -> OperatorError:
    """What keeps the engine at `where` from being asked, from a foreign error's words.

    `was_reached`: it has answered before, so that what is forbidden now may be allowed again, as
    when Docker is upgraded and its socket made anew.
    """
    lower = words.lower()
    # 1. Nothing will change by trying again.
    if "permission denied" in lower:
        return StartError(
            f"{where}: permission denied; expected to be allowed to use the Docker Engine: "
            "`sudo usermod -aG docker $USER` and log in again, or run the launcher with sudo",
            recoverable=was_reached,
            is_slow=was_reached,
        )
    if is_credentials_trouble(words):
        return credentials_error(words)
    if "invalid bind address" in lower or "paramiko" in lower or "no longer supported" in lower:
        return StartError(f"runtime.docker.url: {where}: {_short(words)}", recoverable=False)
    # 2. It is not there now, and may be later.
    if "no such file" in lower or "refused" in lower:
        return RuntimeAway(
            f"no Docker Engine answers at {where}; `sudo systemctl start docker` starts it, "
            "runtime.docker.url or DOCKER_HOST say where else it is"
        )
    if "timed out" in lower or "timeout" in lower:
        return RuntimeAway(f"the Docker Engine at {where} does not answer in time")
    return RuntimeAway(f"the Docker Engine at {where} does not answer: {_short(words)}")


def _error(text: str, what: str, rules: tuple[_Rule, ...]) -> StartError:
    said = _telling(text)
    for rule in rules:
        if re.search(rule.found, text, re.IGNORECASE | re.DOTALL):
            return StartError(
                f"{what}: {rule.meaning} (the Docker Engine says: {said})",
                recoverable=rule.recoverable,
                is_slow=rule.recoverable and rule.is_slow,
            )
    return StartError(f"{what}: the Docker Engine says: {said}")


def _telling(text: str) -> str:
    """Without the layers of programs that passed it on; a hook's own words come last."""
    said = text.rpartition("stderr: ")[2]
    said = re.sub(r"^.*(?:caused|failed): (?=\S)", "", said, flags=re.DOTALL) or said
    return _short(re.sub(r"(?:: unknown)+$", "", said.strip()))


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= _QUOTED_CHARS else f"{words[:_QUOTED_CHARS]}..."
