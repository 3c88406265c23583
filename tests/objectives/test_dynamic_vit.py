"""Truths about training a pruner of patches. B batch, N patches, D width, C classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import TINY, create_vit, random_model, weights
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral import load
from vitral.errors import UserError
from vitral.models.dynamic_vit import LearnedPruner
from vitral.models.vit import VisionTransformer
from vitral.objectives.config import DynamicViTConfig
from vitral.objectives.dynamic_vit import DynamicViT, divergence, share_distance, token_distance
from vitral.objectives.objective import ObjectiveContext
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.structs import Batch, View

SMALL: dict[str, Any] = {"in_channels": 1, "width": 16, "depth": 3, "heads": 2, "mlp_dim": 24}


def objective(pool: str = "avg", **keys: float) -> DynamicViT:
    def factory() -> VisionTransformer:
        torch.manual_seed(3)
        model = create_vit("vit_micro_patch2_8", pruner_blocks=(0, 1), pruner_keep=0.5, pool=pool, **SMALL)
        torch.nn.init.normal_(model.get_parameter("head.weight"))
        return model.double()

    return DynamicViT(factory, DynamicViTConfig(**keys), ObjectiveContext(10)).train()  # type: ignore[arg-type]


def batch(count: int = 6) -> Batch:
    torch.manual_seed(0)
    images = torch.rand(count, 1, 8, 8, dtype=torch.float64)
    return Batch((View(images, torch.eye(3).expand(count, 3, 3)),), {"label": torch.arange(count)}, torch.arange(count))


@pytest.mark.parametrize("pool", ["avg", "cls", "map"])
def test_the_model_learns_and_the_teacher_does_not(pool: str) -> None:
    made = objective(pool)
    out = made({"train": batch()}, 0)
    out.loss.backward()
    assert 0 < out.metrics["train_kept"] < 1
    assert all(parameter.grad is None for parameter in made.teacher.parameters())
    assert isinstance(made.model, VisionTransformer)
    assert isinstance(made.model.reduce, LearnedPruner)
    for name, parameter in made.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    predictors: Any = made.model.reduce.predictors
    for predictor in predictors.values():
        assert predictor.fc2.weight.grad.abs().sum() > 0
    assert not made.teacher.training
    assert made.model.training


def test_parts_of_the_loss_by_closed_form() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 4), torch.randn(2, 4)
    p, q = theirs.softmax(-1), mine.softmax(-1)
    assert torch.allclose(divergence(mine, theirs), (p * (p / q).log()).sum(-1).mean())
    a, b, mask = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    one, other = F.mse_loss(a[0, [0, 2]], b[0, [0, 2]]), F.mse_loss(a[1, 4], b[1, 4])
    assert torch.allclose(token_distance(a, b, mask), (one + other) / 2)
    shares = [torch.tensor([0.5, 0.7]), torch.tensor([0.2, 0.4])]
    assert torch.allclose(share_distance(shares, [0.5, 0.25]), torch.tensor((0.04 + 0.0025 + 0.0225) / 4))


def trained(micro: int | None = None, ddp: bool = False) -> Trained:
    return five_steps(objective(), batch(8), micro, ddp=ddp)


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_micro_batches_are_one_batch(micro: int) -> None:
    """Which patches stay is drawn by sample and step, and every image weighs the same."""
    assert_equal(trained(), trained(micro))


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    whole = trained()
    for found in in_processes(2, "tests.objectives.test_dynamic_vit:trained", 2, True):
        assert_equal(whole, found)


def test_an_image_keeps_at_least_one_patch() -> None:
    made = objective()
    assert isinstance(made.model, VisionTransformer)
    assert isinstance(made.model.reduce, LearnedPruner)
    predictors: Any = made.model.reduce.predictors
    for predictor in predictors.values():
        torch.nn.init.constant_(predictor.fc2.bias[0], -100)
    out = made({"train": batch()}, 0)
    assert out.metrics["train_kept"] == 1 / 16
    assert out.loss.isfinite()


def test_what_cannot_learn_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)no pruner to learn.*model\.pruner_blocks"):
        DynamicViT(lambda: create_vit("vit_micro_patch2_8"), DynamicViTConfig(), ObjectiveContext(10))
    several = batch()
    several.targets["label"] = torch.ones(6, 10, dtype=torch.bool)
    with pytest.raises(UserError, match="one class"):
        objective()({"train": several}, 0)


def test_the_pruner_travels_in_the_model_folder(tmp_path: Path) -> None:
    classes = tuple("0123456789")
    random_model(tmp_path / "init", classes, pool="avg")
    keys = {key: value for key, value in TINY.items() if not key.startswith("model.")}
    keys |= {"init": str(tmp_path / "init"), "init_head": True, "model.name": "auto", "objective.kind": "dynamic_vit"}
    keys |= {"model.pruner_blocks": [1], "model.pruner_keep": 0.5, "model.pool": None}
    run(load_config("digits", {**keys, "out": str(tmp_path / "run")}))
    assert "reduce.predictors.1.fc2.weight" in weights(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("train_kept" in row for row in rows)
    model = load(tmp_path / "run").model
    assert model.encode(torch.rand(1, 1, 8, 8)).patches_BND.shape[1] == 8
    run(load_config("digits", {**keys, "init": str(tmp_path / "run"), "out": str(tmp_path / "on")}))
    assert torch.equal(weights(tmp_path / "run")["reduce.predictors.1.norm.weight"] > 0, torch.ones(16).bool())
    plain = {**keys, "init": str(tmp_path / "run"), "model.pruner_blocks": [], "model.pruner_keep": 0.7}
    run(load_config("digits", {**plain, "objective.kind": "supervised", "out": str(tmp_path / "plain")}))
    assert not any(name.startswith("reduce.") for name in weights(tmp_path / "plain"))
