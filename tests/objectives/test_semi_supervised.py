"""What all semi-supervised kinds share, and what each adds: gradients, teachers, ramps, micro-batches, processes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.objectives.semi import CLASSES, KINDS, LEARNS, STEPS, batches, make
from tests.processes import in_processes
from vitral import distributed
from vitral.config import build
from vitral.data.config import AugmentConfig
from vitral.data.mixing import beta_quantiles
from vitral.objectives.class_balance import ClassBalance
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.fixmatch import FixMatch
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.pseudo_labels import draw_pairs
from vitral.objectives.semi_supervised import SemiSupervised, class_entropy
from vitral.objectives.semi_supervised_config import (
    FixMatchConfig,
    MeanTeacherConfig,
    SemiViTConfig,
    StrongViewConfig,
    VATConfig,
)
from vitral.objectives.supervised import Supervised
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.run.config import load_config
from vitral.structs import Batch
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

THRESHOLDS = ("pseudo_label", "fixmatch", "semi_vit")
TEACHERS = ("mean_teacher", "fixmatch", "semi_vit")
Grads = dict[str, torch.Tensor]


def gradients(made: torch.nn.Module, loss: torch.Tensor) -> Grads:
    made.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def supervised(like: SemiSupervised, context: ObjectiveContext, smoothing: float) -> Supervised:
    made = Supervised(lambda: copy.deepcopy(like.model), SupervisedConfig(label_smoothing=smoothing), context)
    return made.train()


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_where_nothing_is_confident_the_gradient_is_the_supervised_one(kind: str) -> None:
    made, one = make(kind, threshold=0.999999).train(), batches(kind)
    out = made(one, STEPS - 1)
    assert out.metrics["pseudo_share"] == 0
    assert math.isfinite(out.loss.item())
    plain = supervised(made, ObjectiveContext(STEPS), 0.0)
    mine, theirs = gradients(made, out.loss), gradients(plain, plain({"train": one["labeled"]}, 0).loss)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_labeled_part_is_the_supervised_loss(kind: str) -> None:
    """With class weights, logit adjustment, smoothing and mixed labels; and during the warm-up it is all."""
    balance = ClassBalance(torch.linspace(0.5, 1.5, CLASSES), torch.linspace(-1, 0, CLASSES))
    context = ObjectiveContext(STEPS, balance=balance)
    made = make(kind, context=context, label_smoothing=0.1, supervised_warmup=0.5).train()
    one = batches(kind)
    count = len(one["labeled"].sample_ids_B)
    mixed = {"partner": one["labeled"].targets["label"].flip(0), "weight": torch.linspace(0, 1, count)}
    one["labeled"] = one["labeled"]._replace(targets=one["labeled"].targets | mixed)
    plain = supervised(made, context, 0.1)
    expected, early, late = plain({"train": one["labeled"]}, 0), made(one, 4), made(one, 5)
    assert early.loss == expected.loss
    assert "unlabeled_loss" not in early.metrics
    assert early.metrics["train_top1"] == late.metrics["train_top1"] == expected.metrics["train_top1"]
    rest = late.loss - made.unlabeled_weight(5) * late.metrics["unlabeled_loss"]
    torch.testing.assert_close(rest, expected.loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_unlabeled_loss_alone_has_a_gradient(kind: str) -> None:
    made = make(kind, **LEARNS[kind]).train()
    part = made.unlabeled_part(batches(kind)["unlabeled"], 0)
    assert part.loss > 0
    found = gradients(made, part.loss)
    assert sum(grad.square().sum() for name, grad in found.items() if name.startswith("model.")) > 0
    assert not any(name.startswith("teacher") for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_only_images_of_the_unlabeled_stream_are_read(kind: str) -> None:
    one = batches(kind)
    assert one["unlabeled"].targets == {}
    labels = {"label": torch.zeros(len(one["unlabeled"].sample_ids_B), dtype=torch.long)}
    with_labels = one | {"unlabeled": one["unlabeled"]._replace(targets=labels)}
    made = make(kind, **LEARNS[kind])
    assert made(one, 5).loss == made(with_labels, 5).loss


def test_the_weight_waits_and_rises() -> None:
    made = make("vat", unlabeled_weight=3.0, supervised_warmup=0.2, unlabeled_rampup=0.5)
    found = [made.unlabeled_weight(step) for step in range(STEPS)]
    assert found[:2] == [0, 0]
    assert found[2] == pytest.approx(3 * math.exp(-5))
    assert found[4] == pytest.approx(3 * math.exp(-5 * (1 - 2 / 5) ** 2))
    assert found[7:] == [3, 3, 3]
    assert found == sorted(found)
    assert make("fixmatch").unlabeled_weight(0) == 1


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_teacher_is_another_network_that_follows_after_updates_only(kind: str) -> None:
    made = make(kind, dropout=0.5, teacher_ema=0.9, **LEARNS[kind]).train()
    teacher, one = made.teacher, batches(kind)
    assert teacher is not None
    assert made.eval_model is teacher.module
    assert not {id(p) for p in made.model.parameters()} & {id(p) for p in teacher.parameters()}
    before = copy.deepcopy(teacher.state_dict())
    images = one["unlabeled"].views[0].images_BCHW
    assert torch.equal(teacher(images), teacher(images)), "no dropout"
    made(one, 5)
    with torch.no_grad():
        made.model.get_parameter("head.bias").add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    made.after_update(0, {}, torch.tensor(1.0))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    made.after_update(0, {}, torch.tensor(0.0))
    moved = teacher.state_dict()["module.head.bias"] - before["module.head.bias"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.9), msg="decay (1 + 0) / (10 + 0)")
    made.after_update(10**6, {}, torch.tensor(0.0))
    again = teacher.state_dict()["module.head.bias"] - before["module.head.bias"]
    torch.testing.assert_close(again, torch.full_like(moved, 0.91), msg="then teacher_ema")


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_mean_teacher_starts_at_zero_and_differs_a_step_later(distance: str) -> None:
    made, one = make("mean_teacher", distance=distance).train(), batches("mean_teacher")["unlabeled"]
    same = one._replace(views=(one.views[0],) * 2)
    assert made.unlabeled_part(same, 0).loss.item() == pytest.approx(0, abs=1e-20)
    with torch.no_grad():
        made.model.get_parameter("head.weight").add_(torch.randn(CLASSES, 16))
    made.after_update(0, {}, torch.tensor(0.0))
    assert made.unlabeled_part(same, 1).loss > 1e-6


def test_the_pi_model_compares_two_views_with_dropout() -> None:
    one = batches("consistency")["unlabeled"]
    same = one._replace(views=(one.views[0],) * 2)
    assert make("consistency").train().unlabeled_part(same, 0).loss.item() == pytest.approx(0, abs=1e-20)
    assert make("consistency", dropout=0.3).train().unlabeled_part(same, 0).loss > 0


def test_fixmatch_learns_the_labels_of_the_weak_view_for_the_strong_one() -> None:
    for teacher in ("ema", "self"):
        keys: dict[str, Any] = {} if teacher == "ema" else {"teacher": "self"}
        made, one = make("fixmatch", threshold=0.12, **keys), batches("fixmatch")["unlabeled"]
        weak, strong = (made.model(view.images_BCHW) for view in one.views)
        confidence, label = weak.softmax(1).max(1)
        each = F.cross_entropy(strong, label, reduction="none")
        part = made.unlabeled_part(one, 0)
        torch.testing.assert_close(part.loss, (each * (confidence > 0.12)).mean())
        assert part.metrics["pseudo_share"] == (confidence > 0.12).double().mean()


def test_the_model_itself_labels_without_dropout_and_is_left_in_training() -> None:
    made = make("fixmatch", dropout=0.5, teacher="self").train()
    images = batches("fixmatch")["unlabeled"].views[0].images_BCHW
    assert isinstance(made, FixMatch)
    assert torch.equal(made.predictions(images), made.predictions(images))
    assert not made.predictions(images).requires_grad
    assert made.model.training


def test_adaptive_thresholds_move_after_the_update_only() -> None:
    made = make("fixmatch", adaptive="freematch", threshold_momentum=0.5, unlabeled_rampup=0.0)
    assert isinstance(made, FixMatch)
    out = made(batches("fixmatch"), 0)
    assert made.confidence.item() == pytest.approx(1 / CLASSES)
    assert out.metrics["threshold"].item() == pytest.approx(1 / CLASSES), "all start equal"
    assert out.metrics["pseudo_share"] == 1
    made.after_update(0, out.means, torch.tensor(0.0))
    assert made.confidence.item() == pytest.approx((1 / CLASSES + out.means["confidence"].item()) / 2, rel=1e-6)
    torch.testing.assert_close(made.mean_C.sum(), torch.tensor(1.0))
    before = made.mean_C.clone()
    nan = {"confidence": torch.tensor(float("nan")), "probabilities": torch.full((CLASSES,), float("nan"))}
    made.after_update(1, nan, torch.tensor(1.0))
    made.after_update(1, {}, torch.tensor(0.0))
    assert torch.equal(before, made.mean_C)
    assert {"confidence", "mean_C"} <= made.state_dict().keys(), "a resume needs them"


def test_semi_vit_thresholds_the_mixed_confidence_and_learns_mixed_labels() -> None:
    made, one = make("semi_vit", threshold=0.6), batches("semi_vit")["unlabeled"]
    assert made.teacher is not None
    with torch.no_grad():
        made.teacher.module.get_parameter("head.weight").mul_(4.0)
    confidence, label = made.teacher(one.views[0].images_BCHW).softmax(1).max(1)
    pairs = draw_pairs(0, 5, one.sample_ids_B, beta_quantiles(0.8))
    own, other = pairs.weight_B.double(), pairs.partner_B
    mixed = own * confidence + (1 - own) * confidence[other]
    images = one.views[1].images_BCHW
    logits = made.model(torch.lerp(images[other], images, own[:, None, None, None]))
    losses = [F.cross_entropy(logits, each, reduction="none") for each in (label, label[other])]
    part = made.unlabeled_part(one, 5)
    torch.testing.assert_close(part.loss, ((own * losses[0] + (1 - own) * losses[1]) * (mixed > 0.6)).mean())
    share = part.metrics["pseudo_share"]
    assert share == (mixed > 0.6).double().mean()
    assert share != (confidence > 0.6).double().mean()


@pytest.mark.parametrize(("rows", "classes"), [(2, 10), (8, 100), (16, 1000), (64, 10)])
def test_few_rows_of_different_classes_are_no_collapse(rows: int, classes: int) -> None:
    place = torch.arange(rows)
    every = class_entropy(50.0 * F.one_hot(place % classes, classes))
    assert every.item() == pytest.approx(math.log(classes), abs=0.05)
    assert class_entropy(50.0 * F.one_hot(place * 0, classes)) < 1e-6
    assert class_entropy(torch.zeros(rows, classes)).item() == pytest.approx(math.log(classes))
    assert class_entropy(torch.zeros(1, classes)).item() == pytest.approx(math.log(classes)), "one row says nothing"


@pytest.mark.parametrize(
    ("augment", "strong", "warns"),
    [
        ({}, None, False),
        ({"rotate": 10}, None, False),
        ({"policy": "randaugment", "magnitude": 20, "random_erasing": 1.0}, None, False),  # erased with the mean
        ({"policy": "randaugment", "magnitude": 20, "random_erasing": 1.0, "erase_fill": "mean"}, None, True),
        ({"rotate": 10}, {}, True),
        ({"rotate": 10}, {"rotate": 5}, True),
        ({"rotate": 10}, {"rotate": 15}, False),
        ({"rotate": 10, "shear": 5}, {"rotate": 5, "shear": 6}, False),
        ({}, {"magnitude": 15}, True),
        ({"policy": "randaugment"}, {"magnitude": 15}, False),
        ({"policy": "randaugment"}, {"policy": "none"}, True),
        ({"policy": "randaugment"}, {"policy": "trivial"}, False),
        ({"crop": "random_resized"}, {"crop": "none", "crop_scale": (0.1, 1.0)}, True),
        ({"crop": "random_resized"}, {"crop_scale": (0.1, 1.0)}, False),
        ({}, {"jitter_prob": 0.5}, True),
        ({}, {"erase_scale": (0.1, 0.2), "fill": "gray"}, True),
    ],
)
def test_a_strong_view_that_is_no_stronger_is_warned_of(augment: Any, strong: Any, warns: bool) -> None:
    run = SimpleNamespace(augment=AugmentConfig(**augment))
    kinds: dict[str, type[StrongViewConfig]] = {
        "fixmatch": FixMatchConfig, "mean_teacher": MeanTeacherConfig, "semi_vit": SemiViTConfig,
    }  # fmt: skip
    for kind, keys in kinds.items():
        found = build(keys, {"kind": kind, "strong": strong}).warnings(run)
        assert [warning.split(":")[0] for warning in found] == ["objective.strong"] * warns, kind
    assert build(VATConfig, {"kind": "vat"}).warnings(run) == []


@pytest.mark.parametrize("recipe", ["cifar10_fixmatch", "digits_fixmatch", "digits_mean_teacher", "finetune_fixmatch"])
def test_no_recipe_has_a_strong_view_that_is_no_stronger(recipe: str) -> None:
    config = load_config(recipe, {} if recipe.startswith("digits") else {"data.path": "photos", "init": "vit"})
    assert config.objective.warnings(config) == []


def test_warnings_of_a_collapse() -> None:
    made = make("fixmatch")
    fine = {"step": 9, "train_top1": 1.0, "class_entropy": 2.2, "pseudo_share": 0.5}
    assert made.check_collapse(fine) is None
    assert "few classes" in str(made.check_collapse(fine | {"class_entropy": 0.9}))
    assert "hardly any" in str(made.check_collapse(fine | {"pseudo_share": 0.0}))
    assert made.check_collapse(fine | {"pseudo_share": 0.0, "step": 2}) is None
    assert made.check_collapse({"step": 9}) is None


def steps(kind: str, micro: int | None = None, *, ddp: bool = False) -> tuple[dict[str, Any], list[float]]:
    """Weights, teacher and thresholds after four updates, and the losses; of processes, each has its rows."""
    keys: dict[str, Any] = {"adaptive": "freematch"} if kind == "fixmatch" else LEARNS[kind]
    made = make(kind, unlabeled_rampup=0.2, **keys).train()
    state = TrainState(
        made, make_optimizer(made, OptimConfig(name="sgd")), None, Progress(), parallel=Parallel(made, ddp=ddp)
    )
    optim, config = OptimConfig(lr=0.05, schedule="constant", warmup=0), TrainConfig(batch_size=16, micro_batch=micro)
    losses, world, rank = list[float](), distributed.world(), distributed.rank()

    def rows(batch: Batch) -> Batch:
        own = len(batch.sample_ids_B) // world
        return batch.slice(rank * own, (rank + 1) * own)

    for step in range(4):
        mine = {name: rows(batch) for name, batch in batches(kind, seed=step).items()}
        guard = NonFiniteGuard(state, lambda _, mine=mine: mine, Path(), config)
        loss, *_ = train_step(state, made, mine, config, optim, guard)
        losses += [value.item() for value in distributed.mean([loss])]
        state.progress.step += 1
    return {name: tensor.numpy() for name, tensor in made.state_dict().items()}, losses


def assert_close(one: tuple[dict[str, Any], list[float]], other: tuple[dict[str, Any], list[float]]) -> None:
    for name, tensor in one[0].items():
        limit = 1e-7 if name in ("confidence", "mean_C") else 1e-10  # float32 buffers
        assert float(np.abs(tensor - other[0][name]).max()) < limit, name
    assert np.abs(np.array(one[1]) - np.array(other[1])).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_one_batch(kind: str) -> None:
    assert_close(steps(kind), steps(kind, 4 if kind == "semi_vit" else 3))


def two() -> dict[str, Any]:
    return {kind: (steps(kind, ddp=True), steps(kind, 4, ddp=True)) for kind in KINDS}


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    alone = {kind: steps(kind) for kind in KINDS}
    for found in in_processes(2, "tests.objectives.test_semi_supervised:two"):
        for kind in KINDS:
            for one in found[kind]:
                assert_close(alone[kind], one)
