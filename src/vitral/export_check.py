"""Check that an export gives the model's outputs on a processor other than the one that it was made on.

`vitral export` writes the model's own outputs for some made-up images beside the file. Where an export is opened on a
processor with other instruction sets, it has to give the same ones, within what was measured at the export.

Shape letters: N images, C H W channels, height and width, S classes or features.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitral.atomic_files import write_cache
from vitral.config import Config, build
from vitral.cpu import instruction_sets
from vitral.data.check_cache import cache_folder
from vitral.data.resize import fit_image
from vitral.engines import Engine, Exported, logits_of, parts_of
from vitral.errors import UserError
from vitral.files import read_json
from vitral.weights.folder import FolderConfig

log = logging.getLogger("vitral")

PROOF = "proof.json"
_IMAGES = 8
_LARGEST = 2**28  # bytes of the file
_MOST_OUTPUTS = 2**16  # of an image, that are compared, evenly spaced
# Kernels may round otherwise, and what is rounded to 8 bits moves by a step: twice the difference of the export, and no
# less than float32 exports may differ by.
_AS_FAR, _AT_LEAST, _OF_LARGEST = 2.0, 1e-3, 1e-4


class Proof(Config):
    """The comparison of an export with its model on made-up images.

    instruction_sets: of the processor. outputs: the float32 model's, [N, S], as base64 of little-endian float32.
    difference: the largest absolute one of the export's to these.
    """

    format: Literal["vitral-proof-1"] = "vitral-proof-1"
    instruction_sets: list[str]
    outputs: str
    difference: float


def made_up_images(config: FolderConfig) -> list[Tensor]:
    """uint8 [C, H, W] of the model's size: random blocks, from fine to coarse. The same on every machine."""
    draw, (height, width) = np.random.default_rng(0), config.preprocessing.image_size
    found: list[Tensor] = []
    for number in range(_IMAGES):
        block = min(2**number, 16)
        shape = (config.architecture.in_channels, -(-height // block), -(-width // block))
        cells = draw.integers(0, 256, shape).repeat(block, 1).repeat(block, 2)
        found.append(torch.from_numpy(cells[:, :height, :width].astype(np.uint8).copy()))
    return found


@torch.inference_mode()
def prove(reference: Callable[[Tensor], Tensor], engine: Engine, config: FolderConfig) -> Proof:
    """Compare here and now with a function of images [B, C, h, w] in [0,1]."""
    spec = config.preprocessing
    fitted = [fit_image(image, spec.image_size, spec) for image in made_up_images(config)]
    expected_NS = _compared(reference(torch.stack(fitted)).float().cpu(), config)
    return Proof(
        instruction_sets=instruction_sets(),
        outputs=base64.b64encode(expected_NS.numpy().astype("<f4").tobytes()).decode(),
        difference=_apart(engine, config, expected_NS),
    )


def check_here(path: Path, engine: Exported) -> None:
    """Compare an export on this processor with the proof beside it, unless that was made on one like this or the
    comparison has been made here before. Raises UserError where the export gives other outputs than it did."""
    here, file = instruction_sets(), path.parent / PROOF
    there = engine.metadata.instruction_sets
    if not there or there == here:
        return
    if not file.is_file():
        log.warning(
            "%s was compared with its model on a processor with %s; without its %s it is not compared on this one (%s)",
            path, " ".join(there), PROOF, " ".join(here),
        )  # fmt: skip
        return
    seen = cache_folder("exports") / _key(path, here)
    if seen.is_file():
        return
    found, _ = compare_here(path, engine)
    log.info("%s gives its model's outputs on this processor too (largest difference %.2g)", path, found)
    write_cache(seen, b"")


def compare_here(path: Path, engine: Exported) -> tuple[float, float]:
    """Return the largest difference of the export's outputs to the model's in its proof, and the largest allowed.
    Raises UserError beyond that, and without a proof."""
    here, there, file = instruction_sets(), engine.metadata.instruction_sets, path.parent / PROOF
    proof = build(Proof, read_json(file, _LARGEST), where=str(file))
    try:
        flat = np.frombuffer(base64.b64decode(proof.outputs, validate=True), "<f4").astype(np.float32)
        expected_NS = torch.from_numpy(flat.reshape(_IMAGES, -1))
    except ValueError as error:
        raise UserError("not readable", where=str(file), got=error) from None
    found = _apart(engine, engine.metadata.model, expected_NS)
    most = max(_AS_FAR * proof.difference, _AT_LEAST, _OF_LARGEST * float(expected_NS.abs().max()))
    if not found <= most:
        raise UserError(
            "this export is not the model on this processor", where=str(path),
            got=f"outputs that differ by {found:.2g} from the model's ({' '.join(here)})",
            expected=f"at most {most:.2g}: {proof.difference:.2g} when exported ({' '.join(there)})",
            hint="Export the model again on this machine, or take precision=float32.",
        )  # fmt: skip
    return found, most


@torch.inference_mode()
def _apart(engine: Engine, config: FolderConfig, expected_NS: Tensor) -> float:
    found_NS = _outputs(engine, config)
    if found_NS.shape != expected_NS.shape:
        return float("inf")
    return float((found_NS - expected_NS).abs().max())


def _outputs(engine: Engine, config: FolderConfig) -> Tensor:
    """In the task's units for comparisons, of the made-up images."""
    return _compared(logits_of(engine, config.preprocessing, made_up_images(config)), config)


def _compared(outputs: Tensor, config: FolderConfig) -> Tensor:
    """Some of them."""
    flat_NS = config.make_task().comparable(outputs).flatten(1)
    return flat_NS[:, :: -(-flat_NS.shape[1] // _MOST_OUTPUTS)]


def _key(path: Path, here: list[str]) -> str:
    """What the result depends on: the files by name, size and time of change, and the processor."""
    files = (*parts_of(path), path.parent / PROOF)
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = repr((str(path.resolve()), states, here))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
