"""Keys of Image GPT, each set to another value: lines as in test_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.models.tokenizers import tokenizer
from tests.run.outcomes import Case, shapes, weights
from vitral.data.image_spec import ImageSpec
from vitral.weights.folder import FolderConfig, save_folder

IGPT: Mapping[str, Any] = {
    "model.name": "igpt_micro_8", "objective.kind": "igpt", "model.pool": None, "train.eval_every": "end",
}  # fmt: skip
CLASSES: Mapping[str, Any] = {**IGPT, "model.class_tokens": 10}

IGPT_CASES: dict[str, Case] = {
    "model.colors": Case(8, shapes, IGPT),
    "model.class_tokens": Case(10, weights, IGPT),
    "model.mask_ratio": Case(0.2, weights, IGPT),
    "model.tokenizer": Case("tokenizer", shapes, IGPT),
    "objective.label_dropout": Case(0.9, weights, CLASSES),
    "objective.generative_weight": Case(9.0, weights, {**IGPT, "objective.kind": "igpt_finetune"}),
}


def save_tokenizer(path: Path) -> None:
    """A tokenizer with random weights as a model folder: 8 x 8 gray images, 12 codes."""
    model = tokenizer("vq", image_size=(8, 8), in_channels=1)
    shown = ImageSpec(image_size=(8, 8), channels=1, resize_mode="crop")
    config = FolderConfig(
        name="tokenizer", architecture=model.config, id2label={}, task="image_tokenizer", preprocessing=shown,
        provenance={},
    )  # fmt: skip
    save_folder(path, model, config, "a card\n")
