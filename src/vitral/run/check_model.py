"""`vitral doctor MODEL`: compare all bytes of a model folder with its digests, and test for finite outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitral.atomic_files import write_text
from vitral.engines import find_export, open_export
from vitral.errors import UserError
from vitral.export_check import PROOF, compare_here
from vitral.files import read_json
from vitral.models.summary import count_parameters
from vitral.predictor import Predictor
from vitral.weights.digests import CONFIG, WEIGHTS, accept_command, signed, verify_weights
from vitral.weights.find_model import find_model, load_model
from vitral.weights.folder import folder_digests, is_ours


def check_model(model: str, *, accept: bool = False) -> dict[str, Any]:
    """Verify a whole model and return what was found, name by name.

    Hashes all of config.json and of the weights, whatever was remembered of them; loads the model; computes one gray
    image. accept: write digests of the folder as it is now, if all else is right. Raises UserError for what is wrong.
    """
    exported = find_export(model)
    if exported is not None:
        return _check_export(exported, accept=accept)
    path = find_model(model)
    ours = is_ours(path)
    if accept and not ours:
        raise _no_digests(path)
    digests = folder_digests(path) if ours and not accept else None
    if digests is not None:
        verify_weights(path / WEIGHTS, digests[WEIGHTS], remembered=False)
    network, config = load_model(model, verify=False)
    predictor = Predictor(network, config, "cpu")
    height, width = config.preprocessing.image_size
    gray_HWD = torch.full((height, width, config.preprocessing.channels), 128, dtype=torch.uint8).numpy()
    predictor.forward([predictor.preprocess(gray_HWD)], None if predictor.classes else "pooled")
    if accept:
        write_text(path / CONFIG, signed(read_json(path / CONFIG), path / WEIGHTS))
    sizes = {name: (path / name).stat().st_size for name in (CONFIG, WEIGHTS)} if ours else {}
    result_text = "none in this format"
    if accept:
        result_text = f"written for {CONFIG} and {WEIGHTS} as they are now"
    elif digests is not None:
        result_text = f"match (SHA-256 of all {sum(sizes.values()):,} bytes of {CONFIG} and {WEIGHTS})"
    elif ours:
        result_text = f"none, so damage cannot be detected. Add them: {accept_command(path)}"
    return {
        "model": str(path), "digests": result_text, "parameters": count_parameters(config.architecture),
        "classes": len(config.classes), "outputs": "finite",
    }  # fmt: skip


def _check_export(path: Path, *, accept: bool) -> dict[str, Any]:
    """Compare an export on this processor with its model's outputs, whatever was remembered of it."""
    if accept:
        raise _no_digests(path)
    engine = open_export(path)
    metadata = engine.metadata
    result_text = f"none: {PROOF} is missing, so this export cannot be compared with its model"
    if (path.parent / PROOF).is_file():
        found, most = compare_here(path, engine)
        result_text = f"outputs differ by {found:.2g} at most on this processor (allowed: {most:.2g})"
    return {
        "export": str(path), "format": metadata.kind, "precision": metadata.precision, "comparison": result_text,
        "classes": len(metadata.model.classes),
        "made_on": ", ".join(metadata.instruction_sets) or "not recorded",
    }  # fmt: skip


def _no_digests(path: Path) -> UserError:
    return UserError("only model folders of Vitral hold digests", where="accept", got=str(path))
