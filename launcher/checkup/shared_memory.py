"""Shared memory, through which the shards of a divided model exchange, in containers and out."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.checkup.base import Check, Finding, failed, passed, warned
from launcher.checkup.subject import Subject
from launcher.engines.vllm_family import SHM_BYTES
from launcher.placement import ReplicaSpec
from launcher.sizes import GIB, show_bytes

# What engines divide models with: bytes for each shard, or the same however many there are.
_SHARD_BYTES = {"tgi": GIB}
_REPLICA_BYTES = {"vllm": SHM_BYTES, "aphrodite": SHM_BYTES}
_DOCKER_SHM_BYTES = 64 * 1024**2
_DEV_SHM = Path("/dev/shm")


def _shared_memory(subject: Subject) -> Iterator[Finding]:
    """Too little, and the shards' communication library ends them while they load."""
    if subject.uses_docker:
        yield from _container_shm(subject)
    else:
        yield _machine_shm(subject)


def _container_shm(subject: Subject) -> Iterator[Finding]:
    findings: dict[Finding, None] = {}
    for spec, command in subject.containers():
        has, needs = command.shm_bytes or _DOCKER_SHM_BYTES, _needs_bytes(spec)
        text = f"{show_bytes(has)} for each container"
        if not needs:
            finding = passed(f"{text}, enough for one shard", about=spec.model)
        elif has < needs:
            advice = f'set engine.shm_size to "{math.ceil(needs / GIB)}GiB"'
            text = f"{text}, expected {show_bytes(needs)} for {spec.shards} shards"
            finding = warned(text, advice, about=spec.model)
        else:
            finding = passed(f"{text} of {spec.shards} shards", about=spec.model)
        findings[finding] = None
    yield from findings


def _machine_shm(subject: Subject) -> Finding:
    needs = sum(map(_needs_bytes, subject.specs))
    try:
        free_bytes = shutil.disk_usage(_DEV_SHM).free
    except OSError as exc:
        return failed(f"{_DEV_SHM}: {exc.strerror}", f"mount a tmpfs on {_DEV_SHM}")
    text = f"{show_bytes(free_bytes)} free in {_DEV_SHM}"
    if free_bytes < needs:
        advice = f"`sudo mount -o remount,size={math.ceil(2 * needs / GIB)}G {_DEV_SHM}`"
        return warned(f"{text}, expected {show_bytes(needs)} for all shards", advice)
    return passed(text)


def _needs_bytes(spec: ReplicaSpec) -> int:
    """Of one replica; one shard alone needs next to none."""
    if spec.shards < 2:
        return 0
    each = _SHARD_BYTES.get(spec.engine_name, 0) * spec.shards
    return each + _REPLICA_BYTES.get(spec.engine_name, 0)


def _shares_memory(subject: Subject) -> bool:
    config = subject.config
    if config is None:
        return False
    divided = any(model.shards > 1 and config.uses_gpus(model) for model in config.models)
    return divided or (subject.uses_docker and subject.uses_gpus)


CHECKS = (Check("shared memory", _shared_memory, _shares_memory, limit_s=60.0),)
