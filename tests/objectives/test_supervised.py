"""Losses against torch's own, closed forms, and micro-batches against the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import create_vit
from vitral.models.parameters import freeze_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.losses import binary_cross_entropy, cross_entropy, soft_multi_hot, soft_targets
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.supervised import Supervised
from vitral.structs import Batch, View


def batch(size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (size,), generator=generator)
    return Batch((View(images, torch.eye(3).expand(size, 3, 3)),), {"label": labels}, torch.arange(size))


def objective(**keys: float) -> Supervised:
    torch.manual_seed(0)
    config = SupervisedConfig(**keys)  # type: ignore[arg-type]
    made = Supervised(lambda: create_vit("vit_micro_patch2_8").double(), config, ObjectiveContext(100))
    torch.nn.init.normal_(made.model.get_parameter("head.weight"))
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_equals_torchs(smoothing: float, dtype: torch.dtype) -> None:
    logits, labels = torch.randn(31, 7, dtype=dtype) * 5, torch.randint(0, 7, (31,))
    found = cross_entropy(logits, soft_targets({"label": labels}, 7, smoothing))
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=smoothing), rtol=1e-6, atol=1e-6)


def test_mixed_labels_are_the_weighted_sum_of_both_losses() -> None:
    logits, labels, partners, weight = (
        torch.randn(9, 5),
        torch.randint(0, 5, (9,)),
        torch.randint(0, 5, (9,)),
        torch.rand(9),
    )
    target = soft_targets({"label": labels, "partner": partners, "weight": weight}, 5, 0.1)
    torch.testing.assert_close(target.sum(1), torch.ones(9))
    parts = [F.cross_entropy(logits, y, label_smoothing=0.1, reduction="none") for y in (labels, partners)]
    torch.testing.assert_close(cross_entropy(logits, target), (weight * parts[0] + (1 - weight) * parts[1]).mean())


def test_the_loss_is_computed_in_float32_whatever_the_logits_are() -> None:
    logits = torch.tensor([[300.0, 0.0]], dtype=torch.bfloat16)
    loss = cross_entropy(logits, soft_targets({"label": torch.tensor([1])}, 2, 0.0))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(300, rel=0.01)


def test_an_untrained_model_has_the_loss_of_guessing() -> None:
    made = Supervised(lambda: create_vit("vit_micro_patch2_8").double(), SupervisedConfig(), ObjectiveContext(100))
    assert made({"train": batch()}, 0).loss.item() == pytest.approx(math.log(10)), "the head starts at zero"


def test_in_the_first_steps_only_the_head_learns() -> None:
    made = objective(head_only_fraction=0.3)
    for step, frozen in ((0, True), (29, True), (30, False)):
        made.zero_grad()
        made({"train": batch()}, step).loss.backward()
        moved = {name for name, parameter in made.model.named_parameters() if parameter.grad is not None}
        assert (moved == {"head.weight", "head.bias"}) == frozen, step


def test_the_frozen_phase_computes_the_same_loss() -> None:
    assert objective(head_only_fraction=1.0)({"train": batch()}, 0).loss.item() == pytest.approx(
        objective()({"train": batch()}, 0).loss.item(), abs=1e-12
    )


def test_a_frozen_encoder_works_as_in_evaluation_and_only_the_head_learns() -> None:
    def factory() -> VisionTransformer:
        made = create_vit("vit_micro_patch2_8", dropout=0.5, drop_path=0.5).double()
        torch.nn.init.normal_(made.get_parameter("head.weight"))
        freeze_encoder(made)
        return made

    made = Supervised(factory, SupervisedConfig(), ObjectiveContext(100)).train()
    first, second = made({"train": batch()}, 0).loss, made({"train": batch()}, 0).loss
    assert first == second, "no dropout"
    first.backward()
    assert {name for name, p in made.model.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}
    assert (
        Supervised(lambda: create_vit("vit_micro_patch2_8"), SupervisedConfig(), ObjectiveContext(1))
        .train()
        .model.training
    )


def test_the_sigmoid_loss_is_summed_over_classes_and_starts_where_rare_classes_leave_it() -> None:
    made = Supervised(
        lambda: create_vit("vit_micro_patch2_8", num_classes=10).double(),
        SupervisedConfig(loss="sigmoid"),
        ObjectiveContext(1),
    )
    torch.nn.init.constant_(made.model.get_parameter("head.bias"), -6.9)
    expected = 9 * math.log1p(math.exp(-6.9)) + math.log1p(math.exp(6.9))
    assert made({"train": batch()}, 0).loss.item() == pytest.approx(expected, rel=1e-12)
    torch.nn.init.normal_(made.model.get_parameter("head.weight"))
    one = batch()
    logits, hot = made.model(one.views[0].images_BCHW), F.one_hot(one.targets["label"], 10).double()
    summed = F.binary_cross_entropy_with_logits(logits, hot, reduction="sum") / 12
    torch.testing.assert_close(made({"train": one}, 0).loss, summed)


def test_train_top1_counts_right_answers() -> None:
    made = objective()
    logits = made.model(batch().views[0].images_BCHW)
    share = (logits.argmax(1) == batch().targets["label"]).float().mean()
    assert made({"train": batch()}, 0).metrics["train_top1"] == share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_cross_entropy_equals_torchs(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(31, 7, dtype=dtype) * 5, torch.rand(31, 7) < 0.3
    found = binary_cross_entropy(logits, soft_multi_hot({"label": labels}, 0.0))
    torch.testing.assert_close(found, torch.nn.BCEWithLogitsLoss()(logits, labels.to(dtype)), rtol=1e-6, atol=1e-6)


def test_multi_hot_targets_are_mixed_and_smoothed_class_by_class() -> None:
    labels, partners, weight = torch.rand(9, 5) < 0.4, torch.rand(9, 5) < 0.4, torch.rand(9)
    logits = torch.randn(9, 5)
    target = soft_multi_hot({"label": labels, "partner": partners, "weight": weight}, 0.1)
    assert 0.05 - 1e-6 <= target.min() <= target.max() <= 0.95 + 1e-6

    def loss(hot: torch.Tensor) -> torch.Tensor:
        smooth = hot.float() * 0.9 + 0.05
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)

    expected = (weight * loss(labels) + (1 - weight) * loss(partners)).mean()
    torch.testing.assert_close(binary_cross_entropy(logits, target), expected)


def test_multi_hot_labels_choose_the_loss() -> None:
    made, one = objective(), batch()
    hot = F.one_hot(one.targets["label"], 10).bool()
    logits = made.model(one.views[0].images_BCHW)
    found = made({"train": one._replace(targets={"label": hot})}, 0)
    torch.testing.assert_close(found.loss, F.binary_cross_entropy_with_logits(logits, hot.double()))
    assert found.metrics["train_exact_match"] == ((logits >= 0) == hot).all(1).float().mean()
