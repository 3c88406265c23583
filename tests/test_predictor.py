"""Predictions: what the model computes, for every kind of image, in the right order."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from tests.helpers import assert_same_answers, random_model, write_digits
from tests.models.text_models import text_writer
from vitral.data.config import DataSource
from vitral.errors import UserError
from vitral.predictor import Predictor, load, pick_device
from vitral.run.command_options import EvalOptions
from vitral.run.evaluate import evaluate

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return load(random_model(tmp_path / "model", CLASSES, image_size=(8, 12)))


@pytest.fixture
def pixels_NHW() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 12), dtype=np.uint8)


def test_predictions_are_the_softmax_of_the_logits_over_the_temperature(
    predictor: Predictor, pixels_NHW: np.ndarray[Any, Any]
) -> None:
    images_BCHW = torch.from_numpy(pixels_NHW)[:, None].float() / 255
    with torch.no_grad():
        logits_BC = predictor.model(images_BCHW).double().numpy()
    powers_BC = np.exp(logits_BC / 2.0)
    expected_BC = powers_BC / powers_BC.sum(axis=1, keepdims=True)
    assert expected_BC.std() > 0.05, "a model that answers the same for everything proves nothing"
    found_BC = predictor.probabilities(pixels_NHW, batch_size=2)
    np.testing.assert_allclose(found_BC, expected_BC, atol=1e-5)
    np.testing.assert_allclose(found_BC.sum(axis=1), 1, atol=1e-6)
    answers = predictor.predict(list(pixels_NHW), topk=3)
    for answer, row_C in zip(answers, expected_BC, strict=True):
        assert [entry["index"] for entry in answer["predictions"]] == np.argsort(-row_C).tolist()
        for entry in answer["predictions"]:
            assert entry["score"] == pytest.approx(row_C[entry["index"]], abs=2e-5)
            assert entry["label"] == CLASSES[entry["index"]]


def test_every_kind_of_image_gives_the_same_answer(
    predictor: Predictor, pixels_NHW: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    pixels_HW = pixels_NHW[0]
    image = Image.fromarray(pixels_HW)
    path = tmp_path / "x.png"
    image.save(path)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    kinds: list[Any] = [
        str(path), path, stream.getvalue(), stream, image, image.convert("RGB"), pixels_HW, pixels_HW[..., None],
        np.repeat(pixels_HW[..., None], 3, axis=2), pixels_HW / 255, (pixels_HW / 255).astype(np.float32),
        torch.from_numpy(pixels_HW), torch.from_numpy(pixels_HW)[None],
    ]  # fmt: skip
    expected_C = predictor.probabilities([pixels_HW])[0]
    for kind in kinds:
        one = predictor.predict(kind, topk=3)
        assert len(one) == 1
        found_C = {entry["index"]: entry["score"] for entry in one[0]["predictions"]}
        assert [found_C[index] for index in range(3)] == pytest.approx(expected_C.tolist(), abs=1e-5)
        assert one[0]["image"] == (str(path) if isinstance(kind, str | Path) else 0)


def test_a_bundled_name_is_the_bundled_model_whatever_is_called_so_here() -> None:
    Path("vitral-digits").mkdir()
    Path("vitral-digits/config.json").write_text('{"format": "vitral-export-1", "kind": "pt2"}', encoding="utf-8")
    assert len(load("vitral-digits").classes) == 10
    with pytest.raises(UserError, match="the export is not complete"):
        load("./vitral-digits")


def test_arrays_of_four_axes_and_lists_are_many_images(predictor: Predictor, pixels_NHW: np.ndarray[Any, Any]) -> None:
    many = predictor.predict(pixels_NHW[..., None])
    assert [answer["image"] for answer in many] == [0, 1, 2, 3, 4]
    assert_same_answers(many, predictor.predict(list(pixels_NHW)))
    assert_same_answers(many, predictor.predict(tuple(pixels_NHW), batch_size=2))
    assert_same_answers(many, predictor.predict(torch.from_numpy(pixels_NHW[..., None])))
    assert predictor.predict([]) == []


def test_reading_ahead_changes_no_image(predictor: Predictor, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    files = [tmp_path / f"{number}.png" for number in range(11)]
    for number, file in enumerate(files):
        Image.fromarray(draw.integers(0, 256, (9 + number, 14, 3), dtype=np.uint8)).save(file)
    with torch.inference_mode():
        expected = [
            predictor.scores(
                predictor.model(torch.stack([predictor.preprocess(file) for file in files[start : start + 4]]))
            )
            for start in range(0, len(files), 4)
        ]
    np.testing.assert_allclose(
        predictor.probabilities(files, batch_size=4), torch.cat(expected).numpy(), rtol=0, atol=1e-5
    )
    lazy = Image.open(files[3])
    same = predictor.probabilities([lazy] * 16, batch_size=8)
    np.testing.assert_allclose(same, same[:1].repeat(16, axis=0), rtol=0, atol=1e-5)  # opened once, in many threads


def test_answers_before_an_image_that_cannot_be_read_are_not_lost(predictor: Predictor, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(7)]
    for number, file in enumerate(files):
        Image.new("L", (8, 8), 30 * number).save(file)
    files[5].write_bytes(files[5].read_bytes()[:40])
    answers = predictor.predict(files, batch_size=3, stream=True)
    assert [next(answers)["image"] for _ in range(5)] == [str(file) for file in files[:5]]
    with pytest.raises(UserError, match=r"5\.png"):
        next(answers)
    with pytest.raises(UserError, match=r"5\.png"):
        predictor.embed(files)
    assert len(predictor.embed(files[:5], batch_size=2)) == 5


def test_topk_is_at_least_one_and_at_most_all(predictor: Predictor, pixels_NHW: np.ndarray[Any, Any]) -> None:
    assert len(predictor.predict(pixels_NHW[0], topk=50)[0]["predictions"]) == 3
    assert len(predictor.predict(pixels_NHW[0], topk=1)[0]["predictions"]) == 1
    with pytest.raises(UserError, match="topk"):
        predictor.predict(pixels_NHW[0], topk=0)


def test_of_equal_scores_the_first_class_comes_first(predictor: Predictor, pixels_NHW: np.ndarray[Any, Any]) -> None:
    for parameter in (predictor.model.get_parameter("head.weight"), predictor.model.get_parameter("head.bias")):
        torch.nn.init.zeros_(parameter)
    found = predictor.predict(pixels_NHW[0])[0]["predictions"]
    assert found == [{"label": name, "index": i, "score": 0.333333} for i, name in enumerate(CLASSES)]


def test_images_that_are_none_are_refused(predictor: Predictor) -> None:
    for wrong in (np.zeros((8, 12)) + 3, np.zeros((8, 12), np.int64), np.zeros(12, np.uint8), {"image": 1}, "gone.png"):
        with pytest.raises(UserError):
            predictor.predict(wrong)


def test_predict_and_eval_of_the_same_files_agree(trained: Path, tmp_path: Path) -> None:
    files = write_digits(tmp_path / "digits", range(60, 160))
    answers = vitral.load(trained).predict([path for path, _, _ in files])
    first = [answer["predictions"][0]["index"] for answer in answers]
    measured = evaluate(str(trained), EvalOptions(data=DataSource(path=str(tmp_path / "digits"))))
    assert measured["count"] == 100
    confusion_CC = np.zeros((10, 10), int)
    for answer, (_, _, label) in zip(first, files, strict=True):
        confusion_CC[label, answer] += 1
    assert measured["confusion"] == confusion_CC.tolist()
    assert measured["top1"] == np.trace(confusion_CC) / 100
    again = vitral.load(trained).predict([pixels_HW for _, pixels_HW, _ in files])
    assert_same_answers([{**row, "image": 0} for row in again], [{**row, "image": 0} for row in answers])


def test_the_predictions_of_a_run_are_those_of_its_model(trained: Path) -> None:
    import csv

    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:50]
    images = [np.rint(digits.images[int(row["image"].split("/")[1])] * (255 / 16)).astype(np.uint8) for row in rows]
    for row, answer in zip(rows, vitral.load(trained).predict(images, topk=1), strict=True):
        assert row["prediction"] == answer["predictions"][0]["label"]
        assert float(row["score"]) == pytest.approx(answer["predictions"][0]["score"], abs=1e-5)


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99", "meta"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="device"):
        pick_device(name)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_of_no_samples_is_refused(size: int, predictor: Predictor) -> None:
    image, writer = np.zeros((8, 12), np.uint8), text_writer()
    for use in (
        lambda: predictor.predict([image], batch_size=size), lambda: predictor.embed([image], batch_size=size),
        lambda: writer.write(["abc"], batch_size=size), lambda: list(writer.predict(["abc"], batch_size=size)),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"(?s)batch_size.*{size}"):
            use()
