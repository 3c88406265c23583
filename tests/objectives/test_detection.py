"""Assignment of boxes to locations, and the loss of detectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.scenes import small_detector
from tests.objectives.training import Trained, assert_equal, five_steps
from tests.processes import in_processes
from vitral.models.dense_head import HeadOutput, cell_centers, to_distances
from vitral.models.detector import Detector
from vitral.objectives.box_targets import Locations, assign, level_strides, unlearned
from vitral.objectives.detection import Detection, focal_loss, image_weights, step_output
from vitral.objectives.detection_config import DetectionConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.structs import Batch, View, micro_batches

STRIDES = (4, 8)
LOCATIONS = Locations(cell_centers([(16, 16), (8, 8)], STRIDES), torch.tensor([4.0] * 256 + [8.0] * 64))


def drawn(seed: int, images: int = 4, rows: int = 7, least: float = 4) -> tuple[Tensor, Tensor]:
    """Boxes inside an image of 64 x 64 pixels, with sides of `least` or more, and their classes; the last row none."""
    make = torch.Generator().manual_seed(seed)
    side = least + torch.rand(images, rows, 2, generator=make) ** 2 * 50
    low = torch.rand(images, rows, 2, generator=make) * (64 - side)
    classes = torch.randint(2, (images, rows), generator=make)
    classes[:, -1] = -1
    return torch.cat([low, low + side], 2) * (classes >= 0)[..., None], classes


def assigned(boxes: Tensor, classes: Tensor, level_side: float = 4, radius: float = 1.5) -> Tensor:
    return assign(boxes, classes, LOCATIONS, STRIDES, level_side, radius)


def test_boxes_are_on_the_map_of_their_size() -> None:
    sides = torch.tensor([1.0, 16, 16.01, 64])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), sides, sides / 2], 1)[None]
    assert level_strides(boxes, STRIDES, 4).tolist() == [[4, 4, 8, 8]]
    assert level_strides(boxes, (4,), 4).tolist() == [[4, 4, 4, 4]]


@pytest.mark.parametrize("seed", range(3))
def test_assignment_equals_its_rule(seed: int) -> None:
    boxes, classes = drawn(seed)
    row = assigned(boxes, classes)
    for image in range(len(boxes)):
        has = set(row[image].tolist())
        for place, ((x, y), stride) in enumerate(zip(LOCATIONS.centers_A2.tolist(), LOCATIONS.stride_A, strict=True)):
            fits = list[tuple[float, int]]()
            for number, (x0, y0, x1, y1) in enumerate(boxes[image].tolist()):
                own = 4 if max(x1 - x0, y1 - y0) <= 16 else 8
                near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 1.5 * own
                if classes[image, number] >= 0 and own == stride and x0 < x < x1 and y0 < y < y1 and near:
                    fits.append(((x1 - x0) * (y1 - y0), number))
            if fits:  # another box may have none but this location
                smallest, found = min(fits)[1], int(row[image, place])
                assert found == smallest or int((row[image] == found).sum()) == 1
        assert has >= set(range(6)), "every box has a location"


@pytest.mark.parametrize("seed", range(3))
def test_every_box_is_learned_in_any_order(seed: int) -> None:
    boxes, classes = drawn(seed, rows=12)
    row = assigned(boxes, classes)
    for image in range(len(boxes)):
        assert set(row[image].tolist()) >= set(range(11))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    again = assigned(boxes[:, order], classes[:, order])
    assert torch.equal(torch.where(again >= 0, order[again.clamp(min=0)], -1), row)


def test_boxes_between_cell_centers_and_on_each_other_are_learned() -> None:
    boxes = torch.tensor([[[3.0, 3, 5, 5], [20, 20, 30, 30], [20, 20, 30, 30], [20, 20, 30.5, 30]]])
    row = assigned(boxes, torch.tensor([[0, 1, 0, 1]]))[0]
    assert int((row == 0).sum()) == 1
    assert set(row.tolist()) == {-1, 0, 1, 2, 3}
    at = LOCATIONS.centers_A2[row == 0]
    assert bool(((at - 4).abs() <= 2).all())


def test_boxes_without_a_cell_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """Of 20 large boxes on a map of 16 cells, 4 are not learned."""
    boxes, classes = torch.tensor([0.0, 0, 32, 32]).repeat(2, 20, 1), torch.zeros(2, 20, dtype=torch.long)
    classes[0, 3:] = -1
    mine = objective(small_detector(image_size=(32, 32)))
    with caplog.at_level("WARNING", "vitral"):
        mine.prepare_batches(batch_of(boxes, classes), 0)
        row_BA = mine.prepare_batches(batch_of(boxes, classes), 1)["train"].targets["location_box"]
    assert unlearned(classes, row_BA).tolist() == [0, 4]
    (line,) = caplog.messages
    assert line.startswith("4 boxes of this batch are not learned")
    assert "of train image 2." in line


def test_images_without_boxes_are_background() -> None:
    row = assigned(torch.zeros(2, 3, 4), torch.full((2, 3), -1))
    assert bool((row == -1).all())


def test_focal_loss_by_its_formula() -> None:
    logits = torch.tensor([-3.0, 0.2, 4.0], dtype=torch.float64)
    for target, sign, alpha in ((1.0, 1, 0.3), (0.0, -1, 0.7)):
        p = [1 / (1 + math.exp(-sign * x)) for x in logits.tolist()]
        closed = [-alpha * (1 - each) ** 1.5 * math.log(each) for each in p]
        found = focal_loss(logits, torch.full_like(logits, target), 0.3, 1.5)
        assert found.tolist() == pytest.approx(closed, rel=1e-9)


def objective(model: Detector | None = None) -> Detection:
    torch.manual_seed(0)
    built = model or small_detector()
    config = DetectionConfig(kind="detection", level_side=4)
    return Detection(lambda: built, config, ObjectiveContext(10)).double()


def batch_of(boxes: Tensor, classes: Tensor) -> dict[str, Batch]:
    make = torch.Generator().manual_seed(1)
    images = torch.rand(len(boxes), 1, 64, 64, generator=make, dtype=torch.float64)
    view = View(images, torch.eye(3).expand(len(boxes), 3, 3))
    return {"train": Batch((view,), {"boxes": boxes, "box_class": classes}, torch.arange(len(boxes)))}


def test_micro_batches_have_the_loss_and_gradient_of_the_batch() -> None:
    boxes, classes = drawn(0, images=5)
    classes[3] = -1  # an image without boxes
    learner = objective()
    batches = learner.prepare_batches(batch_of(boxes, classes), 0)
    whole = learner(batches, 0)
    parameters = list(learner.parameters())
    expected = torch.autograd.grad(whole.loss, parameters)
    parts = [learner(part, 0) for part in micro_batches(batches, 2)]
    loss = sum(part.loss_sum for part in parts) / sum(part.weight for part in parts)
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9, rtol=1e-6)
    assert int(whole.weight) == int((batches["train"].targets["location_box"] >= 0).sum()) + 5


def trained(ddp: bool = False) -> Trained:
    """Of images with 6 boxes each but one, which has none."""
    boxes, classes = drawn(0, images=8)
    classes[3] = -1
    return five_steps(objective(), batch_of(boxes, classes)["train"], ddp=ddp)


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    whole = trained()
    assert whole[1][0] != whole[1][-1]
    for found in in_processes(2, "tests.objectives.test_detection:trained", True):
        assert_equal(whole, found)


def test_padded_rows_and_the_order_of_boxes_change_nothing() -> None:
    boxes, classes = drawn(2)
    learner = objective()
    losses = list[float]()
    for own, of in ((boxes, classes), (boxes[:, :-1].flip(1), classes[:, :-1].flip(1))):
        losses.append(learner(learner.prepare_batches(batch_of(own, of), 0), 0).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_what_is_right_has_no_loss() -> None:
    boxes, classes = drawn(3)
    learner = objective()
    targets = learner.prepare_batches(batch_of(boxes, classes), 0)["train"].targets
    row = targets["location_box"]
    rows = row.clamp(min=0)
    own = targets["boxes"].gather(1, rows[..., None].expand(-1, -1, 4))
    distances = torch.where((row >= 0)[..., None], to_distances(LOCATIONS.centers_A2, own), 1.0)
    hot = (targets["box_class"].gather(1, rows)[..., None] == torch.arange(2)) & (row >= 0)[..., None]
    out = HeadOutput(torch.where(hot, 40.0, -40.0), distances, torch.full(row.shape, 40.0))
    weight = image_weights(targets).sum()
    assert step_output(learner.dense_parts(out, targets), weight).loss.item() < 1e-5
    wrong = out._replace(logits_BAC=-out.logits_BAC)
    assert step_output(learner.dense_parts(wrong, targets), weight).loss.item() > 10


def test_a_batch_without_boxes_has_a_finite_loss() -> None:
    learner = objective()
    out = learner(learner.prepare_batches(batch_of(torch.zeros(2, 1, 4), torch.full((2, 1), -1)), 0), 0)
    assert int(out.weight) == 2
    out.loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in learner.parameters())
    assert out.metrics["box_loss"].item() == 0
