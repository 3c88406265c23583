"""Numbers per image: from a table to the model folder, its evaluation, predictions, export and server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from tests.helpers import TINY
from vitral.cli.main import main
from vitral.engines import ExportMetadata
from vitral.errors import UserError
from vitral.evaluate.regression import regression_metrics
from vitral.export.graph import capture
from vitral.export.parity import BeyondLimit, check, compare_outputs
from vitral.models.create import create_model
from vitral.models.parameters import freeze_encoder
from vitral.objectives.config import RegressionConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.regression import Regression
from vitral.run.config import load_config
from vitral.run.train import run

ROWS = 96


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain images on noise, with their brightness, and a number that nothing shows."""
    root = tmp_path_factory.mktemp("numbers")
    random = np.random.default_rng(0)
    lines = ["path,split,level,noise,kind"]
    for number in range(ROWS):
        level = random.uniform(20, 200)
        pixels = np.clip(level + random.normal(0, 8, (8, 8)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        split = "train" if number < 48 else "val" if number < 72 else "test"
        lines.append(f"{number}.png,{split},{level / 10 + 100:.3f},{random.normal():.4f},k{number % 2}")
    (root / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    return root / "table.csv"


KEYS: dict[str, Any] = {
    **TINY, "model.name": "vit_micro_patch2_8", "model.patch_size": None, "data.image_size": 8, "augment.mixup": 0.0,
    "objective.kind": "regression", "train.steps": 120, "train.eval_every": 20.0, "optim.lr": 3e-3, "augment.flip": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("regression") / "run"
    keys = {**KEYS, "data": str(table), "data.target": "level", "report": True, "out": str(out)}
    return out, run(load_config("small", keys))


def test_a_run_learns_in_units_of_the_column(trained: tuple[Path, dict[str, Any]]) -> None:
    out, summary = trained
    assert summary["mae"] < 0.5 * summary["baseline_mae"]
    assert summary["primary"] == {"name": "mae", "value": summary["mae"], "interval": summary["mae_interval"]}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert min(row["val_mae"] for row in rows if "val_mae" in row) == summary["val_mae"], "lower is better"
    config = json.loads((out / "model/config.json").read_text(encoding="utf-8"))
    assert (config["task"], config["id2label"]) == ("regression", {"0": "level"})
    assert 100 < config["task_state"]["mean"][0] < 120
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<dt>Root mean squared error</dt>" in page
    assert "<dt>R2</dt>" in page
    for path in ("report.html", "model/README.md", "train.log"):
        assert "absolute error" in (out / path).read_text(encoding="utf-8"), path
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    errors = [abs(float(row["level_error"])) for row in written]
    assert np.mean(errors) == pytest.approx(summary["mae"], rel=1e-4)


def test_predictions_are_in_units_everywhere(
    trained: tuple[Path, dict[str, Any]], table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, summary = trained
    image = str(table.parent / "90.png")
    predictor = vitral.load(out)
    (answer,) = predictor.predict(image)
    assert answer["predictions"][0]["label"] == "level"
    value = answer["predictions"][0]["value"]
    assert 100 < value < 122
    state = predictor.config.task_state
    raw = predictor.model(predictor.preprocess(image)[None])[0, 0].item()
    assert value == pytest.approx(raw * state["std"][0] + state["mean"][0], rel=1e-5)
    metadata = ExportMetadata(
        kind="pt2", takes="resized", precision="float32", model=predictor.config, card="", versions={}
    )
    program, names = capture(predictor.model, metadata)
    assert names == ["logits", "scores"]
    found = program.module()(predictor.preprocess(image)[None].expand(3, -1, -1, -1))[1]
    assert found.shape == (3, 1)
    torch.testing.assert_close(found[0, 0].item(), value, rtol=1e-4, atol=1e-4)
    assert main(["predict", str(out), image]) == 0
    assert json.loads(capfd.readouterr().out)["predictions"][0]["value"] == pytest.approx(value)
    assert main(["eval", str(out), f"compare={out}", "max_mae=1e-9"]) == 3
    text, err = capfd.readouterr()
    assert "mean absolute error" in text
    assert "above max_mae" in err
    assert main(["eval", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["mae"] == pytest.approx(summary["mae"])
    assert main(["explain", str(out), image, "out=maps", "methods=integrated_gradients"]) == 0


def test_several_numbers_are_learned_together(table: Path, tmp_path: Path) -> None:
    keys = {**KEYS, "data": str(table), "data.target": "level,noise", "objective.loss": "l1", "train.steps": 3}
    summary = run(load_config("small", {**keys, "out": str(tmp_path / "a")}))
    assert summary["parameters"] > 0
    rows = vitral.load(tmp_path / "a").predict(str(table.parent / "0.png"))[0]["predictions"]
    assert [row["label"] for row in rows] == ["level", "noise"]


@pytest.mark.parametrize(
    ("target", "edit", "says"),
    [
        ("kind", None, ("table.csv:2", "not a number", "kind = 'k0'")),
        ("levle", None, ("no such column", "did you mean 'level'")),
        ("level", ("1.png,train,", "1.png,train,nan;"), ("table.csv:3", "not a number")),
        ("split", None, ("not a number",)),
        (None, None, ("data.target=COLUMN",)),
    ],
)
def test_bad_columns_are_one_message(
    target: str | None, edit: tuple[str, str] | None, says: tuple[str, ...], table: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if edit is not None:
        lines = table.read_text(encoding="utf-8").splitlines()
        fields = lines[2].split(",")
        lines[2] = ",".join([*fields[:2], "nan", *fields[3:]])
        table = table.with_name("broken") / "table.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join(lines), encoding="utf-8")
    words = [f"{key}={'null' if value is None else str(value).lower()}" for key, value in KEYS.items()]
    words += [f"data={table}", f"out={tmp_path / 'a'}", *([f"data.target={target}"] if target else [])]
    assert main(["train", "small", *words]) == 2
    err = capfd.readouterr().err
    assert all(text in err for text in says), err
    assert "Traceback" not in err


def test_a_constant_target_and_classes_are_refused(
    table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    same = table.with_name("same.csv")
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = [[*line.split(",")[:2], "3", *line.split(",")[3:]] for line in lines[1:]]
    same.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]), encoding="utf-8")
    words = [f"{key}={'null' if value is None else str(value).lower()}" for key, value in KEYS.items()]
    assert main(["train", "small", *words, f"data={same}", "data.target=level", f"out={tmp_path / 'a'}"]) == 2
    err = capfd.readouterr().err
    assert "this target is constant" in err
    assert "level = 3" in err
    assert main(["train", "digits", "data.target=digit", f"out={tmp_path / 'b'}"]) == 2
    assert "objective.kind=regression" in capfd.readouterr().err


def test_commands_that_need_classes_say_so(
    trained: tuple[Path, dict[str, Any]], table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, image, numbers = str(trained[0]), str(table.parent / "0.png"), [str(table), "data.target=level"]
    for words, says in (
        (["explain", model, image, "methods=lens", "out=lens"], "logit lens"),
        (["prune", model, "out=small"], "loss of classes"),
        (["probe", model, "data=digits", "data.target=digit"], "one class per image"),
        (["data", "stats", *numbers, "out=s.html"], "numbers instead of classes"),
        (["data", "convert", *numbers, "out=c"], "numbers instead of classes"),
        (["data", "check", *numbers, "data.label_column=kind"], "has no effect with data.target"),
    ):
        assert main(words) == 2, words
        err = capfd.readouterr().err
        assert says in err
        assert "Traceback" not in err


def test_a_folder_knows_its_columns_and_embeddings_keep_numbers(
    trained: tuple[Path, dict[str, Any]], table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = str(trained[0])
    assert main(["eval", model, f"data={table}", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["mae"] == pytest.approx(trained[1]["mae"])
    assert main(["embed", model, f"data={table}", "data.target=level,noise", "split=test"]) == 0
    first = table.read_text(encoding="utf-8").splitlines()[1 + 72].split(",")
    assert json.loads(capfd.readouterr().out.splitlines()[0])["values"] == {
        "level": float(first[2]), "noise": float(first[3]),
    }  # fmt: skip
    head, *rows = table.read_text(encoding="utf-8").splitlines()
    for split in ("train", "test"):
        own = [head, *(row for row in rows if f",{split}," in row)]
        table.with_name(f"{split}.csv").write_text("\n".join(own).replace(f",{split},", ",train,"), encoding="utf-8")
    yaml = table.with_name("both.yaml")
    yaml.write_text("splits: {train: train.csv, test: test.csv}", encoding="utf-8")
    keys = {**KEYS, "data": str(yaml), "data.target": "noise,level", "train.steps": 2, "train.eval_every": "end"}
    assert run(load_config("small", {**keys, "out": str(tmp_path / "a")}))["count"] == ROWS - 72
    assert main(["estimate", "small", f"data={table}", "data.target=level", "objective.kind=regression",
                 "augment.mixup=0", "memory=1GB"]) == 0  # fmt: skip


def test_exports_of_numbers_are_compared_in_standard_deviations(trained: tuple[Path, dict[str, Any]]) -> None:
    config, mine = vitral.load(trained[0]).config, torch.linspace(-2, 2, 32)[:, None]
    for precision, error, is_near in (
        ("float32", 1e-4, True), ("float32", 1e-2, False), ("bfloat16", 0.04, True), ("bfloat16", 0.06, False),
        ("int8", 0.19, True), ("int8", 0.21, False),
    ):  # fmt: skip
        found = compare_outputs(mine, mine + error, config, "made up")
        assert (found.agreement, found.cosine) == (None, None)
        if is_near:
            check(found, precision, None, None)
        else:
            with pytest.raises(BeyondLimit, match="differs from the model"):
                check(found, precision, None, None)
    with pytest.raises(UserError, match="min_agreement"):
        check(compare_outputs(mine, mine, config, "made up"), "int8", None, 0.9)


def test_validations_draw_no_intervals_and_a_frozen_encoder_rests() -> None:
    random = np.random.default_rng(0)
    true, predicted = random.normal(size=(50, 2)), random.normal(size=(50, 2))
    quick = regression_metrics(predicted, true, ("a", "b"), (0.0, 0.0), resamples=0)
    whole = regression_metrics(predicted, true, ("a", "b"), (0.0, 0.0))
    assert not [key for key in quick if key.endswith("interval")]
    assert {key: whole[key] for key in quick if key != "per_target"} == {
        key: value for key, value in quick.items() if key != "per_target"
    }

    def build() -> Any:
        model = create_model("vit_micro_patch2_8", num_classes=2, drop_path=0.5, dropout=0.5)
        freeze_encoder(model)
        return model

    objective = Regression(build, RegressionConfig(kind="regression"), ObjectiveContext(10)).train()
    assert objective.training
    assert not any(module.training for module in objective.model.modules())
