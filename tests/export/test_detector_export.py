"""Exported detectors find what the model finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitral
from tests.detectors import detector_folder
from vitral.cli.main import main
from vitral.tasks.registry import TASKS

PACKAGES = {"onnx": "onnxruntime", "pt2": "torch", "openvino": "openvino"}


def test_names_of_the_results_of_a_graph() -> None:
    names = {name: task.export_names for name, task in TASKS.items()}
    assert names["detection"] == ("boxes_scores",)
    assert names["classification"] == names["regression"] == ("logits", "scores")
    assert names["features"] == ("features",)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2", "openvino"])
def test_an_export_finds_what_the_model_finds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGES[kind])
    monkeypatch.chdir(tmp_path)
    detector_folder(Path("model"), sure=4.0)
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
