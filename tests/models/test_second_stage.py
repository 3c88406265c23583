"""The second stage of detectors: RoIAlign by closed forms and by brute force, offsets and their inverse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.scenes import small_detector
from vitral.models.roi_align import box_levels, roi_align
from vitral.models.second_stage import offsets_to, refine


def boxes_of(seed: int, images: int = 2, count: int = 5, size: float = 60) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    low = torch.rand(images, count, 2, generator=make, dtype=torch.float64) * size * 0.7
    side = 1 + torch.rand(images, count, 2, generator=make, dtype=torch.float64) * size * 0.3
    return torch.cat([low, low + side], -1)


def by_hand(maps: list[Tensor], strides: tuple[int, ...], box: list[float], image: int, level: int,
            bins: int, samples: int) -> Tensor:  # fmt: skip
    """One box, point by point."""
    own, stride = maps[level][image], strides[level]
    rows, columns = own.shape[1:]
    found = torch.zeros(own.shape[0], bins, bins, dtype=own.dtype)
    for i in range(bins):
        for j in range(bins):
            for a in range(samples):
                for b in range(samples):
                    y = (box[1] + (i + (a + 0.5) / samples) / bins * (box[3] - box[1])) / stride - 0.5
                    x = (box[0] + (j + (b + 0.5) / samples) / bins * (box[2] - box[0])) / stride - 0.5
                    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
                    top, left = int(y), int(x)
                    below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
                    upper = own[:, top, left] * (1 - x + left) + own[:, top, right] * (x - left)
                    lower = own[:, below, left] * (1 - x + left) + own[:, below, right] * (x - left)
                    found[:, i, j] += upper * (1 - y + top) + lower * (y - top)
    return found / samples**2


@pytest.mark.parametrize(("bins", "samples"), [(7, 1), (3, 2)])
def test_roi_align_equals_its_definition(bins: int, samples: int) -> None:
    make = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 3, *size, generator=make, dtype=torch.float64) for size in ((13, 17), (7, 9))]
    boxes = boxes_of(2)
    boxes[0, 0], boxes[0, 1] = torch.tensor([-9.0, -5, 80, 90]), torch.tensor([30.0, 30, 30, 30])
    level = torch.randint(2, boxes.shape[:2], generator=make)
    found = roi_align(maps, (4, 8), boxes, level, bins, samples)
    for image in range(2):
        for row in range(5):
            expected = by_hand(maps, (4, 8), boxes[image, row].tolist(), image, int(level[image, row]), bins, samples)
            assert torch.allclose(found[image, row], expected, atol=1e-12)


def test_a_constant_and_a_ramp_are_exact_and_outside_goes_on_as_the_border() -> None:
    x = torch.arange(16, dtype=torch.float64) * 4 + 2  # pixels of the cells' centers
    ramp = (2 * x + 3 * x[:, None])[None, None]
    boxes = torch.tensor([[[6.0, 9, 34, 44]]], dtype=torch.float64)
    level = torch.zeros(1, 1, dtype=torch.long)
    at = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    expected = 2 * (6 + 28 * at) + 3 * (9 + 35 * at)[:, None]
    assert torch.allclose(roi_align([ramp], (4,), boxes, level)[0, 0, 0], expected, atol=1e-12)
    five = torch.full_like(ramp, 5.0)
    outside = torch.tensor([[[-50.0, -50, -10, -20]]], dtype=torch.float64)
    assert torch.equal(roi_align([five], (4,), outside, level), torch.full((1, 1, 1, 7, 7), 5.0, dtype=torch.float64))
    assert torch.equal(roi_align([ramp], (4,), outside, level), ramp[..., :1, :1].expand(1, 1, 1, 7, 7))


def test_the_gradient_of_roi_align() -> None:
    maps = [torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True) for size in ((5, 4), (3, 2))]
    boxes, level = boxes_of(3, 1, 3, 20), torch.tensor([[0, 1, 0]])
    assert torch.autograd.gradcheck(lambda *given: roi_align(given, (4, 8), boxes, level, 3), maps)


def test_boxes_are_read_from_the_map_of_their_size() -> None:
    boxes = torch.tensor([[[0.0, 0, 32, 1], [0, 0, 1, 32.5], [0, 0, 64, 64], [0, 0, 65, 1], [5, 5, 5, 5]]])
    assert box_levels(boxes, (4, 8, 16), 8).tolist() == [[0, 1, 1, 2, 0]]


def test_offsets_lead_back_to_the_target() -> None:
    boxes, target = boxes_of(4), boxes_of(5)
    assert torch.allclose(refine(boxes, offsets_to(boxes, target)), target, atol=1e-10)
    assert torch.allclose(refine(boxes, torch.zeros_like(boxes)), boxes, atol=1e-12)
    box, wanted = torch.tensor([0.0, 0, 10, 20]), torch.tensor([1.0, 0, 21, 20])
    assert torch.allclose(offsets_to(box, wanted), torch.tensor([6.0, 0, 5 * math.log(2), 0]))


def test_a_detector_with_a_second_stage() -> None:
    torch.manual_seed(0)
    model = small_detector(second_stage=8, proposals=5).eval()
    images = torch.rand(3, 1, 64, 64)
    found = model(images)
    assert found.shape == (3, 5, 6)
    dense = model.decode(model.dense_head(model.maps(images)))
    boxes, score = model.propose(dense)
    assert torch.allclose(score, dense[..., 4:].amax(-1).sort(descending=True).values[:, :5])
    p, refined = model.rescore(model.maps(images), boxes)
    assert torch.allclose(p.sum(-1), torch.ones(3, 5))
    assert torch.allclose(found, torch.cat([refined, (p[..., :2] * score[..., None]).sqrt()], -1))
    assert bool((found[..., :4] >= 0).all() & (found[..., :4] <= 64).all())
    few = small_detector(second_stage=8, proposals=1000).eval()
    assert few(images).shape == (3, 320, 6), "no more proposals than locations"


def test_proposals_without_a_second_stage_have_no_effect() -> None:
    with pytest.raises(ValueError, match="proposals=5 has no effect"):
        small_detector(proposals=5)
    with pytest.raises(ValueError, match="second_stage"):
        small_detector(second_stage=-1)
