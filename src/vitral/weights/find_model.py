"""What MODEL means: a bundled name, then a local path, ours or foreign, then a name on the hub."""

from __future__ import annotations

import logging
from pathlib import Path

from vitral.models.model import ImageModel
from vitral.models.position import Resize
from vitral.weights.config import ReadOptions
from vitral.weights.convert import read_external
from vitral.weights.digests import WEIGHTS
from vitral.weights.folder import FolderConfig, bundled, find_folder, is_ours, load_config, load_folder, resized
from vitral.weights.hub import download
from vitral.weights.hub_name import is_hub_name
from vitral.weights.read_files import is_weights
from vitral.weights.stopped_run import refuse_stopped

log = logging.getLogger("vitral")


def find_model(model: str) -> Path:
    """A model folder, or a file or folder of foreign weights. Raises UserError where there is neither."""
    if model in bundled():
        return find_folder(model)
    path = Path(model).expanduser()
    if path.name == WEIGHTS and path.is_file() and is_ours(path.parent):
        return path.parent  # its config.json says what the weights are
    if path.is_dir() and not is_ours(path) and not is_ours(path / "model"):
        refuse_stopped(path)
        if is_weights(path):
            return path
    if path.is_file() and is_weights(path):
        return path
    if not path.exists() and is_hub_name(model):
        return download(model)
    return find_folder(model)


def load_model(
    model: str,
    image_size: int | tuple[int, int] | None = None,
    position_resize: Resize | None = None,
    *,
    verify: bool = True,
) -> tuple[ImageModel, FolderConfig]:
    """The model, in evaluation mode on the CPU, and its config; foreign weights are converted in memory, and the log
    says how. Raises UserError for weights that are damaged, unknown, or do not fit.

    image_size, position_resize, verify: see `load_folder`.
    """
    path = find_model(model)
    if is_ours(path):
        return load_folder(str(path), image_size, position_resize, verify=verify)
    # A size may also state the shape of the grid that positions are for, where no file does.
    options = None if image_size is None or position_resize is not None else ReadOptions(image_size=image_size)
    found = read_external(path, options, name=model)
    for note in found.notes:
        log.info("%s: %s", model, note)
    if position_resize is None:
        return found.model, found.config
    return resized(found.model, found.config, image_size, position_resize, model)


def model_config(model: str) -> FolderConfig:
    """The config alone."""
    path = find_model(model)
    return load_config(path) if is_ours(path) else read_external(path, name=model).config
