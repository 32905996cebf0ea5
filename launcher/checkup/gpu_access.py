"""Proves that containers get GPUs: one short-lived container for each GPU that replicas want.

Nothing else proves it: engines say little of what they can do with GPUs before a start. Only images
that are there already are used, with a program that looks and ends; no network, no capabilities. A
container is removed whatever happens, and one that a killed check left is removed by the next.
"""

import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.checkup.base import Check, Finding, NotTold, failed, passed, skipped
from launcher.checkup.containers import image_sizes
from launcher.checkup.subject import Subject, named_device
from launcher.docker.gpu_injection import Injection, device_requests, facts_of, injection_of
from launcher.docker.refusals import Refused, start_error
from router.errors import RuntimeAway

if TYPE_CHECKING:
    from launcher.gpu import Inventory

LABEL = "io.gpu-fleet.doctor"
_CALL_S = 30.0  # a hook that wakes a GPU takes its time
_END_S = 30.0
_LOOK_S = 0.05
_STRAY_AFTER_S = 600.0  # no check of ours takes as long
_PROGRAMS = (("nvidia-smi", "-L"), ("true",), ("sh", "-c", ":"))
_MISSING = r"""["`]{}["`].*(not found|no such file)"""  # runc's words, and crun's


@dataclass(frozen=True, slots=True)
class _Trial:
    """One GPU to be tried, in one image."""

    device: str  # a UUID, or cuda:N
    about: str
    image: str
    injection: Injection


def _gpu_access(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    assert config is not None
    way = config.runtime.docker.gpu_injection
    if way == "none":
        yield skipped("runtime.docker.gpu_injection is none: the image or the daemon sees to it")
        return
    facts = facts_of(subject.docker_look.info)
    images = _images(subject)
    if not any(images.values()):
        wanted = ", ".join(dict.fromkeys(command.image for _, command in subject.containers()))
        yield skipped(
            f"no image to try it with: {wanted} is not here", f"`docker pull {wanted}`, then again"
        )
        return
    inventory = _inventory(subject)
    trials = [
        _Trial(device, named_device(device, inventory), image, injection_of(way, (device,), facts))
        for device, image in images.items()
        if image is not None
    ]
    with closing(subject.engine.connect(_CALL_S)) as api:
        _remove_strays(api)
        yield from _merged(_outcomes(subject, api, trials))


def _images(subject: Subject) -> dict[str, str | None]:
    """For each GPU an image that is here: its replica's own, or else any."""
    sizes = image_sizes(subject)
    here = [image for image, size in sizes.items() if size is not None]
    spare = here[0] if here else None
    return {
        device: command.image if sizes[command.image] is not None else spare
        for spec, command in subject.containers()
        for device in spec.devices
    }


def _inventory(subject: Subject) -> "Inventory | None":
    try:
        return subject.look.inventory
    except NotTold:
        return None


def _outcomes(subject: Subject, api: Any, trials: list[_Trial]) -> Iterator[tuple[_Trial, Finding]]:
    for trial in trials:
        if subject.is_over.is_set():
            return
        try:
            yield trial, _tried(subject, api, trial)
        except RuntimeAway as exc:  # the others would only take as long
            yield trial, failed(str(exc), about=trial.about)
            return


def _merged(outcomes: Iterator[tuple[_Trial, Finding]]) -> Iterator[Finding]:
    """What is the same for several GPUs is told once."""
    same: dict[tuple[str, str], list[Finding]] = {}
    for trial, finding in outcomes:
        key = (finding.verdict, finding.found.replace(trial.device, "").replace(trial.about, ""))
        same.setdefault(key, []).append(finding)
    for findings in same.values():
        first, about = findings[0], ", ".join(finding.about for finding in findings)
        yield Finding(first.verdict, first.found, first.advice, about)


def _tried(subject: Subject, api: Any, trial: _Trial) -> Finding:
    by_hand = f"see for yourself: `{_by_hand(trial)}`"
    for program in _PROGRAMS:
        try:
            code, said = _run(subject, api, trial, program)
        except Refused as exc:
            if _is_missing(program[0], exc):
                continue
            reason = start_error(exc, "a container with this GPU cannot start")
            return failed(str(reason), by_hand, about=trial.about)
        if program[0] == "nvidia-smi":
            return _judged(trial, code, said, by_hand)
        return passed(
            "the Docker Engine gives it to containers; the image has no nvidia-smi to look with",
            about=trial.about,
        )
    return skipped(f"{trial.image} has no program to try it with", by_hand, about=trial.about)


def _is_missing(program: str, refused: Refused) -> bool:
    return bool(re.search(_MISSING.format(re.escape(program)), refused.text, re.IGNORECASE))


def _by_hand(trial: _Trial) -> str:
    injection, words = trial.injection, ["docker", "run", "--rm"]
    if injection.runtime is not None:
        words += ["--runtime", injection.runtime]
        words += [
            word for name, value in injection.env.items() for word in ("-e", f"{name}={value}")
        ]
    elif injection.driver == "cdi":
        words += ["--device", *injection.ids]
    else:
        words += ["--gpus", f"device={','.join(injection.ids)}"]
    return shlex.join([*words, "--entrypoint", "nvidia-smi", trial.image, "-L"])


def _judged(trial: _Trial, code: int, said: str, by_hand: str) -> Finding:
    last = " ".join(said.split())[-300:] or "nothing"
    if code != 0:
        text = f"nvidia-smi in a container ended with code {code}; it said: {last}"
        return failed(text, by_hand, about=trial.about)
    is_uuid = trial.device.startswith(("GPU-", "MIG-"))
    if trial.device in said or (not is_uuid and "UUID" in said):
        return passed(f"nvidia-smi in a container of {trial.image} sees it", about=trial.about)
    return failed(
        f"nvidia-smi in a container does not see it; it said: {last}",
        "try another runtime.docker.gpu_injection: cdi, runtime or request",
        about=trial.about,
    )


def _run(subject: Subject, api: Any, trial: _Trial, program: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and output. Raises Refused, RuntimeAway; leaves nothing."""
    name = f"gpu-fleet-doctor-{os.getpid()}-{time.monotonic_ns()}"
    try:
        api.create_container_from_config(_body(trial, program), name)
        if subject.is_over.is_set():
            raise RuntimeAway("interrupted")
        api.start(name)
        code = _exit_code(subject, api, name)
        return code, api.logs(name).decode(errors="replace")
    except Exception as exc:
        raise subject.engine.translated(exc) from exc
    finally:
        _remove(api, name)


def _exit_code(subject: Subject, api: Any, name: str) -> int:
    """Looks again and again: a reply that is waited for could not be interrupted."""
    deadline_s = time.monotonic() + _END_S
    while (state := api.inspect_container(name)["State"])["Running"]:
        if time.monotonic() > deadline_s:
            raise RuntimeAway(f"a container that only looks at its GPU is not done in {_END_S:g} s")
        if subject.is_over.wait(_LOOK_S):
            raise RuntimeAway("interrupted")
    return int(state["ExitCode"])


def _body(trial: _Trial, program: tuple[str, ...]) -> dict[str, Any]:
    injection = trial.injection
    host: dict[str, Any] = {
        "DeviceRequests": device_requests(injection),
        "NetworkMode": "none",
        "RestartPolicy": {"Name": "no"},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
    }
    if injection.runtime is not None:
        host["Runtime"] = injection.runtime
    return {
        "Image": trial.image,
        "Entrypoint": [program[0]],
        "Cmd": list(program[1:]),
        "Env": [f"{name}={value}" for name, value in injection.env.items()],
        "Labels": {LABEL: str(os.getpid())},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _remove(api: Any, ref: str) -> None:
    """If it cannot be done now the next check does it."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    with suppress(DockerException, RequestException):
        api.remove_container(ref, v=True, force=True)


def _remove_strays(api: Any) -> None:
    """Of checks that were killed; one that runs beside this keeps its own."""
    for found in api.containers(all=True, filters={"label": LABEL}):
        if found["Created"] < time.time() - _STRAY_AFTER_S:
            _remove(api, found["Id"])


def _matters(subject: Subject) -> bool:
    return subject.uses_docker and subject.uses_gpus


CHECKS = (Check("gpu access", _gpu_access, _matters, limit_s=300.0, clean_up_s=_CALL_S),)
