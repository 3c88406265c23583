"""Engines that compute logits: torch, ONNX Runtime, OpenVINO, and files exported for them.

An export is one file (OpenVINO's has a .bin beside it) that says itself what it is: class names, preprocessing and
provenance of the model folder travel inside.

Shape letters: B batch, C channels, H W height and width of an image, h w those of the model, S classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from vitral.config import Config, build
from vitral.data.image_spec import ImageSpec
from vitral.data.resize import fit_image
from vitral.errors import UserError
from vitral.files import JSON_BYTES, explained, parse_json, read_json, read_text, require_regular
from vitral.models.model import ImageModel
from vitral.optional_imports import require
from vitral.pt2_archive import check_archive
from vitral.weights.digests import CONFIG, KEY, take_digests, verify_text, verify_weights
from vitral.weights.folder import FolderConfig, bundled

Kind = Literal["onnx", "pt2", "openvino"]
Takes = Literal["pixels", "resized"]
Precision = Literal["float32", "bfloat16", "int8"]
FILES: dict[str, str] = {"onnx": "model.onnx", "pt2": "model.pt2", "openvino": "model.xml"}
_KINDS = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}
METADATA = "vitral"


class ExportMetadata(Config):
    """What an export says of itself, as JSON inside its file and as config.json beside it.

    takes "pixels": uint8 [B, H, W, C] of any size, resized inside; "resized": float32 [B, C, h, w] in [0,1]. batch: the
    one B that the graph takes; None: any. nms: a detector's graph that ends with non-maximum suppression.
    instruction_sets: of the processor where it was compared with the model;
    empty: not recorded.
    """

    format: Literal["vitral-export-1"] = "vitral-export-1"
    kind: Kind
    takes: Takes
    precision: Precision
    batch: int | None = None
    nms: bool = False
    model: FolderConfig
    card: str
    versions: dict[str, str]
    instruction_sets: list[str] = Field(default_factory=list)


class Engine(Protocol):
    """Something that computes logits. name: torch, onnxruntime, openvino or pt2; precision: float32, bfloat16 or int8;
    takes: see `ExportMetadata`."""

    name: str
    precision: str
    takes: Takes

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, S] float32, of the images that `takes` says."""
        ...


class TorchEngine:
    """The model itself, as `models` builds it."""

    name = "torch"
    takes: Takes = "resized"

    def __init__(self, model: ImageModel) -> None:
        self.model, self.precision = model, str(model.dtype).removeprefix("torch.")

    def logits(self, images: Tensor) -> Tensor:
        """Logits on the model's device."""
        return self.model(images.to(next(self.model.parameters()).device)).float()


class Exported(ABC):
    """An exported file in a runtime, on the CPU. text: the metadata stored in the file, as JSON."""

    name: str

    def __init__(self, text: str | None, path: Path) -> None:
        self.metadata = _read_metadata(text, path)
        self.takes: Takes = self.metadata.takes
        self.precision: str = self.metadata.precision

    def logits(self, images: Tensor) -> Tensor:
        """Logits, of as many runs as a fixed batch needs: the last one is filled up with zeros."""
        count, size = len(images), self.metadata.batch
        if size is not None:
            images = torch.cat([images, images.new_zeros(-count % size, *images.shape[1:])])
        with explained("the export cannot be computed", "model"):  # it is damaged, or memory is short
            return torch.cat([self._run(portion) for portion in images.split(size or max(count, 1))])[:count]

    @abstractmethod
    def _run(self, images: Tensor) -> Tensor: ...


def onnx_session(path: Path) -> Any:
    """ONNX Runtime's session of a file, on the processor. Raises UserError for a file that it cannot read."""
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Else its threads look for work without a pause for a while after each run, and take the processor from those that
    # decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with explained("not readable by ONNX Runtime", str(path)):
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxEngine(Exported):
    """An ONNX file in ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, path: Path) -> None:
        self.session = onnx_session(path)
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        super().__init__(self.session.get_modelmeta().custom_metadata_map.get(METADATA), path)

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run([self.output], {self.input: images.numpy()})[0])


class OpenvinoEngine(Exported):
    """An OpenVINO model, in the precision that it was exported for and no other."""

    name = "openvino"

    def __init__(self, path: Path) -> None:
        openvino = require("openvino", "openvino")
        core = openvino.Core()
        with explained("not readable by OpenVINO", str(path)):
            network = core.read_model(str(path))
        text = network.get_rt_info([METADATA]).astype(str) if network.has_rt_info([METADATA]) else None
        super().__init__(text, path)
        hints = {
            # Without it a processor with bfloat16 uses it automatically: logits are then off by 0.1.
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with explained("not computable by OpenVINO", str(path)):
            self.compiled = core.compile_model(network, "CPU", hints)

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.compiled([images.numpy()])[self.compiled.output(0)].copy())


class Pt2Engine(Exported):
    """A program of `torch.export`, run by torch."""

    name = "pt2"

    def __init__(self, path: Path) -> None:
        check_archive(path)
        files = {f"{METADATA}.json": ""}
        with explained("not readable by torch.export", str(path)):
            self.program: Callable[[Tensor], tuple[Tensor, ...]] = torch.export.load(path, extra_files=files).module()
        super().__init__(files[f"{METADATA}.json"] or None, path)

    def _run(self, images: Tensor) -> Tensor:
        return self.program(images)[0]


_ENGINES: dict[str, Callable[[Path], Exported]] = {"onnx": OnnxEngine, "openvino": OpenvinoEngine, "pt2": Pt2Engine}


def logits_of(engine: Engine, spec: ImageSpec, images: Sequence[Tensor]) -> Tensor:
    """Logits [B, S] of uint8 images [C, H, W], which have one size where the engine takes pixels."""
    if engine.takes == "resized":
        inputs = torch.stack([fit_image(image, spec.image_size, spec) for image in images])
    else:
        inputs = torch.stack(list(images)).permute(0, 2, 3, 1).contiguous()
    return engine.logits(inputs).float().cpu()


def find_export(model: str) -> Path | None:
    """Return the file of an export, if MODEL is one or a folder written by `vitral export`; else None."""
    if model in bundled():
        return None  # whatever else is called so here
    path = Path(model).expanduser()
    if path.is_file():
        return path if path.suffix in _KINDS else None
    try:
        tree = read_json(path / CONFIG)
    except UserError:
        return None
    if not isinstance(tree, dict) or tree.get("format") != "vitral-export-1":
        return None
    file = path / FILES.get(str(tree.get("kind")), "?")
    if not file.is_file():
        raise UserError("the export is not complete", where=model, expected=file.name)
    return file


def open_export(path: Path) -> Exported:
    """The engine of an exported file. Raises UserError for one that is damaged, not ours, or needs an extra."""
    for file in parts_of(path):
        require_regular(file)
    return _ENGINES[_KINDS[path.suffix]](path)


def parts_of(path: Path) -> list[Path]:
    """The file of an export, and what lies beside it under its name: weights of a graph in a file of their own."""
    beside = (file for file in path.parent.iterdir() if file.name.startswith(f"{path.stem}.") and not file.is_dir())
    return sorted({path, *beside})


def verify_export(path: Path) -> None:
    """Raise DamagedFile where the files of an export have changed since it was written. Without its config.json beside
    it, or with one that has no digests, nothing is compared."""
    config = path.parent / CONFIG
    if not config.exists():
        return
    text = read_text(config, JSON_BYTES)
    tree = parse_json(text, where=str(config))
    if not isinstance(tree, dict) or tree.get("format") != "vitral-export-1" or KEY not in tree:
        return
    found = tree[KEY] if isinstance(tree[KEY], dict) else {}
    names = [name for name in found if name.startswith(f"{path.stem}.") and Path(name).name == name]
    digests = take_digests(tree, str(config), path.name, *names) or {}
    verify_text(text, digests[CONFIG], config)
    for name in sorted({path.name, *names}):
        verify_weights(path.parent / name, digests[name])


def _read_metadata(text: str | None, path: Path) -> ExportMetadata:
    where = str(path)
    if text is None:
        hint = "`vitral export MODEL format=... out=DIR` writes files that say it."
        raise UserError("this file doesn't say its classes and preprocessing", where=where, hint=hint)
    return build(ExportMetadata, parse_json(text, where=where), where=where)
