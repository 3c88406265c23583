"""Inductive bias of convolutions: ViT and ResNet on fractions of the data, and under shifts of the image.

The question of arXiv 2010.11929, sections 3.1 ("inductive bias") and 4.3. Shape letters: B batch, C channels, H W
height and width, N evaluated images, S shifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.dataset import Dataset
from vitral.data.splits import stratified
from vitral.errors import UserError
from vitral.models.presets import resolve
from vitral.predictor import load
from vitral.report.plots import fraction_curves
from vitral.reproduce.config import BiasOptions
from vitral.reproduce.runs import (
    base_keys,
    check_run,
    comparison,
    finished,
    mean_and_std,
    open_classes,
    settings,
    write_plot,
    write_table,
)
from vitral.run.inference_inputs import image_batches
from vitral.training.metrics_log import console_logging, log

PLOT = "fractions.svg"
SETS = {"model.name": "vit= and cnn= name the presets."}


def inductive_bias(options: BiasOptions | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train both kinds on every fraction with every seed; returns what table.json holds; draws fractions.svg.

    Each row of "rows" has a model, a fraction, the number of train images, top-1 on the evaluated images of each seed,
    and `consistency`: the share of the evaluated images, moved by `shift` pixels in 8 directions (edges are
    replicated), that keep the class predicted for the image in place. Keys of `model` are the ViT's.
    """
    console_logging()
    options = options or BiasOptions()
    recipe, keys = base_keys(options, overrides or {}, SETS)
    models = _models(options, {key: value for key, value in keys.items() if key.startswith("model.")})
    shared = {key: value for key, value in keys.items() if not key.startswith("model.")} | {"check.skip": True}
    dataset = open_classes(recipe, keys)
    shared["data.image_size"] = check_run(recipe, {**shared, **models["ViT"]}, dataset)
    check_run(recipe, {**shared, **models["CNN"]}, dataset)  # at the ViT's size
    rows: list[dict[str, Any]] = []
    with comparison("inductive-bias", options, overrides or {}) as folder:
        for name, model in models.items():
            for fraction in options.fractions:
                part = fraction_of(dataset, fraction)
                top1, same = list[float](), list[float]()
                for seed in range(options.seeds):
                    log.info("%s, %g of the train images, seed %d", name, fraction, seed)
                    where = folder / f"{name.lower()}-{fraction:g}-{seed}"
                    top1.append(finished(where, recipe, {**shared, **model, "seed": seed}, part)["top1"])
                    same.append(shift_consistency(where, dataset, options.shift))
                agree = {f"consistency_{key}": value for key, value in mean_and_std(same).items()}
                rows.append({"model": name, "fraction": fraction, "images": len(part.splits["train"]), "top1": top1,
                             **mean_and_std(top1), "consistency": same, **agree})  # fmt: skip
    found = {**settings(options), "rows": rows}
    write_table(folder, found)
    write_plot(folder / PLOT, fraction_curves(rows, options.shift))
    return found


def _models(options: BiasOptions, keys: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the model keys of ViT and CNN. Raises UserError for an unknown preset and for a wrong family."""
    for key, name, family in (("vit", options.vit, "vit"), ("cnn", options.cnn, "resnet")):
        if (key, name) != ("vit", "auto") and resolve(name).family != family:
            raise UserError("a preset of the wrong model family", where=key, got=name)
    # Another preset than the recipe's comes with its own pooling too.
    own = {} if options.vit == "auto" else {"model.name": options.vit, "model.pool": None}
    return {"ViT": {**own, **keys}, "CNN": {"model.name": options.cnn}}


def fraction_of(dataset: Dataset, fraction: float) -> Dataset:
    """The dataset with this share of its train images, the same for every model, each class in proportion."""
    train = dataset.splits["train"]
    if fraction == 1:
        return dataset
    part = train.subset(stratified(train.labels_N, fraction, seed=0))
    return replace(dataset, splits={**dataset.splits, "train": part})


@torch.inference_mode()
def shift_consistency(run: Path, dataset: Dataset, shift: int) -> float:
    """The share of moved images, over 8 directions, whose predicted class is that of the image in place."""
    predictor = load(run)
    split = dataset.splits["test" if "test" in dataset.splits else "val"]
    same, count = 0, 0
    for images_BCHW, _ in image_batches(predictor, split, 256):
        still_B = predictor.model(images_BCHW).argmax(dim=-1)
        for down in (-shift, 0, shift):
            for right in (-shift, 0, shift):
                if down or right:
                    moved_B = predictor.model(moved(images_BCHW, down, right)).argmax(dim=-1)
                    same, count = same + int((moved_B == still_B).sum()), count + len(still_B)
    return same / count


def moved(images_BCHW: Tensor, down: int, right: int) -> Tensor:
    """Return the images, shifted by whole pixels; edges are replicated."""
    edge = max(abs(down), abs(right))
    H, W = images_BCHW.shape[-2:]
    padded = F.pad(images_BCHW.float(), (edge,) * 4, mode="replicate")
    window = padded[..., edge - down : edge - down + H, edge - right : edge - right + W]
    return window.round().to(torch.uint8) if images_BCHW.dtype == torch.uint8 else window
