"""The model folder: config.json, model.safetensors and a card, complete in itself, written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from vitral.config import Config, Count, Pair, build
from vitral.data.config import MAX_PIXELS, Interpolation
from vitral.data.resize import Fit
from vitral.errors import UserError, nearest
from vitral.models.config import AnyModelConfig, ViTConfig, build_config
from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.models.position import Resize
from vitral.models.presets import PRESETS
from vitral.weights.resize import adapt
from vitral.weights.tensors import check_match, load_tensors, save_tensors

log = logging.getLogger("vitral")
_PRESET = (
    "This is a preset, an architecture without weights: model.name takes it. Weights have a name on the Hugging Face "
    "hub, as google/vit-base-patch16-224."
)

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class Preprocessing(Config):
    """How an image becomes the model's input. Normalisation is inside the model: architecture.mean, .std.
    `background` is the colour behind transparency; larger images than `max_pixels` are refused. fit, interpolation and
    crop_ratio: see `data.resize.Fit`."""

    image_size: Pair
    channels: int = Field(ge=1, le=4)
    fit: Literal["crop", "squash"]
    interpolation: Interpolation = "bicubic"
    antialias: Literal[True] = True
    crop_ratio: float = Field(default=1.0, gt=0, le=1)
    background: str = "#ffffff"
    max_pixels: Count = MAX_PIXELS

    @property
    def fitting(self) -> Fit:
        """How images are brought to `image_size`."""
        return Fit(self.fit, self.interpolation, self.crop_ratio)


class FolderConfig(Config):
    """config.json. `temperature` divides the logits before the softmax (fitted on validation data; 1: not fitted, as
    always where an image may have several classes and each has a sigmoid of its own).

    `provenance` holds recipe, seed, data (path, source, fingerprint), versions, metrics with their split, and which
    weights these are (of which step, averaged or not).
    """

    format: Literal["vitral-model-1"] = "vitral-model-1"
    name: str
    architecture: AnyModelConfig
    id2label: dict[str, str]
    problem_type: Literal["single_label_classification", "multi_label_classification"] = "single_label_classification"
    preprocessing: Preprocessing
    temperature: float = Field(default=1.0, gt=0)
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _fits_together(self) -> FolderConfig:
        count, architecture, shown = len(self.id2label), self.architecture, self.preprocessing
        if count != architecture.num_classes or set(self.id2label) != {str(index) for index in range(count)}:
            raise ValueError(f"id2label must name the {architecture.num_classes} outputs, 0 to N-1, one by one")
        if shown.image_size != architecture.image_size or shown.channels != architecture.in_channels:
            raise ValueError("preprocessing gives other images than the architecture takes")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(self.id2label[str(index)] for index in range(len(self.id2label)))


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
        raise UserError(
            f"no model here: {CONFIG} is missing", where=model, hint="A run writes its model folder when it ends."
        )
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    options = {entry.name: str(entry) for entry in beside if entry.is_dir()} | {name: name for name in bundled()}
    close = options.get(nearest(path.name, options) or "")
    raise UserError(
        "no such model: neither a bundled name nor a folder",
        where=model,
        wanted=", ".join([*bundled(), "a path"]),
        nearest=close,
        hint=_PRESET if model in PRESETS else None,
    )


def free_place(out: str, overwrite: bool) -> Path:
    """A place to write a folder. Raises UserError for a file, and for a folder that holds something and may not go."""
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not (overwrite and (path / CONFIG).is_file()):
        hint = "overwrite=true replaces a model's folder."
        raise UserError("something is there already", where="out", got=out, hint=hint)
    return path


def save_folder(path: Path, model: nn.Module, config: FolderConfig, card: str) -> None:
    """Write the folder, whole or not at all."""
    with whole_folder(path) as temporary:
        save_tensors(temporary / WEIGHTS, model.state_dict(), {"format": "pt"})
        save_json(temporary / CONFIG, config.model_dump(mode="json"))
        (temporary / CARD).write_text(card, encoding="utf-8")


def save_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Indented, for people too."""
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """A folder under a temporary name, renamed into place at the end; a folder that stood there goes last. After an
    error nothing has changed."""
    temporary, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    _tidy(path, temporary, old)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(old)
        os.replace(temporary, path)
    finally:
        _tidy(path, temporary, old)


def _tidy(path: Path, temporary: Path, old: Path) -> None:
    """After a save that ended between its two renames, the older folder gets its name back."""
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)


def load_folder(
    model: str, image_size: int | tuple[int, int] | None = None, position_resize: Resize | None = None
) -> tuple[ImageModel, FolderConfig]:
    """The model, in evaluation mode on the CPU, and its config. Raises UserError for damaged or foreign folders.

    image_size: pixels, one number or (height, width), where another size than the folder's is wanted: positions are
    then interpolated, as `position_resize` or else the folder says, and the log tells the old and the new grid.
    """
    path = find_folder(model)
    config = load_config(path)
    network = build_model(config.architecture)
    tensors, _ = load_tensors(path / WEIGHTS)
    check_match(network.state_dict(), tensors, str(path / WEIGHTS), hint=f"{CONFIG} says {config.name}")
    network.load_state_dict(tensors)
    if image_size is not None or position_resize is not None:
        size = image_size or config.architecture.image_size
        return resized(network.eval(), config, size, position_resize, model)
    return network.eval(), config


def resized(
    network: ImageModel,
    config: FolderConfig,
    image_size: int | tuple[int, int],
    position_resize: Resize | None,
    where: str,
) -> tuple[ImageModel, FolderConfig]:
    """The same model for images of another size, and its config; see `load_folder`."""
    asked: dict[str, Any] = {"image_size": image_size}
    if position_resize is not None:
        if not isinstance(config.architecture, ViTConfig):
            raise UserError("this model has no positions", where="position_resize", got=position_resize)
        asked["position_resize"] = position_resize
    architecture = build_config({**config.architecture.model_dump(), **asked}, where=where)
    preprocessing = config.preprocessing.model_copy(update={"image_size": architecture.image_size})
    tensors, notes = adapt(dict(network.state_dict()), network.config, architecture)
    sizes = [f"{height} x {width}" for height, width in (architecture.image_size, network.config.image_size)]
    if sizes[0] != sizes[1]:
        log.warning("%s", "; ".join([f"{where}: used at {sizes[0]} instead of {sizes[1]} pixels", *notes]))
    other = build_model(architecture)
    other.load_state_dict(tensors)
    changed = {"architecture": architecture, "preprocessing": preprocessing}
    return other.train(network.training), config.model_copy(update=changed)


def is_ours(path: Path) -> bool:
    """Whether this is a model folder, damaged or not, rather than nothing or a folder of another library."""
    try:
        tree = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return True
    if not isinstance(tree, dict):
        return True
    timms = "pretrained_cfg" in tree or isinstance(tree.get("architecture"), str)
    return not (timms or {"model_type", "architectures"} & tree.keys())


def load_config(path: Path) -> FolderConfig:
    """A folder's config.json alone. Raises UserError if it is missing, damaged or not one of ours."""
    where = str(path / CONFIG)
    try:
        tree = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("not readable", where=where, got=error) from None
    if not isinstance(tree, dict) or tree.get("format") != "vitral-model-1":
        got = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
        raise UserError("not a Vitral model folder", where=where, got=got, wanted="format: vitral-model-1")
    return build(FolderConfig, tree, where=where)
