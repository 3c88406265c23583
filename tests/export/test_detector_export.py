"""Exported detectors find what the model finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vitral
from tests.detectors import detector_folder
from tests.objectives.scenes import small_detector
from vitral.cli.main import main
from vitral.engines import onnx_session
from vitral.errors import UserError
from vitral.export.config import ExportOptions
from vitral.export.suppression import NAME, append_suppression
from vitral.models.select_boxes import select_boxes
from vitral.run.command_options import ExportCommandOptions
from vitral.run.export import export_model
from vitral.tasks.detection import Detection, DetectionState
from vitral.tasks.registry import TASKS
from vitral.weights.folder import FolderConfig

PACKAGES = {"onnx": "onnxruntime", "pt2": "torch", "openvino": "openvino"}


def test_names_of_the_results_of_a_graph() -> None:
    names = {name: task.export_names for name, task in TASKS.items()}
    assert names["detection"] == ("boxes_scores",)
    assert names["classification"] == names["regression"] == ("logits", "scores")
    assert names["features"] == ("features",)


@pytest.mark.slow
@pytest.mark.parametrize("second_stage", [0, 8])
@pytest.mark.parametrize("kind", ["onnx", "pt2", "openvino"])
def test_an_export_finds_what_the_model_finds(
    kind: str, second_stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGES[kind])
    monkeypatch.chdir(tmp_path)
    detector_folder(Path("model"), sure=4.0, second_stage=second_stage)
    assert main(["export", "model", f"format={kind}", "out=export", "images=50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["agreement"]) == (50, 1.0)
    assert found["answers"]["detections"] > 50
    assert found["answers"]["pixels_apart"] < 0.5
    assert found["answers"]["scores_apart"] < 1e-3
    draw = np.random.default_rng(0)
    for number, size in enumerate([(64, 64), (40, 90)]):
        Image.fromarray(draw.integers(0, 256, size).astype(np.uint8)).save(f"{number}.png")
    mine, theirs = (vitral.load(name, "cpu").predict(["0.png", "1.png"]) for name in ("model", "export"))
    for one, other in zip(mine, theirs, strict=True):
        shares = [any(alike(each, its) for its in other["detections"]) for each in one["detections"]]
        assert np.mean(shares) > 0.95, "of two boxes with nearly equal scores either may suppress the other"


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Half a pixel, a thousandth of a score, of one class."""
    apart = np.abs(np.subtract(one["box"], other["box"])).max()
    return bool(one["index"] == other["index"] and apart < 0.5 and abs(one["score"] - other["score"]) < 1e-3)


def suppressed(kind: str, folder: Path, dense_BAX: Tensor, **state: Any) -> Tensor:
    """Detections of a graph that does nothing but suppress, in a runtime."""
    onnx = pytest.importorskip("onnx")
    file, count = folder / f"{len(list(folder.iterdir()))}.onnx", dense_BAX.shape[2]
    sides = ["batch", *dense_BAX.shape[1:]]
    first, last = (onnx.helper.make_tensor_value_info(name, 1, sides) for name in ("images", "dense"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["images"], ["dense"])], "g", [first], [last])
    c = small_detector(image_size=(48, 32), strides=(8,), num_classes=count - 4).config
    config = FolderConfig.model_construct(architecture=c, task_state=DetectionState(**state).model_dump())
    append_suppression(onnx, graph, config)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))
    if kind == "onnx":
        (found,) = onnx_session(file).run([NAME], {"images": dense_BAX.numpy()})
    else:
        openvino = pytest.importorskip("openvino")
        compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled([dense_BAX.numpy()])[0].copy()
    return torch.from_numpy(found)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_graph_suppresses_as_the_model_does(kind: str, tmp_path: Path) -> None:
    """Random boxes, many of which overlap; also more candidates than 1,000, equal scores, and nothing at all."""
    pytest.importorskip(PACKAGES[kind])
    draw = torch.Generator().manual_seed(0)
    low_BA2, side_BA2 = (torch.rand(3, 24, 2, generator=draw) * size for size in (30, 20))
    for classes, state in ((2, {"most": 5}), (2, {"most": 48, "max_iou": 0.3}), (60, {"min_score": 0.0})):
        scores_BAC = torch.rand(3, 24, classes, generator=draw)
        scores_BAC[1] = (scores_BAC[1] * 4).round() / 4  # equal ones
        scores_BAC[2] = 0
        dense_BAX = torch.cat([low_BA2, low_BA2 + side_BA2, scores_BAC], dim=2)
        kept = DetectionState(**state)  # type: ignore[arg-type]
        expected_BK6 = select_boxes(dense_BAX, kept.min_score, kept.max_iou, kept.most)
        found_BK6 = suppressed(kind, tmp_path, dense_BAX, **state)
        torch.testing.assert_close(found_BK6[::2], expected_BK6[::2])
        torch.testing.assert_close(found_BK6[1, :, 4], expected_BK6[1, :, 4], msg="equal scores in any order")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_export_that_suppresses(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGES[kind])
    monkeypatch.chdir(tmp_path)
    detector_folder(Path("model"), sure=4.0)
    assert main(["export", "model", f"format={kind}", "nms=true", "out=export", "images=9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["agreement"], found["behind_resize"] < 1e-3) == (1.0, True)
    assert any("[batch, 100, 6]" in note for note in found["notes"])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90)).astype(np.uint8)).save("0.png")
    model, export = (vitral.load(name, "cpu") for name in ("model", "export"))
    (mine,), (theirs,) = model.predict("0.png"), export.predict("0.png")
    assert len(mine["detections"]) == len(theirs["detections"]) > 10
    shares = [any(alike(each, its) for its in theirs["detections"]) for each in mine["detections"]]
    assert np.mean(shares) > 0.95, "of two boxes with nearly equal scores either may suppress the other"
    assert main(["predict", "export", "0.png", "threshold=0.5"]) == 0
    assert main(["predict", "export", "0.png", "threshold=0.01"]) == 2
    assert "this export drops boxes of lower scores itself" in capsys.readouterr().err


def test_a_graph_gives_no_more_detections_than_there_are_boxes() -> None:
    c = small_detector(second_stage=8, proposals=6).config
    assert Detection(("cat", "dog"), state={}).suppressed_state(c)["most"] == 12
    dense = small_detector(image_size=(8, 8), strides=(8,)).config
    assert Detection(("cat", "dog"), state={}).suppressed_state(dense)["most"] == 2


def test_suppression_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch has no operator of non-maximum suppression"):
        ExportOptions(format="pt2", out="x", nms=True)
    with pytest.raises(ValueError, match="nms has no effect with format=hf"):
        ExportOptions(format="hf", out="x", nms=True)
    with pytest.raises(UserError, match="there are no boxes to suppress"):
        export_model("vitral-digits", ExportCommandOptions(format="onnx", out=str(tmp_path / "x"), nms=True))
    with pytest.raises(UserError, match="these outputs are no detections"):
        Detection(("a",), state={"suppressed": True}).compact(torch.zeros(1, 80, 5))
