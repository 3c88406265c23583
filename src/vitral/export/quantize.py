"""Quantize dense layers of ONNX models to 8-bit integers, with dynamic or static activation scales.

dynamic: each batch's own least and greatest value; static: those of calibration images, once. Products of two
activations, as in attention and in the resize, stay in float32.

Weights have 7 bits, -64 to 64. Processors without VNNI add pairs of unsigned times signed 8-bit products in saturating
16-bit registers (vpmaddubsw), where 255 * 127 * 2 does not fit; 255 * 64 * 2 = 32640 does. So no sum saturates on any
processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from vitral.export.graph import quiet
from vitral.optional_imports import require

_LAYERS = ["MatMul", "Gemm"]


def quantize(source: Path, target: Path, batches: Iterable[Tensor] | None) -> None:
    """Write `target`, `source` in int8: static with the batches of its input, dynamic without."""
    require("onnxruntime", "export")
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = {
        "op_types_to_quantize": _LAYERS, "weight_type": quantization.QuantType.QInt8, "per_channel": True,
        "reduce_range": True, "extra_options": {"MatMulConstBOnly": True},
    }  # fmt: skip
    with quiet():
        if batches is None:
            quantization.quantize_dynamic(str(source), str(target), **settings)
            return

        inputs = ({"images": batch.numpy()} for batch in batches)

        class Reader(quantization.CalibrationDataReader):
            """One batch after the other."""

            def get_next(self) -> Any:
                """The next input, or None."""
                return next(inputs, None)

        settings["activation_type"] = quantization.QuantType.QUInt8
        quantization.quantize_static(str(source), str(target), Reader(), **settings)
