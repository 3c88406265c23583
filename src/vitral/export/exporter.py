"""Export a model for a runtime, atomically, and compare the file with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.atomic_files import whole_folder, write_json, write_text
from vitral.cpu import instruction_sets
from vitral.data.resize import fit_image
from vitral.engines import ExportMetadata, open_export, parts_of
from vitral.errors import UserError
from vitral.export.config import ExportOptions
from vitral.export.formats import Calibration, write_file
from vitral.export.parity import Parity, builtin_images, check, compare
from vitral.export_check import PROOF, prove
from vitral.models.model import ImageModel
from vitral.version import __version__
from vitral.weights.digests import CONFIG, signed
from vitral.weights.folder import CARD, FolderConfig, free_place

PARITY = "parity.json"
CALIBRATION = 64


@dataclass(frozen=True)
class Samples:
    """Images, uint8 [C, H, W] of any sizes: those to compare on, and those that say the scales of static int8; and
    what the two are called."""

    source: str
    compared: Sequence[Tensor]
    calibration: Sequence[Tensor] = ()
    calibration_source: str = ""


class ExportResult(NamedTuple):
    """Where the export is, its file in there, what was compared, and what is worth saying."""

    out: Path
    file: str
    parity: Parity
    notes: list[str]


def builtin_samples(count: int, config: FolderConfig) -> Samples:
    """Built-in photographs: for calibration others than for the comparison."""
    found = builtin_images(count + CALIBRATION, config)
    return Samples("built-in images", found[:count], found[count:], "built-in images")


def export_network(
    network: ImageModel, config: FolderConfig, card: str, options: ExportOptions, samples: Samples
) -> ExportResult:
    """Write the graph of a model and compare. Raises UserError where a package is missing, BeyondLimit where what comes
    out differs: nothing is written then."""
    out = free_place(options.out, options.overwrite)
    if config.architecture.has_codes or config.architecture.is_tokenizer:
        kind, use = ("image tokenizer", "tokenize") if config.architecture.is_tokenizer else ("Image GPT", "sample")
        hint = f"Vitral loads the folder itself: vitral.load, vitral embed, vitral {use}."
        raise UserError(f"an {kind} cannot be exported", where=config.name, got=options.format, hint=hint)
    with whole_folder(out) as folder:
        metadata = _metadata(config, card, options)
        calibration = _calibration(metadata, options, samples)
        file = write_file(folder, network, metadata, calibration)
        write_text(folder / CONFIG, signed(metadata.model_dump(mode="json"), *parts_of(file)))
        write_text(folder / CARD, card)
        with torch.inference_mode():
            engine = open_export(file)
            reference = _reference(network, config, metadata)
            parity = compare(reference, engine, metadata.model, samples.compared, samples.source)
        check(parity, options.precision, options.max_difference, options.min_agreement)
        write_json(folder / PARITY, parity.model_dump(mode="json"))
        write_json(folder / PROOF, prove(reference, engine, metadata.model).model_dump(mode="json"))
    return ExportResult(out, file.name, parity, _notes(metadata, options, calibration is not None, samples))


def _metadata(config: FolderConfig, card: str, options: ExportOptions) -> ExportMetadata:
    assert options.format in ("onnx", "pt2", "openvino"), options.format
    versions = {"vitral": __version__, "torch": str(torch.__version__)}
    if options.nms:
        config = config.model_copy(update={"task_state": config.make_task().suppressed_state(config.architecture)})
    return ExportMetadata(
        kind=options.format, takes=options.takes, precision=options.precision, batch=options.batch, nms=options.nms,
        model=config, card=card, versions=versions, instruction_sets=instruction_sets(),
    )  # fmt: skip


def _reference(network: ImageModel, config: FolderConfig, metadata: ExportMetadata) -> Callable[[Tensor], Tensor]:
    """What the graph has to compute of images [B, C, h, w]."""
    if not metadata.nms:
        return network
    task = replace(config.make_task(), state={**metadata.model.task_state, "suppressed": False})
    return lambda images_BCHW: task.compact(network(images_BCHW))


def _calibration(metadata: ExportMetadata, options: ExportOptions, samples: Samples) -> Calibration | None:
    """Batches of the graph's input for static int8."""
    static = options.quantize == "static" or (options.quantize is None and metadata.kind == "openvino")
    if metadata.precision != "int8" or not static:
        return None
    shown, count = metadata.model.preprocessing, metadata.batch or 1

    def batches() -> Iterable[Tensor]:
        for image_CHW in samples.calibration:
            is_full = metadata.takes == "pixels"
            one = image_CHW.permute(1, 2, 0) if is_full else fit_image(image_CHW, shown.image_size, shown)
            yield one.expand(count, *one.shape).contiguous()

    return batches


def _notes(metadata: ExportMetadata, options: ExportOptions, static: bool, samples: Samples) -> list[str]:
    (height, width), batch = metadata.model.preprocessing.image_size, metadata.batch or "batch"
    channels = metadata.model.architecture.in_channels
    if metadata.takes == "pixels":
        notes = [f"input: uint8 [{batch}, height, width, {channels}], any size; the graph resizes"]
    else:
        notes = [f"input: float32 [{batch}, {channels}, {height}, {width}] in [0,1]"]
    if metadata.nms:
        most = metadata.model.task_state["most"]
        place = f"x0, y0, x1, y1 in pixels of {width} x {height}"
        notes.append(f"output: detections float32 [{batch}, {most}, 6]: {place}, score, class; -1 in rows without one")
    if metadata.precision == "int8":
        scales = f"from {len(samples.calibration)} {samples.calibration_source}" if static else "from each batch"
        notes.append(f"int8: scales of activations {scales}")
    if metadata.kind == "openvino":
        hint = "bf16" if metadata.precision == "bfloat16" else "f32"
        notes.append(f'compile it with INFERENCE_PRECISION_HINT="{hint}", as `vitral predict` does')
    return notes
