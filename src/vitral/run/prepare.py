"""Prepare the parts of a run: data at the model's size, the architecture, every `auto` resolved."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from vitral import distributed
from vitral.data.check import Normalization
from vitral.data.config import UNLABELED, DataConfig, StreamConfig
from vitral.data.dataset import Dataset, Split, spaced
from vitral.data.few_labels import with_labeled_images, with_labels_per_class, with_shots
from vitral.data.findings import CheckReport
from vitral.data.image_spec import ImageSpec, ResizeSpec
from vitral.data.image_store import ImageStore, RandomCrop
from vitral.data.unlabeled import with_unlabeled, without_held_out
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.cost import Precision
from vitral.models.create import build_model
from vitral.models.fit_codes import fit_codes
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.model import ImageModel
from vitral.models.parameters import is_pruner
from vitral.models.presets import PRESETS, changed_name, resolve
from vitral.models.registry import build_config
from vitral.predictor import pick_device
from vitral.run.check import open_checked
from vitral.run.config import ModelOptions, RunConfig, reproduce_command, streams_of
from vitral.run.fit_memory import checkpointed_blocks, limit_training, make_job, resolve_memory
from vitral.run.run_keys import RunKeys
from vitral.structs import STREAM_SPAN
from vitral.tasks.registry import TASKS
from vitral.tasks.task import Task
from vitral.training.metrics_log import log
from vitral.weights.adapt import adapt, without_head
from vitral.weights.find_model import load_model, model_config
from vitral.weights.folder import FolderConfig, bundled
from vitral.weights.tensors import check_match, checksum

T = TypeVar("T")
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

    @property
    def image_spec(self) -> ImageSpec:
        """How an image becomes the model's input."""
        shared = {"resize_mode", "interpolation", "crop_pct", "background", "max_pixels"}
        return ImageSpec(
            **self.config.data.model_dump(include=shared), value_range=self.dataset.value_range,
            image_size=self.architecture.image_size, channels=self.architecture.in_channels,
        )  # fmt: skip

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

    def with_codes(self) -> RunContext:
        """The same where `build` gives the palette, mean patches or codebook found among the train images. Raises
        UserError for more codes than these have."""
        if self.init is not None:
            return self

        def images(count: int) -> Iterator[Tensor]:
            return (self.train.get(part_B) for part_B in torch.tensor(spaced(len(self.train.split), count)).split(64))

        found = fit_codes(self.architecture, images, self.config.seed)
        if found is None:
            return self
        log.info("%s", found.note)
        return replace(self, init=found.weights)


def prepare(config: RunConfig, dataset: Dataset | None = None) -> RunContext:
    """Open the data (unless given), decode what fits in memory, settle every `auto`. Writes nothing."""
    device = pick_device(distributed.own_device(config.device))
    source, init = load_model(config.init) if config.init else (None, None)
    dataset, report = _open_data(config, init, dataset)
    config.objective.check_data(config, dataset)
    task = task_of(config, dataset)
    evaluators = task.evaluators_of(config.eval)
    if config.train.parallel == "fsdp":
        for evaluator in (name for name, keys in evaluators.items() if keys.whole_model):
            hint = f"After the run: vitral eval MODEL eval.{evaluator}={{}}"
            raise UserError("this evaluator needs all weights in each process, which train.parallel=fsdp cuts",
                            where="eval", got=evaluator, hint=hint)  # fmt: skip
    # Everything about the architecture that can be wrong is found before images are read.
    name, draft = choose_architecture(config, dataset, init)
    checkpointed_blocks(config, draft)
    for evaluator in evaluators.values():
        evaluator.check_images(draft.image_size, dataset.channels)
    resize = init.preprocessing if init is not None else ResizeSpec(resize_mode="crop")
    data = config.data.model_copy(
        update={
            "image_size": draft.image_size, "channels": dataset.channels, "value_range": dataset.value_range,
            "workers": _workers(config.data), "crop_pct": _settled(config.data.crop_pct, resize.crop_pct),
            "interpolation": _settled(config.data.interpolation, resize.interpolation),
        }
    )  # fmt: skip
    streams = streams_of(config, draft)
    with ExitStack() as opened:
        stores, train = dict[str, ImageStore](), task.encode(dataset.splits["train"])
        for number, (part, stream) in enumerate(streams.items()):
            split = dataset.parts[part] if part == UNLABELED else train
            stores[part] = opened.enter_context(_open_stream(config, data, split, stream, number, device))
        val_stores = {
            part: opened.enter_context(open_store(split, data, device, exact=True))
            for part, split in dataset.splits.items()
            if part != "train"
        }
        first = next(iter(stores.values()))
        mean, std = _normalization(config, init, dataset.channels) or _statistics(config, draft, first)
        architecture = build_config({**draft.model_dump(), "mean": mean, "std": std}, where="data")
        paths = {key: absolute_path(getattr(config.data, key)) for key in ("path", "unlabeled")}
        kept = {key: value for key, value in architecture.model_dump().items() if key in ModelOptions.model_fields}
        kept["tokenizer"] = absolute_model(config.model.tokenizer)
        resolved = config.model_copy(
            update={
                "data": data.model_copy(update={"mean": mean, "std": std, **paths}), "eval": evaluators,
                "model": config.model.model_copy(update=kept), "precision": resolve_precision(config, device),
                "init": absolute_model(config.init), "objective": config.objective.located(absolute_model),
            }
        )  # fmt: skip
        resolved = resolve_memory(resolved, architecture, device, partial(make_job, resolved, architecture, device))
        if init is not None and config.init_head and init.classes != dataset.classes:
            raise UserError(
                "init has other classes, so its head cannot be used", where="init_head",
                got=", ".join(init.classes[:10]), expected=", ".join(dataset.classes[:10]),
            )  # fmt: skip
        weights, fingerprint = _start(config, architecture, source, init)
        opened.pop_all()
        parts = device, dataset, streams, stores, val_stores, architecture, name, weights, report, fingerprint, task
        return RunContext(resolved, reproduce_command(config), *parts)


def _settled(value: Any, auto: T) -> T:
    return auto if value == "auto" else value


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
    if data.labeled_images is not None:
        unlabeled = UNLABELED in config.objective.streams
        dataset = with_labeled_images(dataset, data.labeled_images, config.seed, unlabeled=unlabeled)
    return dataset, report


def _normalization(
    config: RunConfig, init: FolderConfig | None, channels: int | Literal["auto"]
) -> Normalization | None:
    """What images of so many channels are normalized with in this run: as set, else as init does, if it has them."""
    if init is None or channels != init.architecture.in_channels:
        return None
    return _settled(config.data.mean, init.architecture.mean), _settled(config.data.std, init.architecture.std)


def open_store(
    split: Split, data: DataConfig, device: torch.device, *, exact: bool, crops: tuple[RandomCrop, ...] = ()
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


def _open_stream(
    config: RunConfig, data: DataConfig, split: Split, stream: StreamConfig, number: int, device: torch.device
) -> ImageStore:
    """The images of a stream of batches, as training reads them.

    Random resized crops of image files are cut at the files' own resolution, not from what a cache holds at the model's
    size. Images in memory are cropped in batches on the device.
    """
    is_cut = [view.augment.crop != "none" for view in stream.views]
    uncut = data.model_copy(update={"crop_pct": 1.0}) if any(is_cut) else data
    crops = (
        RandomCrop(
            config.seed, view.augment.crop_scale, view.augment.aspect_ratio, data.max_pixels, view.size, place,
            number * STREAM_SPAN,
        )
        for place, view in enumerate(stream.views)
    )  # fmt: skip
    at_full_size = split.file is not None and all(is_cut)
    return open_store(split, uncut, device, exact=False, crops=tuple(crops) if at_full_size else ())


def absolute_path(path: str | None) -> str | None:
    """The path of what exists, as it is found from any folder; names of other data as they are."""
    return str(Path(path).expanduser().absolute()) if path is not None and Path(path).expanduser().exists() else path


def absolute_model(name: str | None) -> str | None:
    """The same of a model or checkpoint; a bundled one has its name."""
    return name if name in bundled() else absolute_path(name)


def _workers(data: DataConfig) -> int:
    return data.workers if data.workers != "auto" else max(1, (os.cpu_count() or 1) // distributed.launch().local_world)


def resolve_precision(config: RunKeys, device: torch.device) -> Precision:
    """`auto` is bfloat16 on CUDA, float32 elsewhere."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if device.type == "cuda" else "float32"


def choose_architecture(config: RunConfig, dataset: Dataset, init: FolderConfig | None) -> tuple[str, ModelConfig]:
    """The model's name, with what differs from a preset, and its shape for these data; mean and std are not settled
    yet."""
    size, options = _resolve_size(config, dataset, init)
    tokenizer = _tokenizer_of(config)
    if tokenizer is not None:
        options |= {"tokenizer": tokenizer.model_dump(), "colors": tokenizer.codes}
        size = tokenizer.image_size if config.data.image_size == "auto" else size
    outputs = len(task_of(config, dataset).labels)
    base = dict(options, image_size=size, in_channels=dataset.channels, num_classes=outputs)
    if config.model.name != "auto":
        name, architecture = config.model.name, resolve(config.model.name, **base)
    else:
        assert init is not None
        # A new head sits on the bare representation (section 3.2 of the paper), whatever head init was trained with.
        bare = {} if config.init_head else init.architecture.bare_head
        family = config.objective.model_family or init.architecture.family
        keys = {**init.architecture.model_dump(), **bare, "family": family, **base, "mean": (), "std": ()}
        name, architecture = init.name, build_config(keys)
    name = changed_name(name, architecture)
    if config.objective.needs_patches and not architecture.has_patches:
        raise UserError(
            f"objective.kind={config.objective.kind} learns from patches", where="model.name", got=name,
            expected="a Vision Transformer",
        )  # fmt: skip
    if architecture.has_boxes and config.objective.model_family is None:
        raise UserError(
            "a detector learns boxes only", where="model.name", got=name, expected="objective.kind=detection"
        )
    config.objective.check_model(architecture, dataset)
    return name, architecture


def _tokenizer_of(config: RunConfig) -> ImageTokenizerConfig | None:
    """The architecture of `model.tokenizer`. Raises UserError where it is none, or has no place in the model."""
    model = config.model.tokenizer
    if model is None:
        return None
    if config.model.name == "auto":
        raise UserError("init has a tokenizer or palette already", where="model.tokenizer", got=model, expected="null")
    architecture = model_config(model).architecture
    if not isinstance(architecture, ImageTokenizerConfig):
        raise UserError("not an image tokenizer", where="model.tokenizer", got=architecture.description,
                        expected="a model that objective.kind=tokenizer has made")  # fmt: skip
    colors = config.model.options().get("colors")
    if colors not in (None, architecture.codes):
        raise UserError("the tokenizer has another number of codes", where="model.colors", got=colors,
                        expected=f"null, or {architecture.codes}")  # fmt: skip
    return architecture


def _resolve_size(
    config: RunConfig, dataset: Dataset, init: FolderConfig | None
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Image size and model options. image_size auto: of init; with patch_size auto of the data, at most 64 pixels a
    side and cut to whole patches; else the preset's. patch_size auto: see `_auto_patch`."""
    options, size = config.model.options(), config.data.image_size
    if size == "auto" and init is not None and config.model.name == "auto":
        size = init.architecture.image_size
    elif size == "auto" and options.get("patch_size") == "auto":
        side = min(*dataset.typical_size(), _LARGEST_AUTO_SIDE)
        patch = _auto_patch(side)
        size = max(side - side % patch, patch)
    elif size == "auto":
        size = PRESETS.get(config.model.name, {}).get("image_size", _LARGEST_AUTO_SIDE)
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


def _statistics(config: RunConfig, architecture: ModelConfig, train: ImageStore) -> Normalization:
    """Mean and standard deviation per channel, in [0,1]: as set, else of up to 4,096 train images; a model of raw
    images needs none."""
    if architecture.reads_raw_images:
        return _settled(config.data.mean, architecture.mean), _settled(config.data.std, architecture.std)
    if config.data.mean != "auto" and config.data.std != "auto":
        return config.data.mean, config.data.std
    index_B = torch.tensor(spaced(len(train.split), _STATISTICS_SAMPLES))
    sums_2C, count = 0.0, 0
    for part_B in index_B.split(64):
        pixels_CX = train.get(part_B).transpose(0, 1).flatten(1).double() / 255
        sums_2C = sums_2C + torch.stack([pixels_CX.sum(dim=1), pixels_CX.square().sum(dim=1)])
        count += pixels_CX.shape[1]
    assert isinstance(sums_2C, Tensor)
    mean_C, square_C = sums_2C / count
    std_C = (square_C - mean_C.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    mean, std = (tuple(round(value, 4) for value in values_C.tolist()) for values_C in (mean_C, std_C))
    return _settled(config.data.mean, mean), _settled(config.data.std, std)


def _start(
    config: RunConfig, architecture: ModelConfig, source: ImageModel | None, init: FolderConfig | None
) -> tuple[dict[str, Tensor] | None, str]:
    """What weights a run starts from, if not random, and their checksum."""
    if source is not None and init is not None:
        return _initial_weights(architecture, source, init, config), checksum(source.state_dict(), {})
    if config.model.tokenizer is not None:
        state = load_model(config.model.tokenizer)[0].state_dict()
        return {f"tokenizer.model.{name}": tensor for name, tensor in state.items()}, checksum(state, {})
    return None, ""


def _initial_weights(
    architecture: ModelConfig, source: ImageModel, init: FolderConfig, config: RunConfig
) -> dict[str, Tensor]:
    """init's weights at the run's image size, without its head unless `init_head` is set. UserError where they don't
    fit."""
    theirs, notes = adapt(dict(source.state_dict()), init.architecture, architecture)
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
