"""Exports of models that write text: the same texts by ONNX Runtime as by torch."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.text_models import image_writer, save, text_writer
from vitral.cli.main import main
from vitral.export.recurrent_graph import recurrent_encoder
from vitral.models.lstm import RecurrentSeq2Seq
from vitral.models.search_config import SearchConfig
from vitral.text_engines import OnnxWriter
from vitral.text_predictor import TextPredictor, load_any

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TEXTS = ["abcde", "e", "abcdeabcdeab", "dd"]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"layers": 2, "bidirectional": False, "attention": "none"}, {"layers": 2, "attention": "additive"},
        {"cell": "rnn", "layers": 2},
    ],
)  # fmt: skip
def test_a_recurrent_encoder_equals_torch_with_padding(options: dict[str, Any]) -> None:
    import onnxruntime

    predictor = text_writer("lstm_tiny", **options)
    model = predictor.model
    assert isinstance(model, RecurrentSeq2Seq)
    proto, names = recurrent_encoder(onnx, copy.deepcopy(model).requires_grad_(False))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    source_BS = predictor.preprocess(TEXTS)
    found = dict(zip(names, session.run(names, {"source": source_BS.numpy()}), strict=True))
    with torch.no_grad():
        memory = model.encode(source_BS)
        state = model.start(memory)
    for place, cell_LRD in enumerate(state.cells):
        torch.testing.assert_close(
            torch.from_numpy(found[f"past_cell_{place}"]), cell_LRD.transpose(0, 1), rtol=1e-5, atol=1e-5
        )
    assert ("memory_k_0" in found) == bool(state.memory_kv)
    for k_BMD, v_BMX in state.memory_kv:
        assert memory.attend_BM is not None
        assert torch.equal(torch.from_numpy(found["memory_attend"]), memory.attend_BM)
        for name, expected in (("memory_k_0", k_BMD), ("memory_v_0", v_BMX)):
            own = memory.attend_BM[..., None]
            got = torch.from_numpy(found[name])
            torch.testing.assert_close(got * own, expected * own, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer_tiny", "lstm_tiny", "transformer", "ctc"])
def test_an_export_writes_what_the_model_writes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    is_text = kind.endswith("tiny")
    predictor = text_writer(kind, scale=2.0) if is_text else image_writer(kind)
    save(predictor, tmp_path / "model")
    out = tmp_path / "onnx"
    assert main(["export", str(tmp_path / "model"), "format=onnx", f"out={out}", "samples=5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agreement"] == {"greedy": 1.0, "beam 2": 1.0}
    assert report["max_difference"] < 1e-4
    assert ("decoder_step.onnx" in report["files"]) == (kind != "ctc")
    theirs = load_any(out)
    assert isinstance(theirs, TextPredictor)
    assert isinstance(theirs.writer, OnnxWriter)
    noise_NHW = torch.rand(2, 8, 40, generator=torch.Generator().manual_seed(1)).numpy()
    sources: list[Any] = [*TEXTS] if is_text else [*noise_NHW]
    kinds: list[dict[str, Any]] = [{"allowed": "ace"}, {"search": "beam", "beams": 3, "n_best": 3, "allowed": "abd"}]
    kinds += [{"search": "greedy"}, {"search": "beam", "beams": 3, "n_best": 3}]
    for keys in kinds + ([{"search": "sample", "seed": 3, "n_best": 2}] if kind != "ctc" else []):
        search = SearchConfig(max_length=10, **keys)
        for one, other in zip(predictor.write(sources, search), theirs.write(sources, search), strict=True):
            assert [each.tokens for each in one] == [each.tokens for each in other]
            assert "allowed" not in keys or all(set(each.text) <= set(keys["allowed"]) for each in other)
            for mine, its in zip(one, other, strict=True):
                assert mine.score == pytest.approx(its.score, abs=1e-4)
    if is_text:
        assert main(["predict", str(out), "--text", "abc"]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == predictor.write(["abc"])[0][0].text
    assert main(["eval", str(out), "data.source=reverse"]) == 2
    (out / "encoder.onnx").write_bytes(b"x")
    assert main(["predict", str(out), "--text", "abc"]) == 2


@pytest.mark.parametrize("keys", ["format=pt2", "format=openvino", "format=hf", "format=timm", "precision=int8"])
def test_other_formats_get_one_message(keys: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(text_writer(), tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "format=onnx", f"out={tmp_path / 'out'}", keys]
    assert main([word for word in words if word != "format=onnx" or keys.startswith("precision")]) == 2
    assert capsys.readouterr().err.count("format=onnx in float32 only") == 1
    assert not (tmp_path / "out").exists()
