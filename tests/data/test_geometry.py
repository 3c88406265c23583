"""Where points and boxes of the source lie in a view, by closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitral.data.affine import about_center
from vitral.data.crop import box_matrix
from vitral.data.geometry import transform_boxes, transform_points

IDENTITY = torch.eye(3)[None]
FLIP = torch.tensor([[[-1.0, 0, 19], [0, 1, 0], [0, 0, 1]]])  # of an image that is 20 pixels wide


def turned(degrees: float, size: tuple[int, int]) -> Tensor:
    cos, sin = (torch.tensor([f(math.radians(degrees))]) for f in (math.cos, math.sin))
    return about_center(cos, sin, -sin, cos, size)


def test_points_go_where_their_pixels_go() -> None:
    points = torch.tensor([[[0.0, 0.0], [19.0, 3.5]]])
    assert torch.equal(transform_points(IDENTITY, points), points)
    assert transform_points(FLIP, points).tolist() == [[[19, 0], [0, 3.5]]]
    # The left half of an image that is 20 x 10, doubled: the first pixel becomes pixels 0 and 1.
    double = box_matrix(torch.tensor([[0, 0, 10, 10]]), (20, 20))
    assert transform_points(double, points).tolist() == [[[0.5, 0.5], [38.5, 7.5]]]
    torch.testing.assert_close(transform_points(turned(90, (10, 20)), torch.tensor([[[9.5, 4.5], [19.0, 4.5]]])),
                               torch.tensor([[[9.5, 4.5], [9.5, -5.0]]]))  # fmt: skip


def test_boxes_of_every_sample_follow_its_own_matrix() -> None:
    boxes = torch.tensor([[[2.0, 1.0, 6.0, 5.0], [0.0, 0.0, 20.0, 10.0]]]).expand(2, -1, -1)
    found, visible = transform_boxes(torch.cat([IDENTITY, FLIP]), boxes, (10, 20))
    assert found.tolist() == [[[2, 1, 6, 5], [0, 0, 20, 10]], [[14, 1, 18, 5], [0, 0, 20, 10]]]
    assert visible.tolist() == [[1, 1], [1, 1]]


def test_boxes_are_clipped_to_the_view_and_say_how_much_is_left() -> None:
    crop = box_matrix(torch.tensor([[2, 4, 8, 8]]), (4, 4))  # top, left, height, width; halved
    boxes = torch.tensor([[[4.0, 2.0, 12.0, 10.0], [0.0, 2.0, 8.0, 10.0], [0.0, 0.0, 8.0, 6.0], [0.0, 0.0, 3.0, 3.0],
                           [5.0, 5.0, 5.0, 9.0], [20.0, 3.0, 30.0, 5.0]]])  # fmt: skip
    found, visible = transform_boxes(crop, boxes, (4, 4))
    assert found[0, :3].tolist() == [[0, 0, 4, 4], [0, 0, 2, 4], [0, 0, 2, 2]]
    torch.testing.assert_close(visible, torch.tensor([[1, 0.5, 1 / 3, 0, 0, 0]]))
    assert (found[..., 2:] >= found[..., :2]).all()
    assert found.min() >= 0
    assert found.max() <= 4


def test_a_turned_box_becomes_the_upright_one_about_it() -> None:
    found, visible = transform_boxes(turned(45, (40, 40)), torch.tensor([[[15.0, 15.0, 25.0, 25.0]]]), (40, 40))
    half = 10 / math.sqrt(2)
    torch.testing.assert_close(found, torch.tensor([[[20 - half, 20 - half, 20 + half, 20 + half]]]))
    assert visible.tolist() == [[1]]


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
)
def test_boxes_hold_their_points(edges: list[float], numbers: list[float]) -> None:
    x0, x1, y0, y1 = *sorted(edges[:2]), *sorted(edges[2:])
    a, b, c, d, x, y = numbers
    matrix = torch.tensor([[[a, b, 10 * x], [c, d, 10 * y], [0, 0, 1]]], dtype=torch.float64)
    box = torch.tensor([[[x0, y0, x1, y1]]], dtype=torch.float64)
    found, visible = transform_boxes(matrix, box, (24, 32))
    places = torch.rand(1, 50, 2, dtype=torch.float64)
    points = transform_points(matrix, box[..., :2] + places * (box[..., 2:] - box[..., :2]) - 0.5) + 0.5
    inside = points[((points >= 0) & (points <= torch.tensor([32, 24]))).all(-1)]
    assert (inside >= found[0, 0, :2] - 1e-9).all()
    assert (inside <= found[0, 0, 2:] + 1e-9).all()
    assert 0 <= float(visible) <= 1


def test_no_boxes_stay_none() -> None:
    found, visible = transform_boxes(IDENTITY, torch.zeros(1, 0, 4), (4, 4))
    assert found.shape == (1, 0, 4)
    assert visible.shape == (1, 0)


def test_half_pixels_are_not_forgotten() -> None:
    """An image that is resized to twice its size: edges double exactly, though matrices map centers."""
    double = box_matrix(torch.tensor([[0, 0, 4, 6]]), (8, 12))
    found, _ = transform_boxes(double, torch.tensor([[[0.0, 0, 2, 2], [1, 2, 6, 4]]]), (8, 12))
    assert found.tolist() == [[[0, 0, 4, 4], [2, 4, 12, 8]]]


@given(st.integers(0, 10_000))
def test_there_and_back_is_the_identity(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    zoom, start = torch.rand(2, generator=generator) * 3 + 0.2, torch.rand(2, generator=generator) * 9
    sign = torch.where(torch.rand(2, generator=generator) < 0.5, -1.0, 1.0)
    matrix = torch.diag(torch.tensor([*(zoom * sign).tolist(), 1.0])).double()[None]
    matrix[0, :2, 2] = start.double() + torch.where(sign < 0, 400.0, 0.0)  # a mirrored box stays in the positive
    box = torch.tensor([[[11.0, 12, 40, 33]]], dtype=torch.float64)
    there, visible = transform_boxes(matrix, box, (1000, 1000))
    back, _ = transform_boxes(torch.linalg.inv(matrix), there, (1000, 1000))
    torch.testing.assert_close(back, box)
    assert visible.item() == pytest.approx(1)
