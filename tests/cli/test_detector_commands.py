"""What every other command does with a detector: it works, or says in one message why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.detectors import bright, detector_folder
from vitral.cli.main import main
from vitral.models.detector import Detector

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    detector_folder(Path("model"))
    pixels = np.zeros((128, 128), np.uint8)
    pixels[32:96, 80:112] = 255
    Image.fromarray(pixels).save("a.png")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("prune model out=b data=digits_scenes", "importance is measured by the loss of classes"),
        ("attack model out=b data=digits_scenes", "attacks need a model with one class per image"),
        ("tokenize model a.png out=b.npz", "this model is no image tokenizer"),
        ("sample model out=b", "this model cannot draw images"),
        ("explain model a.png out=b methods=lens", "the logit lens needs probabilities of classes"),
        ("explain model a.png out=b methods=gradient_attention", "gradients are of the output of one class"),
        ("explain model a.png out=b class=cat", "a detector's views are not of one class"),
        ("predict model a.png reduce=tome", "a detector reads all patches where they lie"),
        ("export model format=hf out=b", "boxes of objects"),
        ("export model format=timm out=b", "boxes of objects"),
        ("eval model data=digits", "the labels of the data do not match the model's task"),
    ],
)
def test_what_a_detector_cannot_do_is_said(argv: str, words: str, capsys: Capture) -> None:
    assert main([*argv.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert words in err
    assert "Traceback" not in err
    assert not Path("b").exists()


def test_what_a_detector_can_do_like_others(capsys: Capture) -> None:
    for argv in ("embed model a.png out=a.npz", "summary model", "doctor model"):
        assert main([*argv.split()]) == 0, argv
    capsys.readouterr()


def test_explained_is_the_attention_in_the_best_box(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detector, "forward", bright)
    assert main(["explain", "model", "a.png", "out=page", "methods=rollout", "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    (dog,) = image["detections"]
    assert dog["box"] == pytest.approx([80, 32, 112, 96], abs=2), "pixels of the file"
    assert main(["explain", "model", "a.png", "out=named", "methods=rollout", "token=4,6", "--json"]) == 0
    (named,) = json.loads(capsys.readouterr().out)["images"]
    assert image["rollout"] == named["rollout"], "x 96, y 64 of 128 is in row 4 and column 6 of 8 x 8 patches"
