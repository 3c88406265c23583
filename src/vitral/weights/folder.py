"""The model folder: config.json, model.safetensors and a card, complete in itself, written whole or not at all."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from vitral.atomic_files import interrupted, old_of, recover, whole_folder, write_text
from vitral.config import Config, build
from vitral.data.image_spec import ImageSpec
from vitral.errors import UserError, command, nearest, taken
from vitral.files import JSON_BYTES, CannotOpen, parse_json, read_json, read_text
from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.models.position import Resize
from vitral.models.presets import PRESETS
from vitral.models.registry import AnyModelConfig, build_config
from vitral.models.summary import count_parameters
from vitral.tasks.imagenet_names import distinct_names
from vitral.tasks.registry import TASKS
from vitral.tasks.task import Task
from vitral.weights.adapt import adapt
from vitral.weights.digests import (
    CONFIG,
    KEY,
    WEIGHTS,
    accept_command,
    signed,
    take_digests,
    verify_text,
    verify_weights,
)
from vitral.weights.stopped_run import refuse_stopped
from vitral.weights.tensors import DamagedFile, check_finite, check_match, load_tensors, save_tensors, tensor_shapes
from vitral.weights.text_kind import TEXT_FORMAT

log = logging.getLogger("vitral")
_PRESET = (
    "This is a preset, an architecture without weights: model.name takes it. Weights have a name on the Hugging Face "
    "hub, as google/vit-base-patch16-224."
)

_SPARE = 2**20  # parameters that cost nothing to build, whatever the file holds

CARD = "README.md"


class FolderConfig(Config):
    """config.json. `task`: the kind of answer, a name in `tasks.registry.TASKS`. `temperature` divides the logits
    before they become scores (fitted on validation data; 1: not fitted). `task_state`: what else the task keeps.

    `provenance` holds recipe, seed, data (path, source, fingerprint), versions, metrics with their split, and which
    weights these are (of which step, averaged or not).
    """

    format: Literal["vitral-model-1"] = "vitral-model-1"
    name: str
    architecture: AnyModelConfig
    id2label: dict[str, str]
    task: str
    preprocessing: ImageSpec
    temperature: float = Field(default=1.0, gt=0)
    task_state: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _fits_together(self) -> FolderConfig:
        count, architecture, shown = len(self.id2label), self.architecture, self.preprocessing
        if count != architecture.num_classes or set(self.id2label) != {str(index) for index in range(count)}:
            raise ValueError(f"id2label must name the {architecture.num_classes} outputs, 0 to N-1, one by one")
        if self.task not in TASKS:
            close = nearest(self.task, TASKS)
            raise UserError("unknown task", where="task", got=self.task, expected=", ".join(TASKS), nearest=close)
        if TASKS[self.task].has_head != (count > 0):
            raise ValueError(f"the task {self.task} does not fit a head of {count} outputs")
        if not TASKS[self.task].fits(architecture):
            raise ValueError(f"the task {self.task} does not fit an architecture of the family {architecture.family}")
        if shown.image_size != architecture.image_size or shown.channels != architecture.in_channels:
            raise ValueError("preprocessing gives other images than the architecture takes")
        self.make_task().check_state()
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.id2label[str(index)] for index in range(len(self.id2label)))

    def make_task(self) -> Task:
        """The task, which turns the outputs of this model into answers."""
        return TASKS[self.task](self.classes, self.temperature, self.task_state)


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    root = resources.files("vitral") / "bundled"
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def find_folder(model: str) -> Path:
    """The folder that MODEL means: a bundled name, then a local path. A run folder means the model inside it."""
    if model in bundled():
        return Path(str(resources.files("vitral") / "bundled" / model))
    path = Path(model).expanduser()
    if is_ours(path):
        return path
    if is_ours(path / "model"):
        return path / "model"
    if path.is_dir():
        refuse_stopped(path)
        hint = "A run writes its model folder when it ends."
        raise UserError(f"no model here: {CONFIG} is missing", where=model, hint=hint)
    if not path.exists() and is_ours(old_of(path)):
        hint = f"The older model is whole. Give it its name back: {command('mv', str(old_of(path)), str(path))}"
        raise UserError("replacing this model was interrupted", where=model, hint=hint)
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    options = {entry.name: str(entry) for entry in beside if entry.is_dir()} | {name: name for name in bundled()}
    close = options.get(nearest(path.name, options) or "")
    raise UserError(
        "no such model: neither a bundled name nor a folder", where=model, expected=", ".join([*bundled(), "a path"]),
        nearest=close, hint=_PRESET if model in PRESETS else None,
    )  # fmt: skip


def free_place(out: str, overwrite: bool) -> Path:
    """A place to write a folder. Raises UserError for a file, and for a folder that holds something and may not go."""
    path = Path(out).expanduser()
    recover(path)
    ours = (path / CONFIG).is_file() or interrupted(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not (overwrite and ours):
        raise taken(path, overwrite=ours)
    return path


def save_folder(path: Path, model: nn.Module, config: FolderConfig, card: str) -> None:
    """Write the folder, whole or not at all, with digests that `load_folder` verifies. A class name that is there twice
    gets a number."""
    tree = {**config.model_dump(mode="json"), "id2label": distinct_names(config.id2label)}
    with whole_folder(path) as temporary:
        save_tensors(temporary / WEIGHTS, model.state_dict(), {"format": "pt"})
        (temporary / CONFIG).write_text(signed(tree, temporary / WEIGHTS), encoding="utf-8")
        write_text(temporary / CARD, card)


def load_folder(
    model: str,
    image_size: int | tuple[int, int] | None = None,
    position_resize: Resize | None = None,
    *,
    verify: bool = True,
) -> tuple[ImageModel, FolderConfig]:
    """The model, in evaluation mode on the CPU, and its config. Raises UserError for damaged or foreign folders.

    verify: whether both files must be as they were saved, by their digests; see `weights.digests`. A folder without
    digests is loaded, and the log says so. image_size: pixels, one number or (height, width), where another size than
    the folder's is expected: positions are then interpolated, as `position_resize` or else the folder sets, and the
    old and the new grid are logged.
    """
    path = find_folder(model)
    config, digests = _read_config(path, verify=verify)
    if verify and digests is None:
        hint = f"{accept_command(path)} adds them."
        log.info("%s", f"{model}: {CONFIG} has no digests, so damage to the files cannot be detected. {hint}")
    elif digests is not None and verify:
        verify_weights(path / WEIGHTS, digests[WEIGHTS])
    network = build_model(config.architecture).eval()
    tensors, _ = load_tensors(path / WEIGHTS)
    check_match(network.state_dict(), tensors, str(path / WEIGHTS), hint=f"{CONFIG} says {config.name}")
    check_finite(tensors, str(path / WEIGHTS))
    network.load_state_dict(tensors)
    if image_size is not None or position_resize is not None:
        return resized(network, config, image_size, position_resize, model)
    return network, config


def resized(
    network: ImageModel,
    config: FolderConfig,
    image_size: int | tuple[int, int] | None,
    position_resize: Resize | None,
    where: str,
) -> tuple[ImageModel, FolderConfig]:
    """The same model for images of another size (None: its own), and its config; see `load_folder`."""
    changes: dict[str, Any] = {"image_size": image_size or config.architecture.image_size}
    if position_resize is not None:
        if not config.architecture.has_patches:
            raise UserError("this model has no positions", where="position_resize", got=position_resize)
        changes["position_resize"] = position_resize
    architecture = build_config({**config.architecture.model_dump(), **changes}, where=where)
    preprocessing = config.preprocessing.model_copy(update={"image_size": architecture.image_size})
    tensors, notes = adapt(dict(network.state_dict()), network.config, architecture)
    sizes = [f"{height} x {width}" for height, width in (architecture.image_size, network.config.image_size)]
    if sizes[0] != sizes[1]:
        log.warning("%s", "; ".join([f"{where}: used at {sizes[0]} instead of {sizes[1]} pixels", *notes]))
    other = build_model(architecture).train(network.training)
    other.load_state_dict(tensors)
    return other, config.model_copy(update={"architecture": architecture, "preprocessing": preprocessing})


def is_ours(path: Path) -> bool:
    """Whether this is a model folder, damaged or not, rather than nothing or a folder of another library."""
    try:
        tree = read_json(path / CONFIG)
    except UserError as error:
        return not (isinstance(error, CannotOpen) and error.absent)
    if not isinstance(tree, dict):
        return True
    timms = "pretrained_cfg" in tree or isinstance(tree.get("architecture"), str)
    return not (timms or {"model_type", "architectures"} & tree.keys())


def load_config(path: Path, *, verify: bool = True) -> FolderConfig:
    """A folder's config.json alone. Raises UserError if it is missing, damaged, not one of ours, or describes another
    model than the weights beside it can be of."""
    return _read_config(path, verify=verify)[0]


def folder_digests(path: Path) -> dict[str, str] | None:
    """Return the digests that a folder's config.json holds, after its own is verified; None where it holds none."""
    return _read_config(path, verify=True)[1]


def _read_config(path: Path, *, verify: bool) -> tuple[FolderConfig, dict[str, str] | None]:
    where = str(path / CONFIG)
    try:
        text = read_text(path / CONFIG, JSON_BYTES)
        tree = parse_json(text, where=where)
    except UserError as error:
        raise DamagedFile(error.what, where=error.where or where) from None
    if not isinstance(tree, dict) or tree.get("format") != "vitral-model-1":
        got = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
        hint = (
            "It writes text; this is for models of images. In Python: vitral.load_text" if got == TEXT_FORMAT else None
        )
        raise UserError("not a Vitral model folder", where=where, got=got, expected="format: vitral-model-1", hint=hint)
    digests = take_digests(tree, where, WEIGHTS) if verify else tree.pop(KEY, None)
    if verify and digests is not None:
        verify_text(text, digests[CONFIG], path / CONFIG)
    if "task" not in tree:
        hint = "This folder is of an older version: train again, or convert the weights again."
        raise UserError("the task of this model is not stated", where=where, expected=", ".join(TASKS), hint=hint)
    config = build(FolderConfig, tree, where=where)
    twice = [name for name, count in Counter(config.classes).items() if count > 1]
    if twice:
        hint = f"Rename one of them. Then run: {accept_command(path)}"
        raise UserError("two classes have one name", where=f"{where}: id2label", got=twice[0], hint=hint)
    refuse_larger(config.architecture, tensor_shapes(path / WEIGHTS), where)
    return config, digests


def refuse_larger(architecture: ArchitectureConfig, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Raise UserError for an architecture far larger than these tensors, before it is built.

    Every block has tensors of its own, and every parameter is in the file. What is at most twice as large is cheap to
    build, and `check_match` then names what is missing.
    """
    blocks = architecture.block_count + architecture.stem_block_count
    there = sum(math.prod(shape) for shape in shapes.values())
    got, expected = f"{blocks:,} blocks", f"at most {len(shapes):,}, as many as the file has tensors"
    if blocks <= len(shapes):
        expected = f"about {there:,}, as many as the file has values"
        try:
            needed = count_parameters(architecture)
            if needed <= 2 * there + _SPARE:
                return
            got = f"{needed:,} parameters"
        except UserError:
            got = architecture.description
    raise UserError("this architecture does not fit the weights", where=where, got=got, expected=expected)
