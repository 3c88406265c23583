"""int8 on processors without VNNI, whose pair sums of products saturate at 16 bits (vpmaddubsw), emulated in NumPy.

Shape letters: N rows of activations, K inputs of a layer, S outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.test_exporter import need
from tests.helpers import random_model
from vitral import export_check
from vitral.cli.main import main
from vitral.data.config import DataConfig
from vitral.data.digits import open_digits
from vitral.engines import OnnxEngine
from vitral.errors import UserError
from vitral.predictor import Predictor, load
from vitral.weights.find_model import load_model

INT16 = np.iinfo(np.int16)


def saturating(a_NK: Any, b_KS: Any, a_zero: Any = 0, b_zero: Any = 0) -> Any:
    """Integer product as AVX2 kernels compute it: unsigned times signed, neighbors along K added with saturation."""
    a_NK, b_KS = np.asarray(a_NK), np.asarray(b_KS)
    assert a_NK.dtype == np.uint8
    assert b_KS.dtype == np.int8
    odd = a_NK.shape[-1] % 2
    a_NK = np.pad(a_NK.astype(np.int32), [(0, 0)] * (a_NK.ndim - 1) + [(0, odd)])
    b_KS = np.pad(b_KS.astype(np.int32), [(0, odd), (0, 0)])
    total = np.zeros((*a_NK.shape[:-1], b_KS.shape[1]), np.int32)
    for k in range(0, a_NK.shape[-1], 2):
        pair = a_NK[..., k, None] * b_KS[k] + a_NK[..., k + 1, None] * b_KS[k + 1]
        total += np.clip(pair, INT16.min, INT16.max)
    rows = a_NK.sum(-1, keepdims=True)
    return (total - np.int32(a_zero) * b_KS.sum(0) - rows * np.int32(b_zero)).astype(np.int32)


def weights_of(path: Path) -> dict[str, Any]:
    """The 8-bit matrices of a file, K x S or S x K."""
    onnx = pytest.importorskip("onnx")
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(str(path)).graph.initializer}
    found = {name: array for name, array in arrays.items() if array.dtype in (np.int8, np.uint8) and array.ndim == 2}
    assert found
    return found


def largest_pair_sum(weights: Any) -> int:
    """Of activations from 0 to 255 and any two weights of the matrix: whatever order a kernel packs them in."""
    flat = weights.astype(np.int64).ravel()
    highest, lowest = np.sort(flat)[-2:].clip(min=0).sum(), np.sort(flat)[:2].clip(max=0).sum()
    return int(255 * max(highest, -lowest))


def test_the_emulation_saturates_where_the_instruction_does() -> None:
    ones = np.full((1, 3), 255, np.uint8)
    assert saturating(ones, np.full((3, 1), 127, np.int8))[0, 0] == 32767 + 255 * 127  # not 3 * 255 * 127
    assert saturating(ones, np.full((3, 1), 64, np.int8))[0, 0] == 3 * 255 * 64
    assert saturating(ones, np.full((3, 1), -64, np.int8), 255)[0, 0] == 0
    draw = np.random.default_rng(0)
    a_NK, b_KS = draw.integers(0, 256, (5, 9), np.uint8), draw.integers(-64, 65, (9, 4), np.int8)
    exact = (a_NK.astype(np.int64) - 100) @ b_KS.astype(np.int64)
    np.testing.assert_array_equal(saturating(a_NK, b_KS, 100), exact)


@pytest.mark.parametrize(("quantize", "takes"), [("dynamic", "resized"), ("static", "pixels")])
def test_no_pair_of_stored_weights_can_saturate(quantize: str, takes: str) -> None:
    need("onnx")
    random_model(Path("model"), ("cat", "dog"), mlp="swiglu", width=32)
    for model in ("model", "vitral-digits"):
        words = ["format=onnx", "precision=int8", f"quantize={quantize}", f"takes={takes}", "min_agreement=0.5"]
        assert main(["export", model, *words, f"out={model}-there"]) == 0
        for weights in weights_of(Path(f"{model}-there/model.onnx")).values():
            assert weights.dtype == np.int8
            assert largest_pair_sum(weights) <= INT16.max
            assert 1 < np.abs(weights).max() <= 64


@pytest.mark.parametrize("bits", [7, 8])
def test_int8_gives_the_same_classes_on_processors_that_saturate(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole graph in NumPy with saturating products; with weights of 8 bits the same would be far from the model,
    so the emulation and the comparison on another processor can tell."""
    need("onnx")
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from onnxruntime import quantization

    class MatMulInteger(OpRun):
        def _run(self, a: Any, b: Any, a_zero: Any = 0, b_zero: Any = 0) -> Any:
            return (saturating(a, b, a_zero, b_zero),)

    if bits == 8:
        real = quantization.quantize_dynamic
        monkeypatch.setattr(quantization, "quantize_dynamic", lambda *a, **k: real(*a, **{**k, "reduce_range": False}))
    words = ["format=onnx", "precision=int8", "takes=resized", "data=digits", "images=360"]
    assert main(["export", "vitral-digits", *words, "out=there"]) == 0
    network, config = load_model("vitral-digits")
    predictor = Predictor(network, config, "cpu")
    test = open_digits(DataConfig()).splits["test"]
    images_BCHW = torch.stack([predictor.preprocess(test.read(place).permute(1, 2, 0).numpy()) for place in range(360)])
    with torch.inference_mode():
        expected_NS = network(images_BCHW).numpy()
    graph = ReferenceEvaluator("there/model.onnx", new_ops=[MatMulInteger])
    runs: list[Any] = [
        graph.run(["logits"], {"images": images_BCHW[start : start + 60].numpy()}) for start in range(0, 360, 60)
    ]
    found_NS = np.concatenate([each[0] for each in runs])
    agreement = float((found_NS.argmax(1) == expected_NS.argmax(1)).mean())
    distance = float(np.abs(found_NS - expected_NS).max())
    monkeypatch.setattr(export_check, "instruction_sets", lambda: ["avx2", "fma"])

    def logits(_: Any, images: torch.Tensor) -> torch.Tensor:
        found: Any = graph.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(found[0])

    monkeypatch.setattr(OnnxEngine, "logits", logits)
    if bits == 7:
        assert agreement >= 0.99
        assert distance < 0.5
        load("there")
    else:
        assert distance > 1
        proof = json.loads(Path("there/proof.json").read_text(encoding="utf-8"))
        if proof["difference"] > 1:  # this processor saturates too, and the export was compared so
            load("there")
        else:
            with pytest.raises(UserError, match="not the model on this processor"):
                load("there")
