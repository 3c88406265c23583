"""The check at the start of a run: what refuses it, what it says, what is left out, what stays in the model folder."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY, random_model, write_colors
from vitral.data.scan import scan
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.inference_inputs import open_images
from vitral.run.train import run
from vitral.training.metrics_log import log
from vitral.weights.folder import load_config as load_config_of


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_colors(tmp_path / "pets", "cat dog", 12, (12, 9))


def tiny(out: str, **more: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    data = {"data.path": "pets", "data.image_size": 8, "model.name": "vit_micro_patch2_8"}
    return run(load_config("digits", {**TINY, **data, **keys, "out": out}))


def test_all_errors_in_one_message_and_nothing_written(pets: Path) -> None:
    shutil.copy(pets / "cat/1.png", pets / "dog/copy.png")
    shutil.copy(pets / "cat/2.png", pets / "dog/cat_2.png")
    (pets / "dog/cut.png").write_bytes((pets / "dog/1.png").read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        tiny("out")
    text = str(caught.value)
    for part in ("name-label:", "dog/cat_2.png", "damaged:", "dog/cut.png", "duplicates-labels:", "data.max_bad=1"):
        assert part in text
    assert "check.allow=name-label,duplicates-labels" in text
    assert caught.value.exit_code == 2
    assert not Path("out").exists()


def test_what_the_message_proposes_trains(pets: Path) -> None:
    shutil.copy(pets / "cat/1.png", pets / "dog/cat_1.png")
    (pets / "dog/cut.png").write_bytes(b"")
    tiny("out", check__allow=["name-label", "duplicates-labels"], data__max_bad=1)
    data = json.loads(Path("out/model/config.json").read_text(encoding="utf-8"))["provenance"]["data"]
    assert sum(data["counts"].values()) == 25
    assert len(data["content"]) == 16


def test_the_second_run_decodes_nothing_for_the_check(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("vitral.data.scan.scan", lambda *args: (calls.append(1), scan(*args))[1])
    tiny("a")
    tiny("b")
    assert len(calls) == 1
    contents = [
        json.loads(Path(f"{out}/model/config.json").read_text(encoding="utf-8"))["provenance"]["data"]["content"]
        for out in "ab"
    ]
    assert contents[0] == contents[1]


def test_warnings_are_shown(pets: Path) -> None:
    shutil.copy(pets / "cat/1.png", pets / "cat/copy.png")
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()}")

    handler = Keep()
    log.addHandler(handler)
    try:
        tiny("a")
        tiny("b", check__allow=["duplicates"])
    finally:
        log.removeHandler(handler)
    shown = [line for line in lines if "[duplicates]" in line]
    assert len(shown) == 1
    assert shown[0].startswith("WARNING data: 1 group")
    assert "cat/1.png, cat/copy.png" in shown[0]
    assert any("25 images checked in" in line for line in lines)
    for name, times in (("a", 1), ("b", 0)):
        notes = json.loads(Path(name, "model/config.json").read_text(encoding="utf-8"))["provenance"]["data"]["notes"]
        assert sum("[duplicates]" in note for note in notes) == times
        assert Path(name, "model/README.md").read_text(encoding="utf-8").count(r"\[duplicates\]") == times


def test_copies_inside_train_do_not_refuse_and_stay_on_one_side_of_the_carved_validation_split(pets: Path) -> None:
    for number in range(6):
        for name in "abc":
            shutil.copy(pets / f"cat/{number}.png", pets / f"cat/{number}{name}.png")
    tiny("out", data__val_fraction=0.3)
    recorded, _ = open_images(load_config_of(Path("out/model")), EvalOptions().data, load_config_of(Path("out/model")))
    rows = Path("out/predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    judged = [row.split(",")[0] for row in rows]
    assert judged == recorded.splits["val"].names
    sides = [
        {(pets.parent / "pets" / name).read_bytes() for name in recorded.splits[s].names} for s in ("train", "val")
    ]
    assert not sides[0] & sides[1]
    assert len(recorded.splits["val"]) == pytest.approx(0.3 * 42, abs=2)


def test_far_normalization_of_init_is_told(pets: Path) -> None:
    random_model(Path("model"), ("cat", "dog"), mean=(0.99,) * 3, std=(0.02,) * 3, in_channels=3)
    keys = {f"model__{key}": None for key in ("width", "depth", "heads", "mlp_dim", "pool")}
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # pyright: ignore[reportAttributeAccessIssue]
    log.addHandler(handler)
    try:
        tiny("out", init="model", **{**keys, "model__name": "auto"})
    finally:
        log.removeHandler(handler)
    assert any("[normalization]" in line for line in lines)


def test_one_class_and_empty_classes_can_be_allowed(pets: Path) -> None:
    (pets / "owl").mkdir()
    with pytest.raises(UserError, match=r"empty-class: no image of owl"):
        tiny("out")
    tiny("out", check__allow=["empty-class", "split-classes"])
    names = json.loads(Path("out/model/config.json").read_text(encoding="utf-8"))["id2label"]
    assert names == {"0": "cat", "1": "dog", "2": "owl"}
    for name in ("owl", "dog"):
        shutil.rmtree(pets / name)
    for skip in (False, True):
        with pytest.raises(UserError, match="only one class"):
            tiny(f"one-{skip}", check__skip=skip)
        assert tiny(f"one-{skip}", check__skip=skip, check__allow=["one-class"])["top1"] == 1.0
    assert evaluate("one-True")["top1"] == 1.0


def test_a_flat_folder_can_be_allowed(pets: Path) -> None:
    shutil.rmtree(pets / "dog")
    for number in range(12):
        (pets / f"cat/{number}.png").rename(pets / f"cat/{'owl' if number % 2 else 'fox'}_{number}.png")
    with pytest.raises(UserError, match=r"(?s)one-class.*flat-folder.*data\.source=filename"):
        tiny("out")
    assert tiny("out", check__allow=["one-class", "flat-folder"])["top1"] == 1.0
