"""What a replica may take of its GPUs and how its weights are compressed: config, model and card.

Asked by `desired` for every replica, and by `launcher plan`, which shows what it rests on. Model
files are read once per model; the arithmetic is in `memory`. A model that can never fit is refused
here, before anything starts; one that only looks too large is warned of, as estimates may be off.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config import ClusterConfig, EngineConfig, ModelConfig
from launcher.engines.flags import Arg
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.max_memory import memory_fraction
from launcher.memory import Fit, fit
from launcher.model_files import cached_snapshot, find_shape
from launcher.model_shape import ModelError, ModelShape
from launcher.placement import Size, Sizing, UnknownCard
from launcher.quantization_choice import Choice, choose
from launcher.sizes import show_bytes
from router.errors import PlacementError

AUTO = "auto"
_FRACTION_FLAGS = ("cuda-memory-fraction", "gpu-memory-utilization")
_PREFILL_FLAGS = ("max-batch-prefill-tokens", "max-num-batched-tokens")
_KV_DTYPE_FLAGS = ("kv-cache-dtype",)
_ROUNDING = 1e-6
_ASSESSED = ("tgi", "vllm", "aphrodite", "llamacpp")
_MOVES_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("cpu-offload-gb",),
    "aphrodite": ("cpu-offload-gb",),
    "llamacpp": (
        *("n-gpu-layers", "gpu-layers", "cpu-moe", "n-cpu-moe", "n-cpu-ffn", "override-tensor"),
        *("tensor-split", "split-mode", "device"),
    ),
}


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known of one replica on its GPUs. `unknown`: why there is no `fit`."""

    shape: ModelShape | None
    gpus: tuple[Gpu, ...]
    fraction: float | None
    choice: Choice | None
    fit: Fit | None
    unknown: str = ""


def sizer(config: ClusterConfig, inventory: Inventory | None) -> Size:
    """For `placement.replica_specs`. What it returns raises PlacementError."""
    shapes = Shapes(config)
    places = {id(model): f"models[{index}]" for index, model in enumerate(config.models)}

    def size(model: ModelConfig, engine: EngineConfig, devices: tuple[str, ...]) -> Sizing:
        assessed = assess(model, engine, devices, inventory, shapes)
        _refuse_impossible(places[id(model)], model, assessed, len(devices))
        if assessed.choice is None:
            quantize = None if model.quantize == AUTO else model.quantize
            return Sizing(quantize, model.dtype, assessed.fraction)
        return Sizing(assessed.choice.flag, assessed.choice.dtype, assessed.fraction)

    return size


class Shapes:
    """The models' shapes, each read once; raises ModelError for files that are no model."""

    def __init__(self, config: ClusterConfig) -> None:
        self._caches = list(model_caches(config))
        self._found: dict[tuple[str, str | None], ModelShape | None] = {}

    def of(self, model: ModelConfig) -> ModelShape | None:
        """None where nothing is known about it here."""
        key = (model.id, model.revision)
        if key not in self._found:
            self._found[key] = self._find(model)
        return self._found[key]

    def _find(self, model: ModelConfig) -> ModelShape | None:
        """As downloaded, wherever that is; else as generally known."""
        for cache in self._caches:
            if cached_snapshot(cache, model.id, model.revision) is not None:
                return find_shape(model.id, cache_folder=cache, revision=model.revision)
        return find_shape(model.id)


def model_caches(config: ClusterConfig) -> Iterator[Path]:
    """Folders in which the hub's client, in this cluster's replicas, keeps what it downloaded."""
    if config.runtime.name == "docker":
        base = config.runtime.docker.cache_dir
        yield from (base / "hub", base)
        return
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(name):
            yield Path(folder)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield from (home / "hub", home)


def assess(
    model: ModelConfig,
    engine: EngineConfig,
    devices: tuple[str, ...],
    inventory: Inventory | None,
    shapes: Shapes,
    free_bytes: Mapping[str, int] | None = None,
) -> Assessment:
    """How one replica would fare on these devices. `free_bytes`: now, by GPU; None: all of it."""
    gpus = _gpus(devices, inventory)
    fraction = _fraction(model, engine, gpus)
    unknown = _unknown_gpus(devices, inventory, gpus)
    if engine.name not in _ASSESSED or not devices:
        unknown = f"{engine.name} needs no GPU here"
    try:
        shape = shapes.of(model) if not unknown else None
    except (ModelError, OSError) as exc:  # a folder that this user may not see, for one
        return Assessment(None, gpus, fraction, None, None, str(exc))
    if not unknown and shape is None:
        unknown = (
            f"the size of {model.id} is not known here: give a local folder, or download it first"
        )
    if shape is not None:
        unknown = _unknown_share(engine, shape)
    if unknown or shape is None:
        return Assessment(shape, gpus, fraction, None, None, unknown)
    smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
    card_bytes = _each([gpu.memory_bytes for gpu in gpus], engine)
    free = None
    if free_bytes is not None:
        free = _each([free_bytes.get(gpu.uuid, gpu.memory_bytes) for gpu in gpus], engine)

    def fit_of(scheme: str | None, dtype: str | None = None) -> Fit:
        return fit(
            shape,
            scheme,
            dtype,
            card_bytes,
            free_bytes=free,
            fraction=fraction,
            tensor_parallel=len(gpus),
            engine=engine.name,
            max_total_tokens=model.max_total_tokens,
            max_batch_prefill_tokens=_whole(_first(engine.args, _PREFILL_FLAGS)),
            kv_dtype=_text(_first(engine.args, _KV_DTYPE_FLAGS)),
            compute_capability=smallest.compute_capability,
        )

    try:
        if model.quantize == AUTO:
            capability = smallest.compute_capability or (0, 0)
            choice = choose(shape, engine.name, capability, fit_of)
            return Assessment(shape, gpus, fraction, choice, choice.fit)
        return Assessment(shape, gpus, fraction, None, fit_of(model.quantize, model.dtype))
    except (ModelError, ValueError) as exc:
        return Assessment(shape, gpus, fraction, None, None, str(exc))


def _each(found_bytes: Sequence[int], engine: EngineConfig) -> int:
    """What each of a replica's cards counts for: llama.cpp gives large ones more of the layers,
    with the others all shards are alike, so the smallest card decides."""
    if engine.name == "llamacpp":
        return sum(found_bytes) // len(found_bytes)
    return min(found_bytes)


def _unknown_share(engine: EngineConfig, shape: ModelShape) -> str:
    """Flags with which a card holds another part of the weights than its equal one."""
    for flag in _MOVES_WEIGHTS.get(engine.name, ()):
        for _, args in engine.all_args():
            if _moves_weights(flag, args.get(flag), shape):
                return f"{flag}: {args[flag]} decides how much of the model a GPU holds"
    return ""


def _moves_weights(flag: str, value: Arg, shape: ModelShape) -> bool:
    if value is None or value is False or str(value) in ("all", "layer"):
        return False
    if flag.endswith("gpu-layers"):
        layers = _whole(value)
        return layers is None or layers <= shape.architecture.layers  # the output is one more
    return str(value) not in ("0", "0.0")


def _gpus(devices: tuple[str, ...], inventory: Inventory | None) -> tuple[Gpu, ...]:
    if inventory is None:
        return ()
    found = (inventory.find(device) for device in devices)
    return tuple(gpu for gpu in found if gpu is not None)


def _unknown_gpus(
    devices: tuple[str, ...], inventory: Inventory | None, gpus: tuple[Gpu, ...]
) -> str:
    if inventory is None:
        return "the GPUs are not this machine's"
    if inventory.state is not DriverState.OK:
        return inventory.trouble
    if len(gpus) != len(devices):
        return "a GPU of it cannot be reached"
    silent = next((gpu.uuid for gpu in gpus if gpu.memory_bytes <= 0), None)
    return f"{silent} does not tell its memory" if silent else ""


def _fraction(model: ModelConfig, engine: EngineConfig, gpus: tuple[Gpu, ...]) -> float | None:
    """The share of each card that keeps all budgets; the engine's own flag goes before it."""
    if (told := _first(engine.args, _FRACTION_FLAGS)) is not None:
        return float(told)
    budget = model.max_memory
    if budget is None:
        return None
    if not isinstance(budget, int) and gpus and not any(gpu.index in budget for gpu in gpus):
        found = ", ".join(map(str, budget))
        expected = " or ".join(str(gpu.index) for gpu in gpus)
        raise PlacementError(
            f"max_memory of {model.id}: found budgets for GPU {found} only, expected one for "
            f"{expected}, which a replica of it is on"
        )
    shares = []
    for gpu in gpus:
        most = budget if isinstance(budget, int) else budget.get(gpu.index)
        if most is not None and gpu.memory_bytes > 0:
            try:
                shares.append(memory_fraction(most, gpu.memory_bytes))
            except ValueError as exc:
                raise PlacementError(
                    f"max_memory of {model.id}: found {show_bytes(most)} for {gpu.uuid}, "
                    f"expected {exc}"
                ) from exc
    return min(shares, default=None)


def require_room(parts: Iterable[tuple[str, tuple[str, ...], float | None]]) -> None:
    """Of each replica its model, its GPUs and the share it may fill of each.

    Raises PlacementError where replicas on one GPU may fill more than all of it.
    """
    shares: dict[str, list[tuple[str, float]]] = {}
    for name, devices, fraction in parts:
        for device in devices if fraction is not None else ():
            shares.setdefault(device, []).append((name, fraction or 0.0))
    problems = [
        f"GPU {device}: found shares of {_added(theirs)}, expected at most 1 together; lower "
        "their max_memory (or cuda-memory-fraction, gpu-memory-utilization)"
        for device, theirs in shares.items()
        if len(theirs) > 1 and sum(share for _, share in theirs) > 1 + _ROUNDING
    ]
    if problems:
        raise PlacementError("\n".join(problems))


def _added(shares: Iterable[tuple[str, float]]) -> str:
    return " and ".join(f"{share:.3g} for {name}" for name, share in shares)


def _refuse_impossible(
    place: str, model: ModelConfig, assessed: Assessment, needed_gpus: int
) -> None:
    """Raises PlacementError for what cannot work whatever the estimates are worth."""
    found, needs_gpu = assessed.fit, needed_gpus > 0
    is_unseen = len(assessed.gpus) < needed_gpus
    # 1. `auto` must be able to choose.
    if model.quantize == AUTO and assessed.choice is None and needs_gpu:
        kind = UnknownCard if is_unseen else PlacementError
        raise kind(
            f"{place}.quantize: found auto, but {assessed.unknown}; name a way (or none) instead"
        )
    if model.quantize == AUTO and assessed.choice is not None and not assessed.choice.works:
        tried = "; ".join(f"{name}: {why}" for name, why in assessed.choice.rejected)
        raise PlacementError(
            f"{place}.quantize: found auto, but {model.id} fits in no way on "
            f"{_card(assessed)}: {tried}"
        )
    # 2. A budget needs a card to be a share of.
    if model.max_memory is not None and needs_gpu and is_unseen:
        raise UnknownCard(
            f"{place}.max_memory: found a budget, but {assessed.unknown}; set the engine's own "
            "flag (cuda-memory-fraction or gpu-memory-utilization) instead"
        )
    # 3. Weights that are larger than the card.
    if found is not None and not found.fits and _is_hopeless(assessed, found):
        advice = found.warnings[0] if found.warnings else "take a larger GPU"
        raise PlacementError(f"{place}: {model.id} cannot fit on {_card(assessed)}: {advice}")


def _is_hopeless(assessed: Assessment, found: Fit) -> bool:
    """The weights alone are more than the cards could hold, whatever is given to each."""
    card_bytes = found.budget_bytes + found.headroom_bytes
    return found.weights_bytes + found.context_bytes > card_bytes


def _card(assessed: Assessment) -> str:
    many = f"{len(assessed.gpus)} x " if len(assessed.gpus) > 1 else ""
    smallest = min(assessed.gpus, key=lambda gpu: gpu.memory_bytes)
    return f"{many}{smallest.name} ({show_bytes(smallest.memory_bytes)})"


def _first(args: Mapping[str, Arg], flags: Iterable[str]) -> Arg:
    """The value of the one of an engine's flags that is given; engines name it differently."""
    return next((args[flag] for flag in flags if args.get(flag) is not None), None)


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
