"""Overlaps and suppression of boxes by closed forms, brute force and torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.oracles import load_oracle
from vitral.data.box_ops import (
    area,
    clip,
    from_cxcywh,
    from_xywh,
    giou,
    iou,
    nms,
    pairwise_giou,
    pairwise_iou,
    to_cxcywh,
    to_xywh,
)


def drawn(seed: int, count: int, side: float = 20) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 2, generator=generator, dtype=torch.float64) * side
    return torch.cat([start, start + torch.rand(count, 2, generator=generator, dtype=torch.float64) * side / 2], dim=1)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_formats_are_inverse_to_each_other() -> None:
    found = boxes((1, 2, 5, 10))
    assert to_xywh(found).tolist() == [[1, 2, 4, 8]]
    assert to_cxcywh(found).tolist() == [[3, 6, 4, 8]]
    many = drawn(0, 100).reshape(4, 25, 4)
    torch.testing.assert_close(from_xywh(to_xywh(many)), many)
    torch.testing.assert_close(from_cxcywh(to_cxcywh(many)), many)


def test_areas_and_clipping() -> None:
    assert area(boxes((0, 0, 2, 3), (1, 1, 1, 5), (4, 4, 2, 2))).tolist() == [6, 0, 0]
    assert clip(boxes((-1, -2, 5, 9), (7, 7, 9, 9)), (6, 4)).tolist() == [[0, 0, 4, 6], [4, 6, 4, 6]]


def test_overlaps_by_closed_forms() -> None:
    one = boxes((0, 0, 2, 2))
    others = boxes((0, 0, 2, 2), (1, 0, 3, 2), (0, 0, 1, 1), (2, 0, 4, 2), (4, 0, 6, 2), (0, 0, 0, 0))
    torch.testing.assert_close(iou(one, others)[0], torch.tensor([1, 1 / 3, 1 / 4, 0, 0, 0], dtype=torch.float64))
    # Contained: the hull is the larger box. Touching: no gap. Apart by their width: a third of the hull is in neither.
    expected = torch.tensor([1, 1 / 3, 1 / 4, 0, -1 / 3, 0], dtype=torch.float64)
    torch.testing.assert_close(giou(one, others)[0], expected)
    empty = boxes((3, 3, 3, 3))
    assert pairwise_iou(empty, empty).tolist() == pairwise_giou(empty, empty).tolist() == [0]
    assert iou(one, torch.zeros(0, 4, dtype=torch.float64)).shape == (1, 0)


def test_giou_has_a_gradient_where_boxes_do_not_meet() -> None:
    moved = boxes((5, 5, 6, 6), (3, 3, 3, 3), (0, 0, 2, 2)).requires_grad_()
    pairwise_giou(moved, boxes((0, 0, 2, 2))).sum().backward()
    assert moved.grad is not None
    assert moved.grad.isfinite().all()
    assert (moved.grad[0] != 0).any()


@given(st.integers(0, 10_000))
def test_overlaps_are_symmetric_and_bounded(seed: int) -> None:
    one, other = drawn(seed, 6), drawn(seed + 20_000, 5)
    overlap_NM, generalized_NM = iou(one, other), giou(one, other)
    torch.testing.assert_close(overlap_NM, iou(other, one).T)
    torch.testing.assert_close(generalized_NM, giou(other, one).T)
    assert ((generalized_NM <= overlap_NM + 1e-12) & (generalized_NM > -1)).all()
    torch.testing.assert_close(pairwise_iou(one[:5], other), overlap_NM[:5].diagonal())


@pytest.mark.oracle
def test_overlaps_equal_torchvision() -> None:
    ops = load_oracle("torchvision").ops
    one, other = drawn(1, 40), drawn(2, 30)
    torch.testing.assert_close(iou(one, other), ops.box_iou(one, other))
    torch.testing.assert_close(giou(one, other), ops.generalized_box_iou(one, other))
    torch.testing.assert_close(to_cxcywh(one), ops.box_convert(one, "xyxy", "cxcywh"))


def brute_nms(found: Tensor, scores: list[float], threshold: float, classes: list[int]) -> list[int]:
    """By definition, with Python's numbers: the best of those left, ties by place; the rest of its class compared."""
    left, kept = list(range(len(scores))), list[int]()
    while left:
        best = min(left, key=lambda place: (-scores[place], place))
        kept.append(best)
        left = [
            place for place in left if place != best and not (
                classes[place] == classes[best] and float(pairwise_iou(found[best], found[place])) > threshold
            )
        ]  # fmt: skip
    return kept


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.integers(1, 4))
def test_suppression_equals_brute_force_with_ties(seed: int, threshold: float, count: int) -> None:
    """Coordinates and scores on a coarse grid: equal boxes and equal scores abound."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 6, (24, 2), generator=generator).double()
    found = torch.cat([start, start + torch.randint(1, 5, (24, 2), generator=generator)], dim=1)
    scores = torch.randint(0, 5, (24,), generator=generator).double() / 4
    classes = torch.randint(0, count, (24,), generator=generator)
    expected = brute_nms(found, scores.tolist(), threshold, classes.tolist())
    assert nms(found, scores, threshold, classes).tolist() == expected
    if count == 1:
        assert nms(found.float(), scores.float(), threshold).tolist() == expected


def test_suppression_takes_equal_scores_by_place_and_any_order_of_others() -> None:
    same = boxes((0, 0, 4, 4), (0, 0, 4, 4), (10, 10, 12, 12), (0, 0, 4, 5))
    assert nms(same, torch.ones(4), 0.5).tolist() == [0, 2]
    assert nms(same, torch.ones(4), 0.5, torch.tensor([0, 1, 0, 0])).tolist() == [0, 1, 2]
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    found, scores, order = drawn(3, 30), torch.rand(30), torch.randperm(30)
    kept, again = nms(found, scores, 0.4), nms(found[order], scores[order], 0.4)
    assert order[again].tolist() == kept.tolist()


def test_suppression_by_class_keeps_far_and_small_boxes_apart() -> None:
    """Large coordinates and many classes: offsets must not round a small box into another one."""
    found = torch.tensor([[4000.0, 4000, 4001, 4001], [4000.6, 4000, 4001.6, 4001]])
    assert nms(found, torch.tensor([1.0, 0.9]), 0.5, torch.tensor([1202, 1202])).tolist() == [0, 1]
    assert nms(found, torch.tensor([1.0, 0.9]), 0.2, torch.tensor([1202, 1202])).tolist() == [0]
