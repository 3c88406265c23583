"""Detectors from data to model folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from signal import SIGINT, raise_signal
from typing import Any

import pytest
import torch

import vitral
from tests.helpers import random_model
from tests.objectives.scenes import SMALL, write_scenes
from vitral.data.config import DataSource
from vitral.errors import Interrupted, UserError
from vitral.objectives.detection import Detection
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.train import run
from vitral.structs import Batch, StepOutput
from vitral.weights.tensors import load_tensors


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(Path("scenes"))


def trained(out: str, **more: Any) -> dict[str, Any]:
    keys = {**SMALL, "data": "scenes", "objective.level_side": 3.0, **more, "out": out}
    return run(load_config("digits_scenes", keys))


def state(out: str) -> dict[str, torch.Tensor]:
    return load_tensors(Path(out) / "model/model.safetensors")[0]


def test_a_detector_is_trained_saved_evaluated_and_predicts() -> None:
    found = trained("a", report=True)
    assert found["split"] == "test"
    assert found["primary"]["name"] == "ap"
    config = json.loads(Path("a/model/config.json").read_text(encoding="utf-8"))
    assert config["task"] == "detection"
    assert config["id2label"] == {"0": "green", "1": "red"}
    assert config["preprocessing"]["resize_mode"] == "pad"
    assert {"min_score", "max_iou", "most", "threshold"} <= config["task_state"].keys()
    assert Path("a/report.html").exists()
    again = evaluate("a", EvalOptions(data=DataSource(path="scenes")))
    assert again["ap"] == pytest.approx(found["ap"], abs=1e-6)
    assert again["count"] == 6
    lines = list(csv.reader(Path("a/predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert lines[0] == ["image", "label", "score", "x0", "y0", "x1", "y1"]
    predictor = vitral.load("a", device="cpu")
    predictor.task = replace(predictor.task, state={"threshold": 0.05})
    (row,) = predictor.predict("scenes/test1.png")
    assert row["image"] == "scenes/test1.png"
    for each in row["detections"]:  # of 64 x 64 pixels, twice the model's
        assert all(0 <= value <= 64 for value in each["box"])
    assert max((value for each in row["detections"] for value in each["box"]), default=64) > 32


def test_a_stopped_run_goes_on_as_if_it_had_not(monkeypatch: pytest.MonkeyPatch) -> None:
    trained("whole", **{"train.steps": 4})
    forward = Detection.forward

    def stops(self: Detection, batches: Mapping[str, Batch], step: int) -> StepOutput:
        if step == 2:
            raise_signal(SIGINT)
        return forward(self, batches, step)

    with monkeypatch.context() as changed:
        changed.setattr(Detection, "forward", stops)
        with pytest.raises(Interrupted):
            trained("half", **{"train.steps": 4})
    trained("half", **{"train.steps": 4, "resume": True})
    for name, tensor in state("whole").items():
        assert torch.equal(tensor, state("half")[name])


def test_micro_batches_give_the_same_weights() -> None:
    trained("whole")
    trained("cut", **{"train.micro_batch": 3})
    for name, tensor in state("whole").items():
        assert torch.allclose(tensor, state("cut")[name], atol=1e-3), name


def test_an_encoder_is_where_a_detector_starts() -> None:
    """Also without the name of a detector: it has the encoder's shape."""
    folder = random_model(
        Path("vit"), in_channels=3, image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_dim=16
    )
    keys = {key: None if key.startswith("model.") else value for key, value in SMALL.items()}
    keys |= {
        "model.name": "auto",
        "model.strides": [4, 8],
        "model.pyramid_width": 8,
        "init": str(folder),
        "optim.lr": 1e-30,
    }
    trained("b", **keys)
    source = load_tensors(folder / "model.safetensors")[0]
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"):
        assert torch.allclose(state("b")[name], source[name], atol=1e-6)
    assert json.loads(Path("b/model/config.json").read_text(encoding="utf-8"))["architecture"]["family"] == "detector"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.name": "vit_micro_patch2_8", "model.pyramid_width": None, "model.tower_depth": None},
         "objective.kind=detection trains detectors"),
        ({"objective.kind": "supervised", "objective.level_side": None}, "the annotations are boxes"),
        ({"augment.mixup": 0.5}, "no effect with objective.kind=detection: augment.mixup"),
        ({"augment.cutmix": 0.5}, "no effect with objective.kind=detection: augment.cutmix"),
        ({"data.balance": "class"}, "no effect with objective.kind=detection: data.balance"),
        ({"model.head_bias": 1.0}, "no effect with objective.kind=detection: model.head_bias"),
        ({"data.source": "digits", "data": None}, "the data have no boxes to learn"),
    ],
)  # fmt: skip
def test_what_is_refused(keys: dict[str, Any], words: str) -> None:
    given = {**SMALL, "data": "scenes", **keys, "out": "c"}
    given = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(UserError, match=words):
        run(load_config("digits_scenes", given))
    assert not Path("c/summary.json").exists()


def test_a_detector_learns_no_classes() -> None:
    with pytest.raises(UserError, match="a detector learns boxes only"):
        run(load_config("digits", {"model.name": "detector_micro_patch8_64", "out": "c"}))


def test_data_without_a_usable_box_are_refused() -> None:
    table = Path("scenes/boxes.csv").read_text(encoding="utf-8").splitlines()
    empty = [",".join([*line.split(",")[:3], "5", "5", "5.5", "5.5"]) for line in table[1:]]
    Path("scenes/boxes.csv").write_text("\n".join([table[0], *empty]), encoding="utf-8")
    with pytest.raises(UserError, match="there is nothing to learn"):
        trained("c")
