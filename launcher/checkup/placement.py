"""Which replica gets which GPU, and whether the models fit there: `launcher plan` in short."""

from collections.abc import Iterator

from launcher.checkup.base import Check, Finding, failed, failed_by, passed, skipped, warned
from launcher.checkup.software import show_command
from launcher.checkup.subject import Subject
from launcher.placement import ReplicaSpec
from launcher.sizing import Assessment, Shapes, assess
from router.config.words import count
from router.errors import OperatorError


def _placement(subject: Subject) -> Iterator[Finding]:
    try:
        specs = subject.placed.answer()
    except OperatorError as exc:
        for line in str(exc).splitlines():
            yield failed_by(OperatorError(line))
        return
    devices = {device for spec in specs for device in spec.devices}
    text = count(len(specs), "replica")
    yield passed(f"{text} on {count(len(devices), 'GPU')}" if devices else f"{text}, on no GPU")
    if subject.running:
        yield passed(f"{count(len(subject.running), 'replica')} of this cluster already running")


def _fit(subject: Subject) -> Iterator[Finding]:
    """Each model once for each way its replicas fare."""
    seen = set()
    for spec, assessed in _assessed(subject):
        finding = _verdict(subject, spec, assessed)
        if finding not in seen:
            seen.add(finding)
            yield finding


def _assessed(subject: Subject) -> Iterator[tuple[ReplicaSpec, Assessment]]:
    config, look = subject.config, subject.look
    assert config is not None
    ours = {device for handle in subject.running for device in handle.devices}
    free_bytes = {
        uuid: reading.free_bytes
        for uuid, reading in look.readings.items()
        if not reading.trouble and uuid not in ours
    }
    models = {model.served_name: model for model in config.models}
    shapes = Shapes(config)
    for spec in subject.specs:
        model = models[spec.model]
        if spec.devices:
            engine = config.engine_of(model)
            yield (
                spec,
                assess(model, engine, spec.devices, look.inventory, shapes, free_bytes),
            )


def _verdict(subject: Subject, spec: ReplicaSpec, assessed: Assessment) -> Finding:
    plan = f"`{show_command(subject, 'plan')}` shows the sum"
    fit = assessed.fit
    if fit is None:
        return skipped(assessed.unknown, about=spec.model)
    warnings = fit.warnings
    more = f" (and {count(len(warnings) - 1, 'more warning')})" if len(warnings) > 1 else ""
    first = f": {warnings[0]}{more}" if warnings else ""
    if not fit.fits:
        return failed(f"does not fit{first}", plan, about=spec.model)
    if warnings:
        return warned(f"fits{first}", plan, about=spec.model)
    return passed(f"fits, with room for {fit.kv_tokens:,} tokens at a time", about=spec.model)


CHECKS = (
    Check("placement", _placement, lambda subject: subject.config is not None, limit_s=90.0),
    Check(
        "fit",
        _fit,
        lambda subject: subject.uses_gpus and subject.looks_at_gpus,
        limit_s=90.0,
    ),
)
