"""Sweeps: what is trained on what, who wins, what is judged, and that a stopped one goes on to the same end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import vitral
from tests.helpers import TINY, assert_equal_tensors, weights, write_colors
from vitral.cli.main import main
from vitral.cli.sweep import split_values
from vitral.data.loader import StreamLoader
from vitral.errors import Interrupted, RunFailed, UserError
from vitral.run.config import load_config
from vitral.run.evaluate import evaluate
from vitral.run.sweep import sweep
from vitral.run.train import run
from vitral.structs import Batch

KEYS = {key: value for key, value in TINY.items() if key != "train.eval_every"}
GRID = {"optim.lr": [1e-4, 1e-2], "optim.clip": [0.1, 1.0]}


def counts(folder: Path) -> dict[str, int]:
    tree = json.loads((folder / "model/config.json").read_text(encoding="utf-8"))
    return tree["provenance"]["data"]["counts"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep of four points on the digits, of 1,437 train images."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    return folder, sweep("digits", GRID, {**KEYS, "train.steps": 30}, dev=0.25, out=folder)


def test_every_point_of_the_grid_is_there_with_its_score(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = swept
    assert json.loads((folder / "sweep.json").read_text(encoding="utf-8")) == found
    assert [(row["optim.lr"], row["optim.clip"]) for row in found["points"]] == [
        (1e-4, 0.1), (1e-4, 1.0), (1e-2, 0.1), (1e-2, 1.0)
    ]  # fmt: skip
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        assert [row["val_top1"] for row in csv.DictReader(file)] == [str(row["val_top1"]) for row in found["points"]]
    best = max(found["points"], key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert found["best"] == {key: best[key] for key in GRID}
    assert (found["dev"], found["score"], found["grid"]) == (0.25, "top1", GRID)


def test_points_never_see_the_test_images_and_the_winner_sees_all_the_rest(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = swept
    for row in found["points"]:
        assert counts(folder / row["run"]) == {"train": 1078, "val": 359}
    again = evaluate(str(folder / "01"))
    assert (again["split"], again["top1"]) == ("val", found["points"][0]["val_top1"]), "eval asks the same images"
    assert counts(folder / "best") == {"train": 1437, "test": 360}
    assert (found["result"]["split"], found["result"]["count"]) == ("test", 360)
    assert found["result"]["temperature"] == 1, "there was no image to fit it on"
    assert "val_top1" not in found["result"]
    card = (folder / "best/model/README.md").read_text(encoding="utf-8")
    assert "of step 30, the last." in card
    assert "temperature scaling" not in card


def test_the_winner_is_the_run_that_its_keys_describe(swept: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = swept
    keys = {**KEYS, "train.steps": 30, **found["best"], "data.validation": "none", "data.val_fraction": 0.25}
    run(load_config("digits", {**keys, "out": str(tmp_path / "a")}))
    assert_equal_tensors(weights(tmp_path / "a"), weights(folder / "best"))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stopped_sweep_goes_on_to_the_same_end(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the first point, in the second one, in the last run."""
    grid: Mapping[str, Any] = {"optim.lr": [1e-4, 1e-2]}
    whole = sweep("digits", grid, KEYS, out="whole")
    make, calls = StreamLoader.batch, [0]

    def batch(self: StreamLoader, step: int) -> Batch:
        calls[0] += 1
        if calls[0] == 3 * at - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return make(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(StreamLoader, "batch", batch)
        with pytest.raises(Interrupted) as caught:
            sweep("digits", grid, KEYS, out="parts")
    assert caught.value.exit_code == 130
    command = str(caught.value).splitlines()[1].split()
    assert command[:3] == ["vitral", "sweep", "digits"]
    finished = {path: path.stat().st_mtime_ns for path in Path("parts").glob("*/summary.json")}
    assert len(finished) == at - 1
    assert main([word.strip("'") for word in command[1:]]) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items()), "every point was run twice"
    found = json.loads(Path("parts/sweep.json").read_text(encoding="utf-8"))
    assert timeless(found) == timeless(whole)
    assert_equal_tensors(weights("whole/best"), weights("parts/best"))


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in found["result"].items() if key != "train_seconds"}
    points = [{key: value for key, value in row.items() if key != "train_seconds"} for row in found["points"]]
    return {**found, "result": result, "points": points}


def test_a_point_that_diverges_is_marked_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in {**KEYS, "train.steps": 8}.items()]
    assert main(["sweep", "digits", *words, "optim.lr=1e30,1e-3", "retrain=false", "out=a"]) == 0
    rows = json.loads(Path("a/sweep.json").read_text(encoding="utf-8"))["points"]
    assert "nan" in rows[0]["error"]
    table = capsys.readouterr().out.splitlines()
    assert "failed" in table[1]
    assert table[2].endswith("best")
    assert not Path("a/best").exists()
    with pytest.raises(RunFailed, match="every point"):
        sweep("digits", {"optim.lr": [1e30, 1e31]}, {**KEYS, "train.steps": 8}, out="b")


def test_validation_images_belong_to_train_where_there_are_test_images() -> None:
    for place, (split, count) in enumerate((("train", 8), ("val", 4), ("test", 3))):
        write_colors(Path("pets") / split, "cat dog", count, (12, 12), first=100 * place)
    keys = {**KEYS, "model.name": "vit_micro_patch2_8", "data.image_size": 8, "data": "pets", "check.skip": True}
    grid = {"optim.lr": [1e-3, 1e-2]}
    found = sweep("digits", grid, keys, dev=0.25, out="a")
    assert counts(Path("a/01")) == {"train": 18, "val": 6}
    assert counts(Path("a/best")) == {"train": 24, "test": 6}
    assert len(Path("a/best/predictions.csv").read_text(encoding="utf-8").splitlines()) == 7
    shutil.rmtree("pets/test")
    found = sweep("digits", grid, keys, dev=0.25, out="b")
    assert counts(Path("b/01")) == {"train": 12, "val": 4}
    assert counts(Path("b/best")) == {"train": 16, "val": 8}, "the validation images judge, and choose nothing"
    assert found["result"]["split"] == "val"
    shutil.rmtree("pets/val")
    with pytest.raises(UserError, match="no test split"):
        sweep("digits", grid, keys, out="c")
    assert vitral.sweep("digits", grid, keys, retrain=False, out="d")["result"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim.lr=1e-3", "no grid"),
        ("optim.lr=1e-3,fast", "optim.lr: wrong value"),
        ("optim.lrr=1e-3,1e-2", "unknown key"),
        ("optim.lr=1e-3,1e-2 dev=1.5", "data.val_fraction"),
        ("optim.lr=1e-3,1e-2 dev=0.1 data.val_fraction=0.1", "given twice"),
        ("data.val_fraction=0.1,0.2 dev=0.3", "different validation images"),
        ("data.val_fraction=0.1,0.2", "different validation images"),
        ("optim.lr=1e-3,1e-2 data.validation=own", "this key is set by the sweep"),
        ("optim.lr=1e-3,1e-2 train.patience=3", "train.patience needs"),
        ("optim.lr=1e-3,1e-2 retrain=maybe", "retrain: wrong value"),
        ("optim.lr=1e-3,1e-2 train.freeze=none,encoder", "init"),
        ("optim.warmup=5,40 train.steps=40", "the warm-up is longer than the run"),
        ("optim.warmup=20,63 train.epochs=3 dev=0.1", "below 61"),  # 1,294 images, 64 a step
        ("model.name=vit_micro_patch2_8,vit_mikro_patch2_8", "did you mean 'vit_micro_patch2_8'?"),
        ("model.heads=4,7", "7 heads"),
        ("model.patch_size=2,3", "patch_size 3"),
        ("data.image_size=8,9", "9 x 9"),
        ("optim.lr=1e-3,1e-2 out=full", "not empty"),
        ("optim.lr=1e-3,1e-2 out=full resume=true", "folder contains no sweep"),
        ("optim.lr=1e-3,1e-2 out=full overwrite=true", "folder contains no sweep"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    monkeypatch.setattr("vitral.run.sweep.run", lambda _: pytest.fail("it ran"))
    assert main(["sweep", "digits", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in Path().rglob("*")] == ["full", "thesis.tex"]


def test_another_sweep_is_not_gone_on_with_and_is_replaced_on_request() -> None:
    grid = {"optim.lr": [1e-3, 1e-2]}
    sweep("digits", {"optim.lr": [1e-3, 1e-2, 1e-1]}, KEYS, retrain=False, out="a")
    with pytest.raises(UserError, match=r"another configuration(?s:.*)grid: .*0\.1"):
        sweep("digits", grid, KEYS, retrain=False, out="a", resume=True)
    Path("a/notes.txt").touch()
    sweep("digits", grid, KEYS, retrain=False, out="a", overwrite=True)
    assert {path.name for path in Path("a").iterdir()} == {"01", "02", "notes.txt", "sweep.csv", "sweep.json"}
    with pytest.raises(UserError, match=r"another configuration(?s:.*)optim\.clip"):
        sweep("digits", grid, {**KEYS, "optim.clip": 0.5}, retrain=False, out="a", resume=True)


def test_commas_in_brackets_belong_to_a_value() -> None:
    assert split_values("1,2") == ["1", "2"]
    assert split_values("[0.9,0.95],[0.9,0.999]") == ["[0.9,0.95]", "[0.9,0.999]"]
    assert split_values("[1,2]") == ["[1,2]"]
