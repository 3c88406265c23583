"""Runs that start from another model: at other sizes, patches and channels, with its head or a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitral
from tests.helpers import random_model, weights, write_colors
from vitral.data.config import DataSource
from vitral.errors import UserError
from vitral.run.command_options import EvalOptions
from vitral.run.evaluate import evaluate

STILL: dict[str, Any] = {
    "train.steps": 1, "train.batch_size": 4, "train.ema": None, "optim.lr": 1e-30, "optim.warmup": 0.0, "report": False,
    "objective.head_only_fraction": 0.0, "data.path": "pets", "init": "model", "data.image_size": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_colors(Path("pets"), "cat dog", 8, (8, 8))


def tuned(caplog: pytest.LogCaptureFixture, **keys: Any) -> vitral.Predictor:
    """What a run leaves that changes no weight, started from "model"."""
    with caplog.at_level("INFO", logger="vitral"):
        vitral.train("finetune", {**STILL, **{key.replace("__", "."): value for key, value in keys.items()}}, out="run")
    return vitral.load("run")


def test_the_head_comes_along_on_request(caplog: pytest.LogCaptureFixture) -> None:
    random_model(Path("model"), ("cat", "dog"), in_channels=3, head="mlp")
    tuned(caplog, init_head=True)
    torch.testing.assert_close(dict(weights("run")), dict(weights("model")), rtol=0, atol=1e-20)
    caplog.clear()
    random_model(Path("other"), ("cat", "cow"), in_channels=3)
    with pytest.raises(UserError, match=r"init has other classes[\s\S]*cat, cow[\s\S]*cat, dog"):
        vitral.train("finetune", {**STILL, "init": "other", "init_head": True}, out="b")
    with pytest.raises(UserError, match="init_head"):
        vitral.train("digits", {"init_head": True}, out="c")


def test_other_channels_give_the_same_answer(caplog: pytest.LogCaptureFixture) -> None:
    random_model(Path("model"), ("cat", "dog"), in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
    before, after = vitral.load("model"), tuned(caplog, init_head=True, data__channels=1)
    assert "init: channels exchanged from 3 to 1" in caplog.text
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(after.model(images), before.model(images.expand(-1, 3, -1, -1)), rtol=0, atol=1e-4)


def test_other_size_and_patches(caplog: pytest.LogCaptureFixture) -> None:
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    larger = tuned(caplog, init_head=True, data__image_size=[12, 8])
    assert "init: positions brought from a grid of 4 x 4 to 6 x 4 patches" in caplog.text
    assert larger.config.architecture.image_size == (12, 8)
    images = torch.rand(2, 3, 12, 8)
    direct = vitral.load("model").model
    torch.testing.assert_close(larger.model.encode(images).patches_BND, direct.encode(images).patches_BND)
    vitral.train("finetune", {**STILL, "model.patch_size": 4}, out="b")
    assert "init: patches resampled from 2 to 4 pixels a side" in caplog.text


def test_a_new_head_learns_first_and_nothing_else_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor statistics of the encoder, and it works as in evaluation; then it trains."""
    small = {"model.name": "resnet20_cifar", "model.blocks": [1, 1], "data.path": "pets", "report": False}
    more = {"model.patch_size": None, "data.image_size": 8, "train.batch_size": 4, "train.ema": None}
    vitral.train("small", {**small, **more, "train.steps": 2}, out="first")
    vitral.train("finetune", {**STILL, "optim.lr": 0.1, "init": "first", "objective.head_only_fraction": 1.0}, out="b")
    before, after = weights("first"), weights("b")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.fc.bias", "head.fc.weight"]
    vitral.train("finetune", {**STILL, "optim.lr": 0.1, "init": "first", "train.steps": 2}, out="c")
    assert not torch.equal(weights("c")["stem.norm.running_mean"], before["stem.norm.running_mean"])


def test_the_head_of_the_distillation_token_starts_as_the_other() -> None:
    keys = {"model.distill_token": True, "model.pool": "cls", "model.head_bias": -6.9, "optim.lr": 1e-30}
    vitral.train("digits", {**keys, "train.steps": 1, "train.ema": None, "report": False}, out="run")
    found = weights("run")
    for name in ("head.bias", "head_dist.bias"):
        torch.testing.assert_close(found[name], torch.full((10,), -6.9))


def test_eval_at_another_size(caplog: pytest.LogCaptureFixture) -> None:
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    with caplog.at_level("INFO", logger="vitral"):
        found = evaluate("model", EvalOptions(data=DataSource(path="pets"), image_size=12, position_resize="google"))
    assert "a grid of 4 x 4 to 6 x 6 patches" in caplog.text
    predictor = vitral.load("model", image_size=12, position_resize="google")
    answers = [answer["predictions"][0]["label"] for answer in predictor.predict(sorted(Path("pets").rglob("*.png")))]
    right = [label == name for label, name in zip(answers, ["cat"] * 8 + ["dog"] * 8, strict=True)]
    assert found["top1"] == pytest.approx(sum(right) / 16)


def test_residual_networks_are_trained_and_used(caplog: pytest.LogCaptureFixture) -> None:
    small = {"model.name": "resnet20_cifar", "model.blocks": [1, 1], "data.path": "pets", "report": False}
    found = vitral.train(
        "small", {**small, "model.patch_size": None, "train.steps": 3, "data.image_size": 9}, out="cnn"
    )
    predictor = vitral.load("cnn")
    assert predictor.embed([next(iter(Path("pets").rglob("*.png")))]).shape == (1, 32)
    assert found["top1"] == pytest.approx(evaluate("cnn")["top1"])
