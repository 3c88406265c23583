"""Images with several classes, from the manifest to the model folder, its evaluation and its predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitral
from tests.helpers import TINY, random_model
from vitral.cli.main import main
from vitral.data.config import DataSource
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.train import run

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose channels are bright where a class is there; some show nothing."""
    root = tmp_path_factory.mktemp("tags")
    random = np.random.default_rng(0)
    rows: list[str] = []
    for number in range(160):
        own = random.random(3) < 0.4
        pixels = random.integers(0, 60, (8, 8, 3)) + 180 * own[::-1]  # red, green, blue
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        tags = ";".join(name for name, there in zip(CLASSES, own, strict=True) if there)
        rows.append(f"{number}.png,{tags},{'train' if number < 100 else 'val' if number < 130 else 'test'}")
    (root / "tags.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    return root / "tags.csv"


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("multi") / "run"
    keys = {
        **TINY, "model.name": "vit_micro_patch2_8", "model.patch_size": None, "data.image_size": 8,
        "data": str(manifest), "data.label_separator": ";", "train.steps": 80, "train.batch_size": 32,
        "train.eval_every": 5.0, "optim.lr": 3e-3, "report": True, "augment.mixup": 0.2,
        "objective.label_smoothing": 0.02, "out": str(out),
    }  # fmt: skip
    return out, run(load_config("small", keys))


def test_a_run_learns_and_says_what_fits(trained: tuple[Path, dict[str, Any]]) -> None:
    out, summary = trained
    assert summary["map"] > 0.9
    assert summary["count"] == 30
    assert {"micro_f1", "macro_f1", "exact_match", "exact_match_interval", "val_map"} <= summary.keys()
    assert not {"top1", "ece", "val_top1"} & summary.keys()
    config = json.loads((out / "model/config.json").read_text(encoding="utf-8"))
    assert config["task"] == "multilabel"
    assert config["temperature"] == 1.0
    assert config["provenance"]["metrics"]["map"] == summary["map"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [row["val_map"] for row in rows if "val_map" in row]
    assert max(scores) == summary["val_map"], "the best checkpoint is the one with the best mAP"
    assert all("train_exact_match" in row for row in rows if "loss" in row)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "mean average precision" in page
    assert "AP %" in page
    assert "Confusion" not in page
    assert "mAP" in (out / "model/README.md").read_text(encoding="utf-8")


def test_eval_repeats_the_summary_from_the_recorded_data(
    trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, summary = trained
    found = evaluate(str(out), EvalOptions(compare=str(out)))
    for key in ("map", "micro_f1", "macro_f1", "exact_match", "loss", "count", "split"):
        assert found[key] == pytest.approx(summary[key]), key
    assert found["compare"]["exact_match"] == found["exact_match"]
    assert found["compare"]["p_value"] == 1.0
    assert main(["eval", str(out), "min_map=0.5", f"compare={out}"]) == 0
    text = capsys.readouterr().out
    assert "mAP" in text
    assert "every class correct" in text
    assert main(["eval", str(out), "min_map=1.0"]) == (3 if found["map"] < 1 else 0)
    assert main(["eval", str(out), "min_top1=0.5"]) == 2
    assert "min_map" in capsys.readouterr().err


def test_predictions_are_sigmoids_sorted(trained: tuple[Path, dict[str, Any]], manifest: Path) -> None:
    out, _ = trained
    predictor = vitral.load(out)
    image = str(manifest.parent / "0.png")
    scores = predictor.probabilities([image])[0]
    logits = predictor.model(predictor.preprocess(image)[None].to(predictor.device))[0].detach().cpu()
    assert scores == pytest.approx(logits.sigmoid().numpy(), abs=1e-6)
    answer = predictor.predict(image)[0]["predictions"]
    assert [each["score"] for each in answer] == sorted((each["score"] for each in answer), reverse=True)
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row_C = predictor.probabilities([str(manifest.parent / row["image"])])[0]
        said = [name for name, score in zip(predictor.classes, row_C, strict=True) if score >= 0.5]
        assert row["prediction"] == ";".join(said)
        assert row["correct"] == str(row["prediction"] == row["label"]).lower()


def test_the_classes_are_matched_by_name(trained: tuple[Path, dict[str, Any]], manifest: Path) -> None:
    out, summary = trained
    data = DataSource(path=str(manifest), label_separator=";", classes=("red", "green", "blue"))
    found = evaluate(str(out), EvalOptions(data=data))
    assert found["map"] == pytest.approx(summary["map"])
    assert list(found["per_class"]) == list(CLASSES)


def test_single_label_models_and_multi_label_data_do_not_mix(manifest: Path) -> None:
    random_model(Path("model"), CLASSES, in_channels=3)
    with pytest.raises(UserError, match=r"(?s)do not match the model's task.*multilabel.*classification"):
        evaluate("model", EvalOptions(data=DataSource(path=str(manifest), label_separator=";")))
    with pytest.raises(UserError, match=r"(?s)min_map: this model is for classification.*min_top1"):
        evaluate("model", EvalOptions(min_map=0.5))
