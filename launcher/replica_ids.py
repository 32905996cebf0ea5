"""What replicas are called: a short name for each model, and a number. Pure.

Asked by `placement`. A model keeps the name it was once given for as long as the cluster is up,
whatever models come and go beside it: its replicas are found again by their ids, so another name
would stop all of them at once. The names given are read back from the replicas in the status
record.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

_MAX_CHARS = 40
_GIVEN = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]{0,50})-\d{1,5}", re.ASCII)


def short_names(models: Sequence[str], given: Mapping[str, str] = {}) -> list[str]:
    """For each model, in order, what its replicas' ids begin with; no two are alike.

    `given`: by model, the names that are in use; those of models that are no more are free again.
    """
    kept = {model: given[model] for model in models if model in given}
    if len(set(kept.values())) < len(kept):
        kept = {}
    return [
        kept[model] if model in kept else _unlike(name, kept.values(), model)
        for model, name in zip(models, _new_names(models), strict=True)
    ]


def names_given(replicas: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By model, the short name of its replicas, from each one's id and model."""
    found = ((_GIVEN.fullmatch(replica_id), model) for replica_id, model in replicas)
    return {model: match["name"] for match, model in found if match}


def _unlike(name: str, kept: Iterable[str], model: str) -> str:
    return f"{name}-{_digest(model)}" if name in kept else name


def _new_names(models: Sequence[str]) -> list[str]:
    """The last part of the model's name, or all of it, or with a digest; of a single one, none."""
    if len(models) == 1:
        return ["replica"]
    short = [_cleaned(PurePath(model).name) for model in models]
    full = [_cleaned(model) for model in models]
    names = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    return [
        name if names.count(name) == 1 else f"{name}-{_digest(model)}"
        for name, model in zip(names, models, strict=True)
    ]


def _cleaned(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:_MAX_CHARS] or "model"


def _digest(model: str) -> str:
    return hashlib.sha256(model.encode()).hexdigest()[:4]
