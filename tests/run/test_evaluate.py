"""Measuring a model folder: on which images, with which labels, against what."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitral
from tests.helpers import TINY, edit_config, random_model, write_colors
from vitral.data.config import DataSource
from vitral.data.decode import decode
from vitral.data.image_spec import ResizeSpec
from vitral.data.resize import fit_image
from vitral.errors import UserError
from vitral.run.command_options import EmbedOptions, EvalOptions
from vitral.run.config import load_config
from vitral.run.embed import embeddings
from vitral.run.evaluate import evaluate
from vitral.run.finish import write_predictions
from vitral.run.train import run
from vitral.tasks.classification import Classification
from vitral.tasks.multilabel import Multilabel
from vitral.weights.folder import load_config as load_config_of


def on(path: str, **more: Any) -> EvalOptions:
    return EvalOptions(data=DataSource(path=path), **more)


def tiny_run(data: str, out: str) -> dict[str, Any]:
    keys = {**TINY, "model.name": "vit_micro_patch2_8", "model.patch_size": None, "data.image_size": 8}
    return run(load_config("small", {**keys, "data": data, "out": out}))


def test_labels_are_matched_by_name_not_by_place() -> None:
    """The model's classes are in another order than the folder's, which is alphabetical."""
    classes = ("owl", "cat", "dog")
    random_model(Path("model"), classes, in_channels=3)
    write_colors(Path("pets"), "cat dog owl", count=12)
    found = evaluate("model", on("pets"))
    predictor = vitral.load("model")
    files = sorted(Path("pets").rglob("*.png"))
    answers = [row["predictions"][0]["label"] for row in predictor.predict([str(path) for path in files])]
    pairs = Counter((path.parent.name, answer) for path, answer in zip(files, answers, strict=True))
    assert len(pairs) > 3, "answers that differ"
    assert found["confusion"] == [[pairs[truth, answer] for answer in classes] for truth in classes]
    assert found["top1"] == sum(pairs[name, name] for name in classes) / 36
    assert list(found["per_class"]) == list(classes)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 1000])
def test_every_sample_counts_once_whatever_the_batch_size(batch_size: int) -> None:
    random_model(Path("model"), ("cat", "dog"))
    write_colors(Path("pets"), "cat", count=9)
    write_colors(Path("pets"), "dog", count=4)
    found = evaluate("model", on("pets", batch_size=batch_size))
    assert found["count"] == 13
    assert {name: row["count"] for name, row in found["per_class"].items()} == {"cat": 9, "dog": 4}
    whole = evaluate("model", on("pets"))
    assert found["confusion"] == whole["confusion"]
    assert [found[key] for key in ("loss", "ece")] == pytest.approx([whole[key] for key in ("loss", "ece")])


def test_a_model_is_as_good_as_itself() -> None:
    random_model(Path("model"), ("cat", "dog"))
    write_colors(Path("pets"), count=10)
    found = evaluate("model", on("pets", compare="model"))
    assert found["compare"] == {
        "model": "model", "top1": found["top1"], "only_a": 0, "only_b": 0, "p_value": 1.0, "difference": 0.0,
        "difference_interval": pytest.approx(found["compare"]["difference_interval"]),
    }  # fmt: skip


def test_models_of_other_sizes_channels_and_class_orders_can_be_compared() -> None:
    random_model(Path("gray"), ("cat", "dog"))
    random_model(Path("color"), ("dog", "cat"), in_channels=3, image_size=12)
    write_colors(Path("pets"), count=10)
    found = evaluate("gray", on("pets", compare="color"))
    alone = evaluate("color", on("pets"))
    assert found["compare"]["top1"] == alone["top1"]
    assert found["top1"] == evaluate("gray", on("pets"))["top1"]


def test_without_data_the_recorded_ones_are_used_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_colors(Path("pets"), count=10)
    summary = tiny_run("pets", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = evaluate("../run")
    assert (found["split"], found["count"]) == ("val", 2)
    assert {key: found[key] for key in ("top1", "loss", "ece")} == {
        key: summary[key] for key in ("top1", "loss", "ece")
    }
    whole = evaluate("../run", on("../pets"))
    assert (whole["split"], whole["count"]) == ("val", 2), "the same images by name: most of them were trained on"
    write_colors(Path("others"), count=9, first=100)
    others = evaluate("../run", on("others"))
    assert (others["split"], others["count"]) == ("train", 18), "other data are taken as they are, nothing held out"


def test_splits_of_a_folder() -> None:
    for split, first, count in (("train", 0, 6), ("val", 6, 3), ("test", 9, 2)):
        write_colors(Path("pets") / split, count=count, first=first)
    tiny_run("pets", "run")
    for options, split, count in (
        (None, "test", 4), (on("pets"), "test", 4), (on("pets", split="val"), "val", 6),
        (EvalOptions(split="train"), "train", 12),
    ):  # fmt: skip
        found = evaluate("run", options)
        assert (found["split"], found["count"]) == (split, count)
    shutil.rmtree("pets/test")
    assert evaluate("run", on("pets"))["split"] == "val"
    with pytest.raises(UserError, match=r"(?s)no such split.*test.*train, val"):
        evaluate("run", on("pets", split="test"))


def test_data_that_changed_since_the_training_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    write_colors(Path("pets"), count=10)
    tiny_run("pets", "run")
    evaluate("run")
    assert "changed" not in capsys.readouterr().err
    Path("pets/cat/0.png").unlink()
    evaluate("run")
    assert "have changed since the training" in capsys.readouterr().err
    shutil.rmtree("pets")
    with pytest.raises(UserError, match="no such folder"):
        evaluate("run")


def test_the_validation_images_are_remembered_by_content(capsys: pytest.CaptureFixture[str]) -> None:
    """Images that are added, renamed or removed later change nothing about what was trained on."""
    write_colors(Path("pets"), count=20)
    summary = tiny_run("pets", "run")
    with Path("run/predictions.csv").open(encoding="utf-8") as file:
        held = sorted(row.split(",")[0] for row in list(file)[1:])
    assert len(held) == summary["count"] == 4
    first = evaluate("run")
    write_colors(Path("more"), count=30, first=100)
    for path in Path("more").rglob("*.png"):
        path.rename(Path("pets") / path.parent.name / f"new_{path.name}")
    for how in (None, on("pets"), on(str(Path("pets").absolute()))):
        again = evaluate("run", how)
        assert (again["split"], again["count"]) == ("val", 4)
        assert {key: again[key] for key in ("top1", "loss", "confusion")} == {
            key: first[key] for key in ("top1", "loss", "confusion")
        }
        assert "60 images were not there at the training and left out" in capsys.readouterr().err
    assert evaluate("run", EvalOptions(split="train"))["count"] == 36
    Path("pets", held[0]).rename(Path("pets", held[0]).with_name("renamed.png"))
    assert evaluate("run")["count"] == 4
    Path("pets", held[1]).unlink()
    assert evaluate("run")["count"] == 3
    Path("pets", held[2]).write_bytes(Path("pets", held[3]).read_bytes())  # another image under the old name
    assert evaluate("run")["count"] == 3


def test_moved_and_changed_data_are_known_by_content(capsys: pytest.CaptureFixture[str]) -> None:
    """A copy at another place, of which one image is gone, is still the training's; other images are not."""
    write_colors(Path("pets"), count=20)
    tiny_run("pets", "run")
    first = evaluate("run")
    held = {row.split(",")[0] for row in Path("run/predictions.csv").read_text(encoding="utf-8").splitlines()[1:]}
    shutil.copytree("pets", "moved")
    gone = next(
        path for path in sorted(Path("moved").rglob("*.png")) if path.relative_to("moved").as_posix() not in held
    )
    gone.unlink()
    again = evaluate("run", on("moved"))
    assert (again["split"], again["count"]) == ("val", 4)
    assert (again["loss"], again["confusion"]) == (pytest.approx(first["loss"], abs=1e-5), first["confusion"])
    embedded = embeddings("run", None, EmbedOptions(data=DataSource(path="moved"), split="val"))[1]
    assert {row.image for row in embedded} == held
    write_colors(Path("others"), count=8, first=100)
    capsys.readouterr()
    assert evaluate("run", on("others"))["count"] == 16
    assert "too good" not in capsys.readouterr().err
    shutil.copy(gone.as_posix().replace("moved", "pets"), Path("others") / gone.parent.name / "old.png")
    assert evaluate("run", on("others"))["count"] == 17
    assert "the model was trained on 1 of 17 images: results are too good" in capsys.readouterr().err


def test_without_memory_changed_data_are_not_divided_once_more() -> None:
    write_colors(Path("pets"), count=20)
    tiny_run("pets", "run")
    Path("run/split.safetensors").unlink()
    assert evaluate("run")["count"] == 4, "the same data are divided as they were"
    Path("pets/cat/0.png").unlink()
    with pytest.raises(UserError, match=r"(?s)which images were held out is not remembered.*data=DIR"):
        evaluate("run")


def test_a_damaged_memory_of_the_held_out_images_is_named() -> None:
    write_colors(Path("pets"), count=20)
    tiny_run("pets", "run")
    Path("pets/cat/0.png").unlink()
    path = Path("run/split.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    for damaged in (bytes(content), bytes(content[:-8]), b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"(?s)split\.safetensors: .*data=FOLDER.*remove the file"):
            evaluate("run")


def test_the_metrics_of_the_run_travel_with_the_model(trained: Path) -> None:
    config = json.loads((trained / "model/config.json").read_text(encoding="utf-8"))
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    metrics = config["provenance"]["metrics"]
    assert metrics == {key: summary[key] for key in metrics}
    assert metrics["split"] == "test"
    assert config["temperature"] == summary["temperature"]
    assert config["provenance"]["data"]["counts"] == {"train": 1293, "val": 144, "test": 360}
    card = (trained / "model/README.md").read_text(encoding="utf-8")
    assert f"On 360 test images:\n\n- top-1: {100 * summary['top1']:.2f} %" in card


def test_the_model_folder_says_all_of_preprocessing_and_everything_follows_it() -> None:
    """Training's own result, eval, predict and a run from it see the same pixels."""
    write_colors(Path("pets"), count=10, size=(31, 23))
    keys: dict[str, Any] = {**TINY, "model.name": "vit_micro_patch2_8", "data": "pets", "data.image_size": 8}
    more = {"data.interpolation": "bilinear", "data.crop_pct": 0.7, "data.max_pixels": 1000, "check.allow": ["near"]}
    summary = run(load_config("small", {**keys, **more, "out": "run"}))
    kept = load_config_of(Path("run/model")).preprocessing
    assert (kept.interpolation, kept.crop_pct, kept.max_pixels) == ("bilinear", 0.7, 1000)
    found = evaluate("run")
    assert {key: found[key] for key in ("top1", "loss")} == {key: summary[key] for key in ("top1", "loss")}
    predictor = vitral.load("run")
    image = decode("pets/cat/3.png", 3)
    expected = fit_image(image, (8, 8), ResizeSpec(resize_mode="crop", interpolation="bilinear", crop_pct=0.7))
    assert torch.equal(predictor.preprocess("pets/cat/3.png"), expected)
    assert not torch.equal(fit_image(image, (8, 8), ResizeSpec(resize_mode="crop")), expected)
    write_colors(Path("large"), count=2, size=(40, 30))
    with pytest.raises(UserError, match="larger than the limit of 1,000 pixels"):
        predictor.predict("large/cat/1.png")
    with pytest.raises(UserError, match="larger than the limit of 1,000 pixels"):
        evaluate("run", on("large"))
    assert evaluate("run", EvalOptions(data=DataSource(path="large", max_pixels=1200)))["count"] == 4
    tuned = {key: value for key, value in keys.items() if not key.startswith("model.")}
    for given, result in (({}, ("bilinear", 0.7)), ({"data.crop_pct": 1.0}, ("bilinear", 1.0))):
        run(load_config("small", {**tuned, **given, "init": "run", "model.name": "auto", "out": f"from{len(given)}"}))
        kept = load_config_of(Path(f"from{len(given)}/model")).preprocessing
        assert (kept.interpolation, kept.crop_pct) == result


def test_a_folder_that_says_nothing_of_interpolation_is_read_as_before() -> None:
    random_model(Path("model"), ("cat", "dog"))
    keys = ("interpolation", "crop_pct", "max_pixels")
    edit_config(Path("model"), lambda tree: [tree["preprocessing"].pop(key) for key in keys])
    found = load_config_of(Path("model")).preprocessing
    assert (found.resize_mode, found.interpolation, found.crop_pct) == ("crop", "bicubic", 1.0)


def test_cells_that_begin_like_a_formula_are_text(tmp_path: Path) -> None:
    classes = ("=1+1", "-3", "@sum", "plain")
    probabilities_NC = np.eye(4)[[0, 1, 2, 2]]
    names = ["+x.png", "b", "c", "d"]
    rows_of = Classification(classes).prediction_rows
    write_predictions(tmp_path / "a.csv", rows_of(names, np.arange(4), probabilities_NC))
    rows = list(csv.reader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))[1:]
    assert [row[:3] for row in rows] == [
        ["'+x.png", "'=1+1", "'=1+1"], ["b", "-3", "-3"], ["c", "'@sum", "'@sum"], ["d", "plain", "'@sum"]
    ]  # fmt: skip
    hot_NC = np.array([[1, 0, 1, 0]])
    rows_of = Multilabel(classes).prediction_rows
    write_predictions(tmp_path / "b.csv", rows_of(["a"], hot_NC, np.full((1, 4), 0.9)))
    row = list(csv.reader((tmp_path / "b.csv").read_text(encoding="utf-8").splitlines()))[1]
    assert row[1:3] == ["'=1+1;'@sum", "'=1+1;-3;'@sum;plain"]
