"""Prepare the parts of a run: data at the model's size, the architecture, every `auto` resolved."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitral import distributed
from vitral.data.check import Normalization
from vitral.data.config import UNLABELED, DataConfig, StreamConfig, ViewConfig
from vitral.data.dataset import Dataset, Split, spaced
from vitral.data.few_labels import with_labels_per_class, with_shots
from vitral.data.findings import CheckReport
from vitral.data.image_spec import ResizeSpec
from vitral.data.loader import ImageStore
from vitral.data.reading import RandomCrop
from vitral.data.unlabeled import with_unlabeled, without_held_out
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.cost import Precision
from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.models.parameters import is_pruner
from vitral.models.presets import PRESETS, changed_name, resolve
from vitral.models.registry import build_config
from vitral.predictor import pick_device
from vitral.run.check import open_checked
from vitral.run.config import ModelOptions, RunConfig, reproduce_command, streams_of
from vitral.run.fit_memory import checkpointed_blocks, limit_training, resolve_memory
from vitral.structs import STREAM_SPAN
from vitral.tasks.registry import TASKS
from vitral.tasks.task import Task
from vitral.training.metrics_log import log
from vitral.weights.adapt import adapt, without_head
from vitral.weights.find_model import load_model
from vitral.weights.folder import FolderConfig
from vitral.weights.tensors import check_match, checksum

EVAL_BATCH = 256  # images val_stores at once
_LARGEST_AUTO_SIDE = 64
_STATISTICS_SAMPLES = 4096


@dataclass(frozen=True)
class RunContext:
    """The parts of a run. `config` has no `auto` left. `command` repeats a run of a bundled recipe. `stores` holds the
    images of each of the `streams`."""

    config: RunConfig
    command: str | None
    device: torch.device
    dataset: Dataset
    streams: dict[str, StreamConfig]
    stores: dict[str, ImageStore]
    val_stores: dict[str, ImageStore]
    architecture: ModelConfig
    name: str
    init: dict[str, Tensor] | None
    report: CheckReport | None
    init_fingerprint: str
    task: Task

    @property
    def train(self) -> ImageStore:
        """The images of the first stream: those that steps and epochs count."""
        return next(iter(self.stores.values()))

    def close(self) -> None:
        """End what reads images: threads and processes."""
        for store in (*self.stores.values(), *self.val_stores.values()):
            store.close()

    def build(self) -> ImageModel:
        """A model with initial weights: of `init` with a fresh head, or random from the global seed. What the run does
        not train takes no gradients."""
        config, model = self.config, build_model(self.architecture)
        model.checkpointed = checkpointed_blocks(config, self.architecture)
        if self.init is not None:
            model.load_state_dict(self.init, strict=False)
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in ("head", "head_dist") and name.endswith("bias") and not config.init_head:
                torch.nn.init.constant_(parameter, config.model.head_bias)
        return limit_training(model, config.train.freeze, config.lora).to(self.device)


def prepare(config: RunConfig, dataset: Dataset | None = None) -> RunContext:
    """Open the data (unless given), decode what fits in memory, settle every `auto`. Writes nothing."""
    device = pick_device(distributed.own_device(config.device))
    source = load_model(config.init) if config.init else None
    dataset, report = _open_data(config, source[1] if source else None, dataset)
    config.objective.check_data(config, dataset)
    task = task_of(config, dataset)
    evaluators = task.evaluators_of(config.eval)
    # Everything about the architecture that can be wrong is found before images are read.
    name, draft = choose_architecture(config, dataset, source[1] if source else None)
    size = draft.image_size
    checkpointed_blocks(config, draft)
    data = config.data.model_copy(
        update={
            "image_size": size, "channels": dataset.channels, "value_range": dataset.value_range,
            "workers": _workers(config.data), **_resizing(config.data, source[1] if source else None),
        }
    )  # fmt: skip
    streams = streams_of(config, draft)
    with ExitStack() as opened:
        parts = {part: split if part == UNLABELED else task.encode(split) for part, split in dataset.parts.items()}
        stores = {
            name: opened.enter_context(_open_stream(config, data, parts[_part(name)], stream, number, device))
            for number, (name, stream) in enumerate(streams.items())
        }
        val_stores = {
            split: opened.enter_context(open_store(dataset.splits[split], data, device, exact=True))
            for split in dataset.splits
            if split != "train"
        }
        mean, std = _statistics(config, next(iter(stores.values())), source[1] if source else None, dataset.channels)
        architecture = build_config({**draft.model_dump(), "mean": mean, "std": std}, where="data")
        data = data.model_copy(
            update={
                "mean": mean,
                "std": std,
                "path": _absolute(config.data.path),
                "unlabeled": _absolute(config.data.unlabeled),
            }
        )
        kept = {key: value for key, value in architecture.model_dump().items() if key in ModelOptions.model_fields}
        model = config.model.model_copy(update=kept)
        precision = resolve_precision(config, device)
        resolved = config.model_copy(update={"data": data, "model": model, "precision": precision, "eval": evaluators})
        resolved = resolve_memory(resolved, architecture, device, EVAL_BATCH)
        if source and config.init_head and source[1].classes != dataset.classes:
            raise UserError(
                "init has other classes, so its head cannot be used", where="init_head",
                got=", ".join(source[1].classes[:10]), expected=", ".join(dataset.classes[:10]),
            )  # fmt: skip
        init = _initial_weights(architecture, source, config) if source else None
        fingerprint = checksum(source[0].state_dict(), {}) if source else ""
        opened.pop_all()
        parts = device, dataset, streams, stores, val_stores, architecture, name, init, report, fingerprint, task
        return RunContext(resolved, reproduce_command(config), *parts)


def task_of(config: RunConfig, dataset: Dataset) -> Task:
    """The task that the objective learns on these data."""
    return TASKS[config.objective.task or dataset.task].of(dataset)


def _open_data(
    config: RunConfig, init: FolderConfig | None, dataset: Dataset | None
) -> tuple[Dataset, CheckReport | None]:
    """The data of the run, checked unless they are given; with few labels, where configured."""
    data, report = config.data, None
    if dataset is None:
        channels = init.architecture.in_channels if init and data.channels == "auto" else data.channels
        with distributed.first_of_machine_first():
            normalization = _normalization(config, init, channels)
            dataset, report = open_checked(config, data.model_copy(update={"channels": channels}), normalization)
    elif data.unlabeled is not None:
        dataset = without_held_out(with_unlabeled(dataset, data))
    if data.shots is not None:
        dataset = with_shots(dataset, data.shots, config.seed)
    if data.labels_per_class is not None:
        dataset = with_labels_per_class(dataset, data.labels_per_class, config.seed)
    return dataset, report


def _normalization(
    config: RunConfig, init: FolderConfig | None, channels: int | Literal["auto"]
) -> Normalization | None:
    """What init's images are normalized with in this run, to be compared with the data's own mean and std."""
    if init is None or channels != init.architecture.in_channels:
        return None
    mean, std = config.data.mean, config.data.std
    return (
        init.architecture.mean if mean == "auto" else mean,
        init.architecture.std if std == "auto" else std,
    )


def _resizing(data: DataConfig, init: FolderConfig | None) -> dict[str, Any]:
    """Interpolation and crop ratio: as set, else of init, else the defaults."""
    other = init.preprocessing if init is not None else ResizeSpec(resize_mode="crop")
    return {
        "interpolation": other.interpolation if data.interpolation == "auto" else data.interpolation,
        "crop_pct": other.crop_pct if data.crop_pct == "auto" else data.crop_pct,
    }


def open_store(
    split: Split,
    data: DataConfig,
    device: torch.device,
    *,
    exact: bool,
    crops: tuple[RandomCrop, ...] = (),
) -> ImageStore:
    """A split at the settled image size."""
    assert isinstance(data.image_size, tuple)
    assert data.crop_pct != "auto"
    assert data.interpolation != "auto"
    resize = ResizeSpec(resize_mode=data.resize_mode, interpolation=data.interpolation, crop_pct=data.crop_pct)
    return ImageStore(
        split, data.image_size, resize, exact=exact, workers=_workers(data), cache_mb=data.cache_mb, device=device,
        crops=crops,
    )  # fmt: skip


def _part(stream: str) -> str:
    """The part of the data that a stream of batches reads."""
    return UNLABELED if stream == UNLABELED else "train"


def _open_stream(
    config: RunConfig, data: DataConfig, split: Split, stream: StreamConfig, number: int, device: torch.device
) -> ImageStore:
    """The images of a stream of batches, as training reads them."""
    is_cut = any(view.augment.crop != "none" for view in stream.views)
    uncut = data.model_copy(update={"crop_pct": 1.0}) if is_cut else data
    crops = _decode_crops(config, split, stream.views, number)
    return open_store(split, uncut, device, exact=False, crops=crops)


def _decode_crops(config: RunConfig, split: Split, views: Sequence[ViewConfig], number: int) -> tuple[RandomCrop, ...]:
    """The random resized crops, where the images are files: cut from them at their own resolution, not from what a
    cache holds at the model's size. Images in memory are cropped in batches on the device."""
    if split.file is None or any(view.augment.crop == "none" for view in views):
        return ()
    limit, first = config.data.max_pixels, number * STREAM_SPAN
    return tuple(
        RandomCrop(config.seed, view.augment.crop_scale, view.augment.aspect_ratio, limit, view.size, place, first)
        for place, view in enumerate(views)
    )


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().absolute()) if path is not None and Path(path).expanduser().exists() else path


def _workers(data: DataConfig) -> int:
    return data.workers if data.workers != "auto" else max(1, (os.cpu_count() or 1) // distributed.launch().local_world)


def resolve_precision(config: RunConfig, device: torch.device) -> Precision:
    """`auto` is bfloat16 on CUDA, float32 elsewhere."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if device.type == "cuda" else "float32"


def choose_architecture(config: RunConfig, dataset: Dataset, init: FolderConfig | None) -> tuple[str, ModelConfig]:
    """The model's name, with what differs from a preset, and its shape for these data; mean and std are not settled
    yet."""
    size, options = _resolve_size(config, dataset, init)
    outputs = len(task_of(config, dataset).labels)
    base = dict(options, image_size=size, in_channels=dataset.channels, num_classes=outputs)
    name, architecture = _architecture(config, base, init)
    name = changed_name(name, architecture)
    if config.objective.needs_patches and not architecture.has_patches:
        raise UserError(
            f"objective.kind={config.objective.kind} learns from patches", where="model.name", got=name,
            expected="a Vision Transformer",
        )  # fmt: skip
    return name, architecture


def _resolve_size(
    config: RunConfig, dataset: Dataset, init: FolderConfig | None
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Image size and model options. image_size auto: of init; with patch_size auto of the data, at most 64 pixels a
    side and cut to whole patches; else the preset's. patch_size auto: see `_auto_patch`."""
    options, configured = config.model.options(), config.data.image_size
    if init is not None and config.model.name == "auto":
        size = init.architecture.image_size if configured == "auto" else configured
    elif configured != "auto":
        size = configured
    elif options.get("patch_size") == "auto":
        side = min(*dataset.typical_size(), _LARGEST_AUTO_SIDE)
        patch = _auto_patch(side)
        size = max(side - side % patch, patch)
    else:
        preset = PRESETS.get(config.model.name, {}).get("image_size", _LARGEST_AUTO_SIDE)
        size = preset
    size = (size, size) if isinstance(size, int) else size
    if options.get("patch_size") == "auto":
        options["patch_size"] = _auto_patch(*size)
    return size, options


def _auto_patch(*sides: int) -> int:
    """The patch size that divides all sides and cuts the shortest into 6 to 12 patches, as near to 8 as possible.

    Where none does, an eighth of the shortest side, rounded down; 2 pixels or more.
    """
    shortest = min(sides)
    whole = [patch for patch in range(2, shortest + 1) if not any(side % patch for side in sides)]
    fitting = [patch for patch in whole if 6 <= shortest // patch <= 12]
    return min(fitting, key=lambda patch: abs(math.log(shortest / patch / 8)), default=max(shortest // 8, 2))


def _architecture(config: RunConfig, base: dict[str, Any], init: FolderConfig | None) -> tuple[str, ModelConfig]:
    if config.model.name != "auto":
        return config.model.name, resolve(config.model.name, **base)
    assert init is not None
    # A new head sits on the bare representation (section 3.2 of the paper), whatever head init was trained with.
    bare = {} if config.init_head else init.architecture.bare_head
    return init.name, build_config({**init.architecture.model_dump(), **bare, **base, "mean": (), "std": ()})


def _statistics(
    config: RunConfig, train: ImageStore, init: FolderConfig | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in [0,1]: as set, of init if it has these channels, or of up to 4,096
    train images."""
    mean, std = config.data.mean, config.data.std
    if mean == "auto" or std == "auto":
        if init is not None and init.architecture.in_channels == channels:
            found = init.architecture.mean, init.architecture.std
        else:
            found = _pixel_statistics(train)
        mean, std = (found[0] if mean == "auto" else mean), (found[1] if std == "auto" else std)
    return mean, std


def _pixel_statistics(train: ImageStore) -> tuple[tuple[float, ...], tuple[float, ...]]:
    index_B = torch.tensor(spaced(len(train.split), _STATISTICS_SAMPLES))
    sums_2C, count = 0.0, 0
    for part_B in index_B.split(64):
        pixels_CX = train.get(part_B).transpose(0, 1).flatten(1).double() / 255
        sums_2C = sums_2C + torch.stack([pixels_CX.sum(dim=1), pixels_CX.square().sum(dim=1)])
        count += pixels_CX.shape[1]
    assert isinstance(sums_2C, Tensor)
    mean_C, square_C = sums_2C / count
    std_C = (square_C - mean_C.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(round(v, 4) for v in mean_C.tolist()), tuple(round(v, 4) for v in std_C.tolist())


def _initial_weights(
    architecture: ModelConfig, source: tuple[ImageModel, FolderConfig], config: RunConfig
) -> dict[str, Tensor]:
    """init's weights at the run's image size, without its head unless `init_head` is set. UserError where they don't
    fit."""
    model, folder = source
    theirs, notes = adapt(dict(model.state_dict()), folder.architecture, architecture)
    for note in notes:
        log.info("init: %s", note)
    mine = dict(build_model(architecture).state_dict())
    if not config.init_head:
        theirs, mine = without_head(theirs), without_head(mine)
    if {name for name in mine if is_pruner(name)} != {name for name in theirs if is_pruner(name)}:
        mine, theirs = ({name: t for name, t in state.items() if not is_pruner(name)} for state in (mine, theirs))
    hint = "With model.name=auto the run takes the architecture of init."
    check_match(mine, theirs, config.init or "", hint=hint)
    return theirs
