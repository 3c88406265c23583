"""`vitral doctor MODEL`: every byte of a model folder against its digests, and whether its answers are finite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vitral.errors import UserError
from vitral.files import read_json
from vitral.models.presets import count_parameters
from vitral.predictor import Predictor
from vitral.weights.digests import CONFIG, WEIGHTS, accept_command, signed, verify_weights
from vitral.weights.find import find_model, load_model
from vitral.weights.folder import folder_digests, is_ours
from vitral.weights.tensors import partial_of


def check_model(model: str, *, accept: bool = False) -> dict[str, Any]:
    """Verify a whole model and return what was found, name by name.

    Hashes all of config.json and of the weights, whatever was remembered of them; loads the model; computes one gray
    image. accept: write digests of the folder as it is now, if all else is right. Raises UserError for what is wrong.
    """
    path = find_model(model)
    ours = is_ours(path)
    if accept and not ours:
        raise UserError("only model folders of Vitral hold digests", where="accept", got=str(path))
    digests = folder_digests(path) if ours and not accept else None
    if digests is not None:
        verify_weights(path / WEIGHTS, digests[WEIGHTS], remembered=False)
    network, config = load_model(model, verify=False)
    predictor = Predictor(network, config, "cpu")
    height, width = config.preprocessing.image_size
    gray = predictor.ready(torch.full((height, width, config.preprocessing.channels), 128, dtype=torch.uint8).numpy())
    if predictor.classes:
        predictor.logits_of([gray])
    else:
        predictor.features(gray[None])
    if accept:
        _sign(path)
    sizes = {name: (path / name).stat().st_size for name in (CONFIG, WEIGHTS)} if ours else {}
    if accept:
        said = f"written for {CONFIG} and {WEIGHTS} as they are now"
    elif digests is not None:
        said = f"match (SHA-256 of all {sum(sizes.values()):,} bytes of {CONFIG} and {WEIGHTS})"
    else:
        said = (
            f"none, so damage cannot be detected. Add them: {accept_command(path)}" if ours else "none in this format"
        )
    return {
        "model": str(path), "digests": said, "parameters": count_parameters(config.architecture),
        "classes": len(config.classes), "outputs": "finite",
    }  # fmt: skip


def _sign(path: Path) -> None:
    """Replaced whole or not at all."""
    tree = read_json(path / CONFIG)
    partial = partial_of(path / CONFIG)
    partial.write_text(signed(tree, path / WEIGHTS), encoding="utf-8")
    os.replace(partial, path / CONFIG)
