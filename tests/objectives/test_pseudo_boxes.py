"""The loss of a second stage, pseudo-boxes and Soft Teacher: their invariants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.scenes import small_detector
from tests.objectives.test_detection import drawn
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral.data.box_ops import pairwise_iou
from vitral.data.config import AugmentConfig
from vitral.models.detector import Detector
from vitral.models.second_stage import SecondOutput, offsets_to
from vitral.objectives.config import PseudoBoxesConfig, SoftTeacherConfig
from vitral.objectives.detection import Detection, image_weights
from vitral.objectives.detection_config import DetectionConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.pseudo_boxes import PseudoBoxes, SoftTeacher
from vitral.objectives.second_stage_loss import match, second_stage_parts
from vitral.structs import Batch, View, micro_batches

STEPS = 10


def two_stage(seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return small_detector(second_stage=8, proposals=6)


def made(kind: str, sure: float = 4.0, **keys: Any) -> PseudoBoxes:
    """In float64, with a teacher that finds boxes. sure: is added to its classes' logits."""
    config: dict[str, Any] = {"kind": kind, "level_side": 4, "supervised_warmup": 0.2, "threshold": 0.5, **keys}
    models = [two_stage(), two_stage(1)]
    for model in models:
        with torch.no_grad():
            model.get_parameter("dense_head.classes.bias").add_(sure)
            model.second_stage.classes.weight.normal_(std=0.5)
            model.second_stage.offsets.weight.normal_(std=0.5)
            model.second_stage.classes.bias[0] += 2
    given = iter(models)
    types: tuple[Any, Any] = (
        (SoftTeacher, SoftTeacherConfig) if kind == "soft_teacher" else (PseudoBoxes, PseudoBoxesConfig)
    )
    return types[0](lambda: next(given), types[1](**config), ObjectiveContext(STEPS)).double()


def views(images: int, matrices: list[Tensor], seed: int = 1) -> tuple[View, ...]:
    make = torch.Generator().manual_seed(seed)
    pixels = torch.rand(images, 1, 64, 64, generator=make, dtype=torch.float64)
    return tuple(View(pixels, matrix.expand(images, 3, 3)) for matrix in matrices)


def batches(images: int = 2) -> dict[str, Batch]:
    """Labeled images and twice as many others, whose strong view is shifted by 3 pixels to the right."""
    boxes, classes = drawn(0, images=images)
    same, moved = torch.eye(3), torch.tensor([[1.0, 0, 3], [0, 1, 0], [0, 0, 1]])
    labeled = Batch(views(images, [same]), {"boxes": boxes, "box_class": classes}, torch.arange(images))
    known: dict[str, Tensor] = {}
    known["hidden_boxes"], known["hidden_class"] = drawn(1, images=2 * images)
    others = Batch(views(2 * images, [same, moved], 2), known, torch.arange(2 * images) + 2**30)
    return {"labeled": labeled, "unlabeled": others}


def trained(ddp: bool = False, micro: int | None = None) -> Trained:
    """Of 8 annotated images and 16 others, from the second step on; the teacher is among the weights."""
    return five_steps(made("soft_teacher", max_spread=9.0), batches(images=8), micro, ddp=ddp)


@pytest.mark.slow
def test_two_processes_and_micro_batches_are_one() -> None:
    whole = trained()
    assert whole[1][0] != whole[1][-1]
    assert_equal(whole, trained(micro=3))
    for found in in_processes(2, "tests.objectives.test_pseudo_boxes:trained", True):
        assert_equal(whole, found)


def of_step(learner: PseudoBoxes, step: int) -> Any:
    return learner(learner.prepare_batches(batches(), step), step)


def test_a_box_is_of_the_object_that_it_overlaps_most() -> None:
    boxes, classes = drawn(5)
    other, _ = drawn(6)
    found = match(other, boxes, classes >= 0)
    for image in range(4):
        for row, box in enumerate(other[image]):
            overlaps = [float(pairwise_iou(box, one)) for one in boxes[image, :-1]]
            assert bool(found.is_object_BR[image, row]) == (max(overlaps) >= 0.5)
            assert overlaps[int(found.row_BR[image, row])] == pytest.approx(max(overlaps)) or max(overlaps) == 0


def test_the_second_loss_by_its_formula() -> None:
    """One image: two proposals, one of them on the object, and the object itself."""
    truth = torch.tensor([[[10.0, 10, 30, 30], [0, 0, 0, 0]]])
    targets = {"boxes": truth, "box_class": torch.tensor([[1, -1]])}
    boxes = torch.tensor([[[12.0, 10, 32, 30], [40, 40, 60, 60]]])
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    offsets = torch.full((1, 4, 4), 0.3)
    stage: Any = lambda *_: SecondOutput(logits, offsets)  # noqa: E731
    found = second_stage_parts(stage, [], boxes, targets, torch.tensor([7.0]))
    log_p = logits.log_softmax(-1)[0]
    expected = -(log_p[0, 1] + log_p[1, 2] + log_p[2, 1]) / 3
    assert found["second_class_loss"].item() == pytest.approx(7 * expected.item(), rel=1e-5)
    apart = [0.3 - value for row in (boxes[0, 0], truth[0, 0]) for value in offsets_to(row, truth[0, 0]).tolist()]
    smooth = sum(0.5 * each**2 if abs(each) < 1 else abs(each) - 0.5 for each in apart)
    assert found["second_box_loss"].item() == pytest.approx(7 * smooth / 3, rel=1e-5)
    half: Any = lambda rows: torch.full(rows.shape[:2], 0.25)  # noqa: E731
    weighted = second_stage_parts(stage, [], boxes, targets, torch.tensor([7.0]), half)
    expected = -(log_p[0, 1] + 0.25 * log_p[1, 2] + log_p[2, 1]) / 2.25
    assert weighted["second_class_loss"].item() == pytest.approx(7 * expected.item(), rel=1e-5)


def test_a_background_weight_of_zero_removes_the_gradient_of_that_box() -> None:
    boxes, classes = drawn(0)
    stage, maps = (
        two_stage().double().second_stage,
        [torch.rand(4, 8, 16, 16).double(), torch.rand(4, 8, 8, 8).double()],
    )
    proposals = torch.tensor([[0.0, 0, 3, 3]]).double().expand(4, 1, 4)

    def gradient(with_it: bool) -> list[Tensor]:
        own = proposals if with_it else proposals[:, :0]
        parts = second_stage_parts(
            stage, maps, own, {"boxes": boxes.double(), "box_class": classes}, torch.ones(4).double(),
            lambda rows: torch.zeros(rows.shape[:2]).double(),
        )  # fmt: skip
        return list(torch.autograd.grad(parts["second_class_loss"], list(stage.classes.parameters())))

    for one, other in zip(gradient(True), gradient(False), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("kind", ["pseudo_boxes", "soft_teacher"])
def test_the_warm_up_is_supervised(kind: str) -> None:
    learner = made(kind)
    plain = Detection(
        lambda: learner.detector, DetectionConfig(kind="detection", level_side=4), ObjectiveContext(STEPS)
    )
    own = {"train": batches()["labeled"]}
    assert of_step(learner, 0).loss.item() == plain(plain.prepare_batches(own, 0), 0).loss.item()
    learner.after_update(1, {}, torch.zeros(()))
    for mine, theirs in zip(learner.model.parameters(), learner.teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine is not theirs
        assert not theirs.requires_grad


@pytest.mark.parametrize("kind", ["pseudo_boxes", "soft_teacher"])
def test_what_the_teacher_finds_is_moved_into_the_strong_view(kind: str) -> None:
    learner = made(kind)
    own = batches()["unlabeled"]
    found = learner.pseudo_targets(own, 5)
    is_box = found["box_class"] >= 0
    assert int(is_box.sum()) > 4
    same = own._replace(views=(own.views[0], own.views[0]))
    still = learner.pseudo_targets(same, 5)
    expected = (still["boxes"] + torch.tensor([3.0, 0, 3, 0])).clamp(max=64)
    both = is_box & (still["box_class"] >= 0)
    assert torch.allclose(found["boxes"][both], expected[both], atol=1e-4)
    learner.train()
    again = learner.pseudo_targets(own, 5)
    assert all(torch.equal(again[name], found[name]) for name in found), "a teacher has no dropout and no state"


@pytest.mark.parametrize("kind", ["pseudo_boxes", "soft_teacher"])
def test_the_teacher_may_read_few_images_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, own = made(kind), batches()["unlabeled"]
    whole = learner.pseudo_targets(own, 5)
    monkeypatch.setattr("vitral.objectives.pseudo_boxes.AT_ONCE", 1)
    parts = learner.pseudo_targets(own, 5)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.allclose(value.double(), parts[name].double(), atol=1e-6), name


def test_what_the_weak_view_does_not_show_is_no_background() -> None:
    learner, given = made("soft_teacher"), batches()["unlabeled"]
    moved = torch.tensor([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]).expand(4, 3, 3)
    own = given._replace(views=(given.views[0], given.views[1]._replace(matrix_B33=moved)))
    targets = learner.pseudo_targets(own, 5)
    known = targets["is_known"][0]
    assert bool((known == (learner.detector.centers_A2[:, 0] > 20)).all()), "20 pixels at the left are new"
    relevance = learner.relevance(own._replace(targets=targets), {})
    assert relevance is not None
    boxes = torch.tensor([[[0.0, 10, 18, 30], [0, 10, 24, 30], [30, 10, 50, 30]]]).double().expand(4, 3, 4)
    weight = relevance(boxes)
    assert bool((weight[:, :2] == 0).all())
    assert bool((weight[:, 2] > 0).all())


def test_pseudo_boxes_are_counted_against_the_hidden_ones() -> None:
    true, classes = drawn(3)
    seen = classes.clone()
    seen[:, 0] = -1  # one is not found
    wrong = true.clone()
    wrong[:, 1, :] = torch.tensor([0.0, 0, 4, 4])  # one is elsewhere
    found = PseudoBoxes.watched(wrong, seen, {"hidden_boxes": true, "hidden_class": classes})
    assert found["pseudo_count"].tolist() == [5] * 4
    assert found["hidden_count"].tolist() == [6] * 4
    assert all(right in (4, 5) for right in found["pseudo_right"].tolist())
    assert found["pseudo_right"].sum() <= found["hidden_found"].sum() + 1
    assert PseudoBoxes.watched(wrong, seen, {}).keys() == {"pseudo_count"}


@pytest.mark.parametrize("kind", ["pseudo_boxes", "soft_teacher"])
def test_without_a_sure_box_only_background_teaches(kind: str) -> None:
    learner = made(kind, sure=-20.0)
    out = of_step(learner, 5)
    assert math.isfinite(out.loss.item())
    assert out.metrics["pseudo_boxes"] == 0
    assert out.metrics["unlabeled_box_loss"] == 0
    assert out.metrics["unlabeled_second_box_loss"] == 0
    assert out.metrics["unlabeled_second_class_loss"] > 0
    metrics = {"step": 9.0, "pseudo_boxes": 0.0}
    assert "finds no box" in (learner.check_collapse(metrics) or "")
    assert learner.check_collapse({**metrics, "step": 2.0}) is None
    assert learner.check_collapse({**metrics, "pseudo_boxes": 0.1}) is None


@pytest.mark.parametrize("kind", ["pseudo_boxes", "soft_teacher"])
def test_micro_batches_add_up(kind: str) -> None:
    learner = made(kind, max_spread=9.0) if kind == "soft_teacher" else made(kind)
    whole_batches = learner.prepare_batches(batches(), 5)
    whole = learner(whole_batches, 5)
    assert whole.metrics["unlabeled_second_box_loss"] > 0
    parameters = [each for each in learner.parameters() if each.requires_grad]
    expected = torch.autograd.grad(whole.loss, parameters)
    parts = [learner(part, 5) for part in micro_batches(whole_batches, 1)]
    loss = sum(part.loss_sum for part in parts) / sum(part.weight for part in parts)
    assert isinstance(loss, Tensor)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9, rtol=1e-6)


def test_the_weight_of_unlabeled_images_is_a_mean_over_them() -> None:
    one, two = made("pseudo_boxes"), made("pseudo_boxes", unlabeled_weight=3.0)
    first, second = of_step(one, 5), of_step(two, 5)
    names = [name for name in first.metrics if name.startswith("unlabeled_")]
    assert len(names) == 5
    for name in names:
        assert second.metrics[name].item() == pytest.approx(3 * first.metrics[name].item(), rel=1e-9)
    own = one.prepare_batches(batches(), 5)["unlabeled"]
    parts = one.parts(one.detector.maps(own.views[1].images_BCHW), own.targets, image_weights(own.targets))
    expected = parts["class_loss"] / 2 / first.weight  # two labeled and four unlabeled images
    assert first.metrics["unlabeled_class_loss"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_teacher_that_ignores_its_proposal_has_no_spread_and_sides_divide_it() -> None:
    learner = made("soft_teacher", jitter=0.1)
    assert isinstance(learner, SoftTeacher)
    boxes = torch.tensor([[[20.0, 20, 28, 28], [20, 20, 36, 36]]]).double()
    learner.teaching.rescore = lambda maps, rows: (rows, torch.full_like(rows, 7.0))  # type: ignore[method-assign]
    assert bool((learner.spread([], boxes, torch.tensor([3]), 5) == 0).all())
    learner.teaching.rescore = lambda maps, rows: (rows, rows)  # type: ignore[method-assign]
    spread = learner.spread([], boxes, torch.tensor([3]), 5)
    assert torch.allclose(spread, torch.full_like(spread, 0.1), rtol=0.5), "that of the jitter itself"
    noise = torch.rand(1, 20, 4, generator=torch.Generator().manual_seed(0)).double()
    learner.teaching.rescore = lambda maps, rows: (rows, noise)  # type: ignore[method-assign]
    large = boxes * 2
    assert torch.allclose(learner.spread([], large, torch.tensor([3]), 5) * 2,
                          learner.spread([], boxes, torch.tensor([3]), 5))  # fmt: skip


def test_keys_that_do_not_fit_are_refused_or_warned_of() -> None:
    config = PseudoBoxesConfig(kind="pseudo_boxes", strong={"rotate": 20.0})

    class Run:
        augment = AugmentConfig()
        data = type("data", (), {"resize_mode": "pad"})()

    assert any("turned by more than 15" in line for line in config.warnings(Run))
    with pytest.raises(ValueError, match="greater than"):
        SoftTeacherConfig(kind="soft_teacher", max_spread=0.0)
