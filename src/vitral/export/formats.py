"""One captured graph to a file of each format, with what it says of itself inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitral.engines import FILES, METADATA, ExportMetadata
from vitral.export.graph import capture, quiet
from vitral.export.quantize import quantize
from vitral.export.suppression import append_suppression
from vitral.models.model import ImageModel
from vitral.optional_imports import require

OPSET = 20
# Protocol buffers end at 2 GB: larger weights go beside the file.
_INSIDE = 1_800_000_000

Calibration = Callable[[], Iterable[Tensor]]


def write_file(folder: Path, network: ImageModel, metadata: ExportMetadata, calibration: Calibration | None) -> Path:
    """The file of this metadata in the folder. calibration: batches of the graph's input, where int8 is static."""
    path = folder / FILES[metadata.kind]
    _WRITERS[metadata.kind](path, network, metadata, calibration)
    return path


def metadata_json(metadata: ExportMetadata) -> str:
    """What goes into the file."""
    return json.dumps(metadata.model_dump(mode="json"), ensure_ascii=False)


def _write_pt2(path: Path, network: ImageModel, metadata: ExportMetadata, calibration: Calibration | None) -> None:
    assert calibration is None
    program, _ = capture(network, metadata)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None  # a pickle in the archive, which nothing needs
    with quiet():
        torch.export.save(program, path, extra_files={f"{METADATA}.json": metadata_json(metadata)})


def _write_onnx(path: Path, network: ImageModel, metadata: ExportMetadata, calibration: Calibration | None) -> None:
    onnx = require("onnx", "export")
    require("onnxscript", "export")
    program, outputs = capture(network, metadata)
    with quiet():
        exported: Any = torch.onnx.export(
            program, (), dynamo=True, input_names=["images"], output_names=outputs, opset_version=OPSET, verbose=False
        )
        proto = exported.model_proto
    # What the exporter notes of inner shapes keeps ONNX Runtime from quantizing, and only costs space.
    del proto.graph.value_info[:]
    names = (() if metadata.batch else ("batch",)) + (("height", "width") if metadata.takes == "pixels" else ())
    _name_open_sides(proto.graph, names)
    _keep_zeros(onnx, proto.graph)
    write_proto(onnx, proto, path)
    if metadata.precision == "int8":
        whole = path.rename(path.with_name("whole.onnx"))
        quantize(whole, path, calibration() if calibration else None)
        for left in path.parent.glob("whole.onnx*"):
            left.unlink()
        proto = onnx.load(str(path))
    if metadata.nms:
        append_suppression(onnx, proto.graph, metadata.model)
    onnx.helper.set_model_props(proto, {METADATA: metadata_json(metadata)})
    proto.producer_name = METADATA
    write_proto(onnx, proto, path)


def _keep_zeros(onnx: Any, graph: Any) -> None:
    """A Max between zeros that are padded and the MaxPool behind them. ONNX Runtime would make them the pool's own
    padding, which never wins; but zeros do, where all else is negative (BiT)."""
    pads = {node.output[0]: place for place, node in enumerate(graph.node) if node.op_type == "Pad"}
    pools = [node for node in graph.node if node.op_type == "MaxPool" and node.input[0] in pads]
    for pool in reversed(pools):
        padded, least, kept = pool.input[0], f"{pool.name}_least", f"{pool.name}_kept"
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(np.finfo(np.float32).min), least))
        graph.node.insert(pads[padded] + 1, onnx.helper.make_node("Max", [padded, least], [kept]))
        pool.input[0] = kept


def _name_open_sides(graph: Any, names: tuple[str, ...]) -> None:
    """What is left open by its name instead of a symbol like s34."""
    open_sides = [side for side in graph.input[0].type.tensor_type.shape.dim if side.dim_param]
    name_of = {side.dim_param: name for side, name in zip(open_sides, names, strict=True)}
    for value in (*graph.input, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = name_of[side.dim_param]


def write_proto(onnx: Any, proto: Any, path: Path) -> None:
    """An ONNX file; weights that are too many for it go beside it."""
    beside = proto.ByteSize() > _INSIDE
    where: dict[str, Any] = {"location": f"{path.name}.data"} if beside else {}
    onnx.save(proto, str(path), save_as_external_data=beside, **where)


def _write_openvino(path: Path, network: ImageModel, metadata: ExportMetadata, calibration: Calibration | None) -> None:
    """By way of an ONNX file: its reader takes int8 and, unlike the converter from torch, sends no telemetry."""
    require("openvino", "openvino")
    between = path.with_name("between.onnx")
    _write_onnx(between, network, metadata, calibration)
    openvino_of(between, path, metadata)
    for left in path.parent.glob("between.onnx*"):
        left.unlink()


def openvino_of(between: Path, path: Path, metadata: ExportMetadata) -> None:
    """The OpenVINO file of an ONNX file."""
    openvino = require("openvino", "openvino")
    graph = openvino.Core().read_model(str(between))
    graph.set_rt_info(metadata_json(metadata), [METADATA])
    openvino.save_model(graph, str(path), compress_to_fp16=False)


_WRITERS: dict[str, Callable[[Path, ImageModel, ExportMetadata, Calibration | None], None]] = {
    "onnx": _write_onnx, "pt2": _write_pt2, "openvino": _write_openvino,
}  # fmt: skip
