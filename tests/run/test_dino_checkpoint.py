"""Runs of DINO and iBOT: a collapse that is said, a folder that others start from, a resume that changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TINY, assert_equal_tensors, weights
from tests.run.dino_cases import DINO, IBOT
from vitral.errors import UserError
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.training.metrics_log import MetricsLog


def distil(out: str, kind: str = "dino", **more: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    given = {**TINY, **(DINO if kind == "dino" else IBOT), "train.eval_every": "end", **keys}
    return run(load_config("digits", {**given, "out": out}))


@pytest.mark.parametrize("kind", ["dino", "ibot"])
def test_a_run_leaves_the_teachers_encoder_and_others_start_from_it(kind: str) -> None:
    summary = distil("a", kind, report=True)
    assert (summary["weights"], summary["split"], summary["count"]) == ("averaged (EMA) weights", "test", 360)
    assert "20 nearest neighbors" in summary["evaluated_by"]
    assert "features of its patches" in Path("a/report.html").read_text(encoding="utf-8")
    row = next(row for row in MetricsLog.read(Path("a")) if "loss" in row)
    assert {"teacher_entropy", "teacher_mean_entropy", "feature_std", "feature_rank"} <= row.keys()
    assert json.loads(Path("a/model/config.json").read_text(encoding="utf-8"))["architecture"]["num_classes"] == 0
    tuned = {"init": "a", "model.name": "auto", **{f"model.{k}": None for k in ("width", "depth", "heads", "mlp_dim")}}
    assert run(load_config("digits", {**TINY, **tuned, "model.pool": None, "out": "b"}))["steps"] == 3


@pytest.mark.parametrize("keys", [{}, {"objective__centering": "sinkhorn", "objective__head_norm": "batch"}])
def test_a_resumed_run_is_the_uninterrupted_one(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {**keys, "train__steps": 6, "model__drop_path": 0.3, "train__save_seconds": 0.0}
    distil("whole", "ibot", **keys)
    from vitral.training import loop

    real, calls = loop.train_step, list[int]()

    def stops(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", stops)
    with pytest.raises(BaseException, match="Resume with"):
        distil("cut", "ibot", **keys)
    monkeypatch.setattr(loop, "train_step", real)
    distil("cut", "ibot", **keys, resume=True)
    assert_equal_tensors(weights("cut"), weights("whole"))


# A teacher without momentum, nothing against the collapse, and a temperature that decides which way it goes.
LOOSE: dict[str, Any] = {
    "objective__momentum": 0.0, "objective__momentum_final": 0.0, "objective__temperature_warmup": 0.0,
    "train__steps": 120, "optim__lr": 1e-2, "train__log_every": 5, "train__batch_size": 64,
}  # fmt: skip


@pytest.mark.slow
def test_a_teacher_that_is_not_sharpened_collapses_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    distil("a", **LOOSE, objective__teacher_temperature=1.0, objective__teacher_temperature_start=1.0)
    assert "collapse: the teacher says the same of every prototype" in caplog.text
    assert caplog.text.count("says the same") == 1, "once"


@pytest.mark.slow
def test_a_teacher_that_is_not_centered_collapses_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    distil(
        "a", **LOOSE, objective__teacher_temperature=0.01, objective__teacher_temperature_start=0.01,
        objective__center_momentum=0.9999,
    )  # fmt: skip
    assert "collapse" in caplog.text
    assert "one prototype" in caplog.text or "nearly equal" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", ["digits_dino", "digits_ibot"])
def test_features_of_the_digits_recipes_tell_digits_apart(recipe: str) -> None:
    """A third of the recipes' length; an untrained encoder's nearest neighbors are right in less than half."""
    keys = {"train.epochs": 25, "report": False, "train.eval_every": "end", "out": "a"}
    assert run(load_config(recipe, keys))["top1"] > 0.85


def test_wrong_keys_are_refused_in_one_message() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"augment__crop": "random_resized"}, r"no effect with objective\.kind=dino: augment\.crop"),
        ({"augment__blur": 0.5}, r"augment\.blur"),
        ({"train__ema": 0.99}, r"train\.ema"),
        ({"objective__local_size": 5}, r"(?s)objective\.local_size.*multiple of 2"),
        ({"objective__momentum": 1.5}, r"objective.*momentum"),
        ({"objective__out_dims": 5}, r"out_dim"),
    )  # fmt: skip
    for keys, match in wrong:
        with pytest.raises(UserError, match=match):
            distil("a", **keys)
    assert not Path("a").exists()
