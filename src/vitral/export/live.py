"""Another engine for a model that is loaded: exported to a temporary folder, compared, and used if it is the model."""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path

import torch

from vitral.engines import Engine, Exported, Kind, Precision, Shipment, TorchEngine, open_export
from vitral.errors import UserError
from vitral.export.formats import write_file
from vitral.export.parity import BeyondLimit, Parity, builtin_images, check, compare
from vitral.models.model import ImageModel
from vitral.predictor import Predictor
from vitral.version import __version__
from vitral.weights.folder import FolderConfig

log = logging.getLogger("vitral")

_RUNTIMES: dict[str, tuple[Kind, tuple[Precision, ...]]] = {
    "onnx": ("onnx", ("float32",)), "openvino": ("openvino", ("float32", "bfloat16")),
}  # fmt: skip
_IMAGES = 16


def with_engine(predictor: Predictor, engine: str, precision: Precision = "float32") -> Predictor:
    """The same predictor with its logits computed by torch, onnx or openvino; auto: the fastest of those installed
    whose logits pass the comparison on built-in images (`parity.check`). Seconds of work, of which nothing is kept.

    Raises UserError for an export, for CUDA with another engine than torch, for a precision that the engine lacks and
    where a package is missing; BeyondLimit where the engine that was asked for computes something else.
    """
    if predictor.is_export:
        raise UserError("an export has an engine and a precision of its own", where="engine", got=engine)
    if predictor.device.type != "cpu" and engine in _RUNTIMES:
        raise UserError(f"{engine} runs on the processor", where="device", got=predictor.device, wanted="cpu")
    model = predictor.model
    if precision == "float32" and engine == "torch":
        return predictor
    if engine not in ("torch", "auto") and precision not in _RUNTIMES[engine][1]:
        wanted = ", ".join(_RUNTIMES[engine][1])
        raise UserError(f"this precision is not one of {engine}", where="precision", got=precision, wanted=wanted)
    plain = TorchEngine(model if precision == "float32" else _bfloat16(model))
    if engine == "torch" or (engine == "auto" and predictor.device.type != "cpu"):
        return _replaced(predictor, plain)
    if engine != "auto":
        made, _ = make_engine(model, predictor.config, engine, precision)
        return _replaced(predictor, made)
    best: tuple[float, Engine] = (1.0, plain)
    if precision != "float32":
        best = (_compared(model, plain, predictor.config).speedup, plain)  # it is what was asked for: never left out
    for name, (_, known) in _RUNTIMES.items():
        if precision not in known:
            continue
        try:
            made, report = make_engine(model, predictor.config, name, precision)
        except (UserError, BeyondLimit) as error:
            log.info("engine=auto leaves %s out: %s", name, str(error).splitlines()[0])
            continue
        log.info("engine=auto: %s is %.2f times as fast as torch in float32", name, report.speedup)
        best = max(best, (report.speedup, made), key=lambda pair: pair[0])
    log.info("engine=auto takes %s", best[1].name)
    return _replaced(predictor, best[1])


def make_engine(
    model: ImageModel, config: FolderConfig, name: str, precision: Precision = "float32"
) -> tuple[Exported, Parity]:
    """An engine for images that are resized already, and its comparison. Raises as `with_engine` does."""
    kind = _RUNTIMES[name][0]
    shipment = Shipment(
        kind=kind, takes="resized", precision=precision, model=config, card="", versions={"vitral": __version__}
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = open_export(write_file(Path(folder), model, shipment, None))
        return engine, _judged(model, engine, config, precision)


def _judged(model: ImageModel, engine: Engine, config: FolderConfig, precision: str) -> Parity:
    report = _compared(model, engine, config)
    check(report, precision, None, None)
    return report


def _compared(model: ImageModel, engine: Engine, config: FolderConfig) -> Parity:
    with torch.inference_mode():
        return compare(model, engine, config, builtin_images(_IMAGES, config), "built-in images")


def _bfloat16(model: ImageModel) -> ImageModel:
    return copy.deepcopy(model).bfloat16()


def _replaced(predictor: Predictor, engine: Engine) -> Predictor:
    if isinstance(engine, TorchEngine):
        return Predictor(engine.model, predictor.config, str(predictor.device))
    return Predictor(predictor.model, predictor.config, "cpu", engine)
