"""Engine in another runtime for a loaded model: exported to a temporary folder, compared, and used if equal."""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from vitral.engines import FILES, Engine, Exported, ExportMetadata, Kind, Precision, TorchEngine, open_export
from vitral.errors import UserError
from vitral.export.formats import openvino_of, write_file
from vitral.export.parity import Likeness, builtin_images, check, compare_outputs, fit, outputs_of, take_turns
from vitral.models.model import ImageModel
from vitral.optional_imports import require
from vitral.predictor import Predictor
from vitral.training.signals import StopSignal
from vitral.version import __version__
from vitral.weights.folder import FolderConfig

log = logging.getLogger("vitral")

_RUNTIMES: dict[str, tuple[Kind, tuple[Precision, ...]]] = {
    "onnx": ("onnx", ("float32",)), "openvino": ("openvino", ("float32", "bfloat16")),
}  # fmt: skip
_IMAGES = 32
_AS_FAR = 1.25
_ROUNDS, _SECONDS = 9, 4.0


def with_engine(predictor: Predictor, engine: str, precision: Precision = "float32", batch: int = 8) -> Predictor:
    """The same predictor with its logits computed by torch, onnx or openvino; auto: the fastest of those installed
    whose logits pass the comparison on built-in images (`parity.check`; in bfloat16 also those that are about as near
    to the float32 model as torch's bfloat16 is), for batches of `batch` images. Seconds of work, of which nothing is
    kept. Features are those of the float32 model whatever computes the logits.

    Raises UserError for an export, for CUDA with another engine than torch, for a precision that the engine lacks and
    where a package is missing; BeyondLimit where the requested engine computes something else.
    """
    if predictor.is_export:
        raise UserError("an export has an engine and a precision of its own", where="engine", got=engine)
    if predictor.device.type != "cpu" and engine in _RUNTIMES:
        raise UserError(f"{engine} runs on the processor", where="device", got=predictor.device, expected="cpu")
    model, config = predictor.model, predictor.config
    if precision == "float32" and engine == "torch":
        return predictor
    if engine not in ("torch", "auto") and precision not in _RUNTIMES[engine][1]:
        expected = ", ".join(_RUNTIMES[engine][1])
        raise UserError(f"this precision is not one of {engine}", where="precision", got=precision, expected=expected)
    if engine == "torch" or (engine == "auto" and predictor.device.type != "cpu"):
        return _replaced(predictor, _in_torch(model, precision))
    if engine == "auto":
        return _replaced(predictor, fastest(engines(model, config, precision), config, batch))
    with StopSignal(at_once=True), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return _replaced(predictor, _Maker(Path(folder), model, config, precision)(engine))


def engines(model: ImageModel, config: FolderConfig, precision: Precision) -> list[Engine]:
    """Torch, and the others that are installed, know the precision and pass the comparison."""
    with StopSignal(at_once=True), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        make = _Maker(Path(folder), model, config, precision)
        found: list[Engine] = [make.plain]
        for name in (name for name, (_, known) in _RUNTIMES.items() if precision in known):
            try:
                found.append(make(name))
            except Exception as error:  # of exporters, runtimes and full disks: torch does without them
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.info("engine=auto leaves %s out: %s", name, reason)
    return found


@torch.inference_mode()
def fastest(engines: Sequence[Engine], config: FolderConfig, batch: int) -> Engine:
    """Of engines that take resized images: the least median time of a batch, of rounds in which all take turns."""
    images = torch.rand(batch, config.architecture.in_channels, *config.preprocessing.image_size)
    runs = [partial(engine.logits, images) for engine in engines]
    medians = [statistics.median(times) for times in take_turns(runs, _ROUNDS, _SECONDS)]
    for engine, seconds in zip(engines, medians, strict=True):
        log.info("%s, %s: %.1f images per second", engine.name, engine.precision, batch / seconds)
    best = engines[medians.index(min(medians))]
    log.info("engine=auto takes %s", best.name)
    return best


class _Maker:
    """Makes engines of one model, for images that are resized already; all from one ONNX file."""

    @torch.inference_mode()
    def __init__(self, folder: Path, model: ImageModel, config: FolderConfig, precision: Precision) -> None:
        self.folder, self.model, self.config = folder, model, config
        self.precision: Precision = precision
        self.plain = _in_torch(model, precision)
        self.images = [fit(image, config) for image in builtin_images(_IMAGES, config)]
        self.logits_NS = outputs_of(model, self.images)
        self.of_plain = self._likeness(self.plain) if precision != "float32" else None

    def __call__(self, name: str) -> Exported:
        """Raises as `with_engine` does."""
        kind = _RUNTIMES[name][0]
        require(*{"onnx": ("onnxruntime", "export"), "openvino": ("openvino", "openvino")}[kind])
        metadata = ExportMetadata(
            kind=kind, takes="resized", precision=self.precision, model=self.config, card="",
            versions={"vitral": __version__},
        )  # fmt: skip
        file = self.folder / FILES["onnx"]
        if not file.exists():
            write_file(self.folder, self.model, metadata.model_copy(update={"kind": "onnx"}), None)
        if kind == "openvino":
            file = self.folder / FILES[kind]
            openvino_of(self.folder / FILES["onnx"], file, metadata)
        engine = open_export(file)
        found = self._likeness(engine)
        # In low precision the likeliest class of near ties is anybody's: what torch rounds away others may, too.
        if self.of_plain is None or not found.max_difference <= _AS_FAR * self.of_plain.max_difference:
            check(found, self.precision, None, None)
        return engine

    @torch.inference_mode()
    def _likeness(self, engine: Engine) -> Likeness:
        return compare_outputs(self.logits_NS, outputs_of(engine.logits, self.images), self.config, "built-in images")


def _in_torch(model: ImageModel, precision: Precision) -> TorchEngine:
    return TorchEngine(model if precision == "float32" else copy.deepcopy(model).bfloat16())


def _replaced(predictor: Predictor, engine: Engine) -> Predictor:
    return Predictor(predictor.model, predictor.config, str(predictor.device), engine)
