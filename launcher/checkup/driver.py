"""The NVIDIA driver: whether it works, and is new enough for the engines."""

from collections.abc import Iterator

from launcher.checkup.base import Check, Finding, failed, failed_by, passed, skipped, warned
from launcher.checkup.subject import Subject, named
from launcher.engines.images import version_of_spec
from launcher.engines.tgi import IMAGE as TGI_IMAGE
from launcher.engines.versions import Version, show_version
from launcher.gpu import DriverState
from launcher.gpu_view import heading
from router.errors import OperatorError

# Of TGI's images: (from this version on, CUDA they are known to need, CUDA they are made for).
_TGI_CUDA: tuple[tuple[Version, tuple[int, int], tuple[int, int]], ...] = (
    ((2, 0, 0), (12, 1), (12, 2)),
    ((1, 0, 0), (12, 1), (12, 1)),
)
_NEWER = "install a newer NVIDIA driver, then reboot"
_SMI = "`nvidia-smi` has to work before any engine can"


def _driver(subject: Subject) -> Iterator[Finding]:
    try:
        inventory = subject.driver.answer().inventory
    except OperatorError as exc:
        yield failed_by(exc)
        return
    if inventory.state is DriverState.BROKEN:
        yield failed(inventory.trouble, _SMI)
    elif inventory.state is DriverState.OK:
        text = heading(inventory)
        yield passed(text) if inventory.gpus else failed(text, "see `nvidia-smi -L`")
        for trouble in inventory.trouble.splitlines():
            yield failed(trouble, "leave it out of models[].devices until somebody has seen to it")
    elif not subject.uses_gpus:
        yield skipped(inventory.trouble, "`engine: simulator` needs none")
    elif subject.uses_docker:
        # The launcher may itself be in a container, which was given no GPU.
        yield warned(
            inventory.trouble, "containers may have GPUs all the same: see the check gpu access"
        )
    else:
        yield failed(
            inventory.trouble, "install the driver; `engine: simulator` runs without a GPU"
        )


def _cuda(subject: Subject) -> Iterator[Finding]:
    told = subject.look.inventory.cuda_version
    if not told:
        yield skipped("the driver does not tell which CUDA it can run")
        return
    major, _, minor = told.partition(".")
    has = int(major), int(minor or 0)
    versions = {
        version_of_spec(spec, TGI_IMAGE)
        for spec in subject.specs
        if spec.engine_name == "tgi" and spec.devices
    }
    for version in sorted(versions):
        yield _enough(version, has)


def _enough(version: Version, has: tuple[int, int]) -> Finding:
    _, needed, made_for = next(row for row in _TGI_CUDA if version >= row[0])
    engine = "TGI" if version >= (9999, 0, 0) else f"TGI {show_version(version)}"
    found = f"{engine} needs CUDA {_dotted(needed)}, the driver runs up to {_dotted(has)}"
    if has < needed:
        return failed(found, _NEWER)
    if has < made_for:
        return warned(f"{found}; {_dotted(made_for)} or newer is recommended", _NEWER)
    return passed(found)


def _persistence(subject: Subject) -> Iterator[Finding]:
    look = subject.look
    states = {named(gpu): look.readings[gpu.uuid].is_persistent for gpu in look.inventory.gpus}
    sleeping = [name for name, is_on in states.items() if is_on is False]
    if sleeping:
        yield warned(
            f"off for {', '.join(sleeping)}: an idle GPU falls asleep, and waking it takes seconds",
            "`sudo systemctl enable --now nvidia-persistenced`, or `sudo nvidia-smi -pm 1` until "
            "the next reboot",
        )
    elif any(states.values()):
        yield passed("on")
    else:
        yield skipped("the driver does not tell")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _runs_tgi(subject: Subject) -> bool:
    config = subject.config
    if config is None or not subject.looks_at_gpus:
        return False
    return any(config.engine_of(model).name == "tgi" for model in config.models)


CHECKS = (
    Check("driver", _driver, lambda subject: subject.looks_at_gpus, limit_s=60.0),
    Check("cuda", _cuda, _runs_tgi, limit_s=60.0),
    Check("persistence", _persistence, lambda subject: subject.looks_at_gpus, limit_s=60.0),
)
