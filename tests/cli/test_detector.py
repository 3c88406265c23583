"""`vitral predict` with a detector: boxes in pixels of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitral
from tests.detectors import bright, detector_folder
from tests.helpers import random_model
from vitral.cli.main import main
from vitral.models.detector import Detector

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photo(name: str, size: tuple[int, int], box: tuple[int, int, int, int], *, turn: int = 1, mode: str = "RGB") -> str:
    """A dark file of `size` (width, height) as it is seen, with a white box (x0, y0, x1, y1); turn: its EXIF
    orientation, 1 or 6 (stored a quarter turn to the left)."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    image = Image.fromarray(np.rot90(pixels) if turn == 6 else pixels).convert(mode)
    exif = Image.Exif()
    exif[274] = turn
    image.save(name, exif=exif, quality=95)
    return name


def predicted(capsys: Capture, *argv: str) -> list[dict[str, Any]]:
    assert main(["predict", *argv]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
def test_boxes_are_in_pixels_of_the_file(
    mode: str, channels: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector_folder(Path("model"), mode=mode, in_channels=channels)
    monkeypatch.setattr(Detector, "forward", bright)
    cases = [
        photo("same.png", (64, 64), (12, 20, 40, 36)), photo("wide.png", (256, 128), (112, 32, 152, 96)),
        photo("tall.jpg", (96, 192), (24, 72, 60, 120)), photo("turned.jpg", (96, 192), (24, 72, 60, 120), turn=6),
        photo("gray.png", (130, 130), (20, 30, 90, 70), mode="L"),
    ]  # fmt: skip
    truths = [(12, 20, 40, 36), (112, 32, 152, 96), (24, 72, 60, 120), (24, 72, 60, 120), (20, 30, 90, 70)]
    for row, name, truth in zip(predicted(capsys, "model", *cases), cases, truths, strict=True):
        assert row["image"] == name
        (found,) = row["detections"]
        assert (found["label"], found["index"], found["score"]) == ("dog", 1, 0.75)
        largest = max(vitral.load("model").prepare(name)[1])
        assert found["box"] == pytest.approx(truth, abs=0.5 if name == "same.png" else largest / 64), name


def test_threshold_and_drawing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    detector_folder(Path("model"))
    monkeypatch.setattr(Detector, "forward", bright)
    name = photo("a b.png", (256, 128), (112, 32, 152, 96))
    (row,) = predicted(capsys, "model", name, "threshold=0.1", "draw=out")
    assert [each["label"] for each in row["detections"]] == ["dog", "cat"]
    assert row["detections"][1]["box"] == [0, 0, 256, 128], "cut at the border of the file"
    assert predicted(capsys, "model", name, "threshold=0.8") == [{"image": name, "detections": []}]
    (file,) = Path("out").iterdir()
    assert file.name == "00001-a b.png"
    with Image.open(file) as picture:
        assert picture.size == (1280, 640)
        pixels = np.asarray(picture)
    # Colored lines where boxes are, the file's pixels elsewhere.
    assert len(set(pixels[400, 112 * 5])) > 1
    assert pixels[400, 600].tolist() == [255] * 3
    assert pixels[620, 640].tolist() == [0] * 3
    Path("bad.png").write_text("no image", encoding="utf-8")
    assert main(["predict", "model", name, "bad.png", "draw=more", "max_bad=1"]) == 0
    assert [path.name for path in Path("more").iterdir()] == ["00001-a b.png"]


def test_keys_that_have_no_effect_are_refused(capsys: Capture) -> None:
    detector_folder(Path("boxes"))
    random_model(Path("classes"))
    name = photo("a.png", (8, 8), (1, 1, 5, 5))
    for model, key, words in (
        ("boxes", "topk=2", "a detector answers with all boxes above its threshold"),
        ("boxes", "draw=.", "here are other files"),
        ("classes", "threshold=0.5", "this model finds no boxes"),
        ("classes", "draw=out", "this model finds no boxes"),
    ):
        assert main(["predict", model, name, key]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert words in err
    assert not Path("out").exists()
