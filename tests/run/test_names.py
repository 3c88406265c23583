"""Files and folders whose names are not UTF-8, or hold control characters: written one way, and no run ends by them."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pytest

from tests.helpers import TINY, shape_image
from vitral.cli.main import main
from vitral.config import load_yaml

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
CLASSES = (b"caf\xe9", b"te\na")
SHOWN = [r"caf\xe9", r"te\na"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = os.fsencode(tmp_path) + b"/d\xe9p\xf4t"
    for label, shape in zip(CLASSES, ("circle", "cross"), strict=True):
        os.makedirs(root + b"/" + label)
        for number in range(20):
            path = root + b"/" + label + b"/\xe9t\xe9%d.png" % number
            shape_image(shape, number, gray=True).save(os.fsdecode(path))
    return Path(os.fsdecode(root))


def test_a_run_writes_such_names_with_escapes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {**TINY, "report": True, "out": tmp_path / "run", "data": folder, "data.image_size": 12}
    words = [f"{key}={'null' if value is None else value}" for key, value in keys.items()]
    assert main(["train", "small", "model.name=vit_micro_patch2_8", "model.patch_size=4", *words]) == 0
    run = tmp_path / "run"
    config = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == SHOWN
    assert config["provenance"]["data"]["path"] == str(folder)  # JSON's own escape reads back as the name
    assert load_yaml(run / "config.yaml")["data"]["path"] == str(folder)
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == set(SHOWN)
    assert all(row["image"].startswith((r"caf\xe9/\xe9t\xe9", r"te\na/\xe9t\xe9")) for row in rows)
    for name, text in (("train.log", r"d\xe9p\xf4t"), ("report.html", r"caf\xe9"), ("model/README.md", r"caf\\xe9")):
        assert text in (run / name).read_text(encoding="utf-8"), name
    capsys.readouterr()
    assert main(["eval", str(run), f"data={folder}", "split=train", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["per_class"]) == set(SHOWN)
    assert main(["data", "convert", str(folder), f"out={tmp_path / 'csv'}", "layout=csv"]) == 0
    with (tmp_path / "csv" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(SHOWN)


def test_commands_write_such_names_with_escapes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((folder / os.fsdecode(CLASSES[1])).iterdir())
    assert main(["predict", "vitral-digits", str(image)]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(image)
    assert main(["explain", "vitral-digits", str(image), "methods=[rollout]", f"out={tmp_path / 'seen'}"]) == 0
    assert main(["predict", "vitral-digits", str(image) + "\x1b[31m"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert r"d\xe9p\xf4t/te\na/" in said
    assert "\x1b" not in said
