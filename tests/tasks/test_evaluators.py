"""Evaluators by name: what a toy one finds is in log, summary, report and card; wrong names are one message."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from tests.helpers import TINY, edit_config, random_model
from vitral.cli.main import main
from vitral.evaluate import config
from vitral.evaluate.config import EvaluatorConfig
from vitral.evaluate.metric import Metric
from vitral.run.command_options import EvalOptions
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.tasks.classification import Classification
from vitral.tasks.features import Features
from vitral.tasks.task import Evaluator, Found, Subject, Task
from vitral.training.metrics_log import MetricsLog


class DarkConfig(EvaluatorConfig):
    """Keys of the toy: images are multiplied by `factor`."""

    factor: float = Field(default=0.5, description="of brightness")


def dark(task: Task, subject: Subject, config: DarkConfig) -> Iterator[Found]:
    """Top-1 on darker images, by the model itself."""
    right = count = 0
    for images_BCHW, labels_B in subject.batches(subject.split, None):
        right += int((subject.model.eval()(config.factor * images_BCHW).argmax(1) == labels_B).sum())
        count += len(labels_B)
    yield Metric("dark_top1", "top-1 in the dark", right / count)
    yield "dark_count", count


@pytest.fixture
def toy() -> Generator[None]:
    """The toy in the tables, as another room would add it."""
    evaluators: dict[str, Evaluator] = {**Classification.evaluators, "dark": dark}
    before, Classification.evaluators = Classification.evaluators, evaluators
    config.EVALUATORS["dark"] = DarkConfig
    yield
    Classification.evaluators = before
    del config.EVALUATORS["dark"]


def tiny(out: Path, **more: Any) -> dict[str, Any]:
    return run(load_config("digits", {**TINY, "out": str(out), **more}))


@pytest.mark.usefixtures("toy")
def test_a_later_evaluator_is_shown_everywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    summary = tiny(out, eval={"clean": {}, "dark": {"factor": 0.0}}, report=True)
    shown = Metric("dark_top1", "top-1 in the dark", summary["dark_top1"]).text()
    assert summary["dark_count"] == 360
    assert summary["primary"] == {
        "name": "top1", "value": summary["top1"], "interval": summary["top1_interval"]
    }  # fmt: skip
    # Black images have one answer, so one class of the balanced test images is right.
    assert 0.05 < summary["dark_top1"] < 0.15
    for path in ("train.log", "report.html", "model/README.md"):
        text = (out / path).read_text(encoding="utf-8")
        assert "top-1 in the dark" in text, path
        assert shown in text, path
    assert all("val_dark_top1" not in row for row in MetricsLog.read(out)), "the first evaluator alone validates"
    assert main(["eval", str(out), "eval.clean={}", "eval.dark.factor=0.0", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["dark_top1"] == summary["dark_top1"]
    assert found["primary"] == summary["primary"]
    assert main(["eval", str(out), "eval.clean={}", "eval.dark.factor=0.0"]) == 0
    text = capfd.readouterr().out
    assert "top-1 in the dark" in text
    assert shown in text


@pytest.mark.usefixtures("toy")
def test_the_first_evaluator_chooses_the_checkpoint(tmp_path: Path) -> None:
    summary = tiny(tmp_path / "a", eval={"dark": {"factor": 0.9}, "clean": {}}, **{"train.steps": 6})
    rows = [row for row in MetricsLog.read(tmp_path / "a") if "val_dark_top1" in row]
    best = max(row["val_dark_top1"] for row in rows)
    assert summary["val_dark_top1"] == best
    assert summary["best_step"] == next(row["step"] for row in rows if row["val_dark_top1"] == best)
    assert summary["primary"]["name"] == "dark_top1"
    assert "val_top1" not in rows[0]
    assert "top1" in summary


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval.claen={}"], ("unknown evaluator", "claen", "did you mean 'clean'")),
        (["eval.clean.factor=1"], ("factor", "unknown key")),
        (["eval.knn.k=3"], ("unknown evaluator of the task classification", "knn", "clean")),
        (["objective.kind=mae", "eval.clean={}"], ("unknown evaluator of the task features", "clean", "knn")),
    ],
)
def test_wrong_evaluators_are_one_message(
    words: list[str], says: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", f"out={tmp_path / 'a'}", "augment.rotate=0", *words]) == 2
    err = capfd.readouterr().err
    assert all(text in err for text in says), err
    assert "Traceback" not in err
    assert not (tmp_path / "a/config.yaml").exists()
    if "objective.kind=mae" not in words:
        random_model(Path("model"), tuple("0123456789"))
        assert main(["eval", "model", "data=digits", *words]) == 2
        assert all(text in capfd.readouterr().err for text in says[:1])


def test_features_are_evaluated_by_their_neighbors_alone() -> None:
    assert list(Features.evaluators) == ["knn"]
    attacks = ["fgsm", "fgm", "rfgsm", "fgsm_rs", "pgd", "mifgsm", "apgd", "square", "ensemble"]
    assert list(Classification.evaluators) == ["clean", *attacks]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.pop("task"), "of an older version"),
        (lambda tree: tree.update(task="clasification"), "did you mean 'classification'"),
        (lambda tree: tree.update(task="features"), "does not fit a head of 3 outputs"),
    ],
)
def test_a_folder_of_another_task_is_one_message(change: Any, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    random_model(Path("model"))
    edit_config(Path("model"), change)
    assert main(["doctor", "model"]) == 2
    assert says in capfd.readouterr().err


def test_a_metric_without_a_value_meets_no_limit() -> None:
    options = EvalOptions(min_top1=0.9, max_mae=2.0)
    assert options.missed({"top1": 0.9, "mae": 2.0}) == []
    assert options.missed({"top1": 0.5, "mae": 3.0}) == [
        "top1 0.5000 is below min_top1=0.9", "mae 3.0000 is above max_mae=2.0",
    ]  # fmt: skip
    assert options.missed({"mae": None}) == [
        "top1 was not measured by these evaluators, so min_top1=0.9 is not met",
        "mae is undefined on these samples, so max_mae=2.0 is not met",
    ]
