"""Which replica gets which GPU, and whether the models fit there: `launcher plan` in short."""

from collections.abc import Iterator
from dataclasses import replace

from launcher.checkup.base import (
    Check,
    Finding,
    NotTold,
    failed,
    failed_by,
    passed,
    skipped,
    warned,
)
from launcher.checkup.question import NoAnswer
from launcher.checkup.subject import Subject
from launcher.gpu import DriverState
from launcher.placement import ReplicaSpec
from launcher.sizing import Assessment, Shapes, assess
from router.config.words import count
from router.errors import OperatorError


def _placement(subject: Subject) -> Iterator[Finding]:
    if subject.looks_at_gpus:
        _require_driver(subject)
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


def _require_driver(subject: Subject) -> None:
    """One that is no use is told by the check of that name."""
    try:
        state = subject.driver.answer().inventory.state
    except NoAnswer as exc:
        raise NotTold("the NVIDIA driver does not answer") from exc
    if state is DriverState.BROKEN:
        raise NotTold("the NVIDIA driver tells nothing here")


def _fit(subject: Subject) -> Iterator[Finding]:
    """Each model once; where its replicas fare differently, which of them how."""
    alike: dict[str, dict[Finding, list[str]]] = {}
    for spec, assessed in _assessed(subject):
        findings = alike.setdefault(spec.model, {})
        findings.setdefault(_verdict(subject, assessed), []).append(spec.id)
    for model, findings in alike.items():
        for finding, ids in findings.items():
            yield replace(finding, about=model if len(findings) == 1 else ", ".join(ids))


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


def _verdict(subject: Subject, assessed: Assessment) -> Finding:
    assert subject.cluster is not None
    plan = f"`{subject.cluster.command('plan')}` shows the sum"
    fit = assessed.fit
    if fit is None:
        return skipped(assessed.unknown)
    warnings = "; ".join(fit.warnings)
    if not fit.fits:
        return failed(f"does not fit: {warnings}" if warnings else "does not fit", plan)
    if warnings:
        return warned(f"fits, but {warnings}", plan)
    return passed(f"fits, with room for {fit.kv_tokens:,} tokens at a time")


CHECKS = (
    Check("placement", _placement, lambda subject: subject.config is not None, limit_s=90.0),
    Check(
        "fit",
        _fit,
        lambda subject: subject.uses_gpus and subject.looks_at_gpus,
        limit_s=90.0,
    ),
)
