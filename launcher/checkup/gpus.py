"""The GPUs that replicas are to have: how each one is, and whether it can run what it is to run."""

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.checkup.base import Check, Finding, failed, passed, skipped, warned
from launcher.checkup.subject import Subject, named
from launcher.desired import name_process
from launcher.gpu import Gpu, GpuProcess, Reading, strangers
from launcher.quantization import Scheme, scheme_named
from launcher.sizes import show_bytes

_HOT_C = 85  # most data-centre cards slow down a few degrees above
_MOST_NAMED = 3
_USUAL_SLOWDOWN = "power cap"  # how every busy card looks
_BF16_SINCE = (8, 0)


def _gpus(subject: Subject) -> Iterator[Finding]:
    look, wanted = subject.look, subject.wanted_gpus()
    if not wanted:
        yield skipped("none of this machine's GPUs is known to be wanted")
    ours = {device for handle in subject.running for device in handle.devices}
    unclaimed = {gpu.uuid: look.readings[gpu.uuid] for gpu in wanted if gpu.uuid not in ours}
    others = strangers(unclaimed, own_pids=())
    for gpu in wanted:
        yield from _one(gpu, look.readings[gpu.uuid], others.get(gpu.uuid, ()))


def _one(gpu: Gpu, reading: Reading, others: tuple[GpuProcess, ...]) -> Iterator[Finding]:
    about = named(gpu)
    if reading.trouble:
        advice = "leave it out of models[].devices until somebody has seen to it"
        yield failed(f"{gpu.name}: {reading.trouble}", advice, about=about)
        return
    concerns = list(_concerns(reading, others))
    for found, advice in concerns:
        yield warned(found, advice, about=about)
    if not concerns:
        yield passed(_state(gpu, reading), about=about)


def _concerns(reading: Reading, others: tuple[GpuProcess, ...]) -> Iterator[tuple[str, str]]:
    if others:
        named_ones = ", ".join(map(name_process, others[:_MOST_NAMED]))
        more = len(others) - _MOST_NAMED
        named_ones += f" and {more} more" if more > 0 else ""
        yield (
            f"not alone: memory is held by {named_ones}",
            "end them, or give the replica another GPU (models[].devices)",
        )
    slow = [reason for reason in reading.throttle_reasons if reason != _USUAL_SLOWDOWN]
    if slow:
        yield (
            f"slowed down: {', '.join(slow)}{_at(reading.temperature_c)}",
            "see to its cooling and power supply; `nvidia-smi -q -d PERFORMANCE` tells more",
        )
    elif reading.temperature_c is not None and reading.temperature_c >= _HOT_C:
        yield f"hot: {reading.temperature_c} °C", "see to its cooling"
    if reading.ecc_uncorrected:
        yield (
            f"uncorrected memory errors since the driver was loaded: {reading.ecc_uncorrected}",
            "reset it when it is idle (`nvidia-smi -r`); if they come back, have it replaced",
        )


def _at(temperature_c: int | None) -> str:
    return "" if temperature_c is None else f", {temperature_c} °C"


def _state(gpu: Gpu, reading: Reading) -> str:
    """In short: `launcher devices` shows all there is."""
    return f"{gpu.name}, {show_bytes(reading.free_bytes)} free{_at(reading.temperature_c)}"


# ---- what it is to run


@dataclass(frozen=True, slots=True)
class _Job:
    """What one model asks of a kind of card."""

    model: str
    engine: str
    quantize: str | None
    dtype: str | None
    card: str
    has: tuple[int, int] | None


def _quantize(subject: Subject) -> Iterator[Finding]:
    inventory = subject.look.inventory
    places: dict[_Job, dict[str, None]] = {}
    for spec in subject.specs:
        for gpu in filter(None, map(inventory.find, spec.devices)):
            job = _Job(
                *(spec.model, spec.engine_name, spec.quantize, spec.dtype),
                *(gpu.name, gpu.compute_capability),
            )
            places.setdefault(job, {})[named(gpu)] = None
    for job, names in places.items():
        yield from _able(job, ", ".join(names))


def _able(job: _Job, where: str) -> Iterator[Finding]:
    try:
        scheme = scheme_named(job.quantize, job.engine)
    except ValueError:  # the engine's own word, whose needs are not known
        yield skipped(f"what {job.quantize} needs of a GPU is not known", about=job.model)
        return
    if job.has is None:
        yield skipped(f"{where} ({job.card}) does not tell what it can do", about=job.model)
        return
    card = f"{job.card} ({where}) has {_dotted(job.has)}"
    if scheme is not None:
        yield _scheme_finding(job, scheme, job.has, card)
    elif job.dtype == "bfloat16" and job.has < _BF16_SINCE:
        yield failed(
            f"dtype bfloat16 needs compute capability {_dotted(_BF16_SINCE)}, {card}",
            "set models[].dtype to float16",
            about=job.model,
        )


def _scheme_finding(job: _Job, scheme: Scheme, has: tuple[int, int], card: str) -> Finding:
    found = f"{job.quantize} needs compute capability {_dotted(scheme.since)}, {card}"
    other = "models[].quantize: auto takes what fits the card"
    if has < scheme.since:
        return failed(found, other, about=job.model)
    if scheme.until is not None and has > scheme.until:
        found = f"{job.quantize} is stated for up to {_dotted(scheme.until)}, {card}"
        return warned(found, other, about=job.model)
    return passed(found, about=job.model)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _quantizes(subject: Subject) -> bool:
    config = subject.config
    if config is None or not subject.looks_at_gpus:
        return False
    return any(
        config.uses_gpus(model) and (model.quantize not in (None, "none") or model.dtype)
        for model in config.models
    )


CHECKS = (
    Check("gpu", _gpus, lambda subject: subject.looks_at_gpus, limit_s=90.0),
    Check("quantize", _quantize, _quantizes, limit_s=90.0),
)
