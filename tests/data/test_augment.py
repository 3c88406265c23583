"""Augmentation: each choice equals its plain definition, and the matrix says what was done."""

from __future__ import annotations

import math

import pytest
import torch

from vitral.data.affine import warp
from vitral.data.augment import augment
from vitral.data.config import AugmentConfig

KEYS = torch.arange(64)
EPOCH = torch.zeros(64, dtype=torch.long)


def images(height: int = 7, width: int = 9, channels: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (64, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_nothing_asked_nothing_done() -> None:
    view = augment(images(), AugmentConfig(), 0, EPOCH, KEYS)
    assert torch.equal(view.images_BCHW, images().float() / 255)
    assert torch.equal(view.matrix_B33, torch.eye(3).expand(64, 3, 3))


def test_flip_mirrors_an_exact_share() -> None:
    x = images()
    view = augment(x, AugmentConfig(flip=1.0), 0, EPOCH, KEYS)
    torch.testing.assert_close(view.images_BCHW, x.flip(-1).float() / 255, atol=1e-5, rtol=0)
    half = augment(x, AugmentConfig(flip=0.5), 0, EPOCH, KEYS)
    flipped = half.matrix_B33[:, 0, 0] < 0
    assert 16 < flipped.sum() < 48
    torch.testing.assert_close(half.images_BCHW[~flipped], x[~flipped].float() / 255, atol=1e-5, rtol=0)


def test_pad_crop_is_a_whole_pixel_shift_of_the_padded_image() -> None:
    x = images()
    view = augment(x, AugmentConfig(pad_crop=2), 0, EPOCH, KEYS)
    padded = torch.nn.functional.pad(x.float() / 255, (2, 2, 2, 2))
    seen = set[tuple[int, int]]()
    for i in range(64):
        dx, dy = (round(v) for v in view.matrix_B33[i, :2, 2].tolist())
        seen.add((dx, dy))
        expected = padded[i, :, 2 - dy : 9 - dy, 2 - dx : 11 - dx]
        torch.testing.assert_close(view.images_BCHW[i], expected, atol=1e-5, rtol=0)
    assert all(abs(dx) <= 2 and abs(dy) <= 2 for dx, dy in seen)
    assert len(seen) > 15, "25 shifts are possible"


@pytest.mark.parametrize(("fill", "mode"), [("border", "replicate"), ("reflection", None)])
def test_fill_modes(fill: str, mode: str | None) -> None:
    x = images()[:, :1].float() / 255
    matrix = torch.eye(3).repeat(64, 1, 1)
    matrix[:, 0, 2] = 2
    moved = warp(x, matrix, fill)
    torch.testing.assert_close(moved[..., 2:], x[..., :-2], atol=1e-5, rtol=0)
    outside = x[..., :1].expand(-1, -1, -1, 2) if mode == "replicate" else x[..., :2].flip(-1)
    torch.testing.assert_close(moved[..., :2], outside, atol=1e-5, rtol=0)


def test_a_right_angle_turns_the_image_exactly() -> None:
    x = images(8, 8).float() / 255
    c, turn = 3.5, math.pi / 2
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1.0]])
    shift = torch.tensor([[1, 0, c], [0, 1, c], [0, 0, 1.0]])
    full = shift @ matrix @ torch.linalg.inv(shift)
    # x to the right, y down: a positive angle carries the right side to the bottom, clockwise to the eye.
    torch.testing.assert_close(warp(x, full.expand(64, 3, 3), "zeros"), x.rot90(-1, (-2, -1)), atol=1e-5, rtol=0)


def test_the_matrix_carries_points_to_where_the_pixels_went() -> None:
    config = AugmentConfig(rotate=20, scale=0.2, shear=10, translate=0.1, flip=0.5, pad_crop=1)
    size = 33
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    blob = torch.exp(-((x - 20.0) ** 2 + (y - 13.0) ** 2) / 8).expand(64, 1, size, size)
    view = augment(blob, config, 3, EPOCH, KEYS)
    weight = view.images_BCHW[:, 0] / view.images_BCHW[:, 0].sum((1, 2), keepdim=True)
    found = torch.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1)
    expected = (view.matrix_B33 @ torch.tensor([20.0, 13.0, 1.0]))[:, :2]
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_angles_zooms_and_shifts_stay_in_their_range_and_reach_its_ends() -> None:
    keys = torch.arange(4000)
    epoch = torch.zeros(4000, dtype=torch.long)
    x = torch.zeros(4000, 1, 8, 8)
    turn = augment(x, AugmentConfig(rotate=10), 0, epoch, keys).matrix_B33
    angle = torch.rad2deg(torch.atan2(turn[:, 1, 0], turn[:, 0, 0]))
    assert 9.9 < angle.max() <= 10.001
    assert -10.001 <= angle.min() < -9.9
    zoom = augment(x, AugmentConfig(scale=0.25), 0, epoch, keys).matrix_B33[:, 0, 0]
    assert 1.24 < zoom.max() <= 1.2501
    assert 0.7999 <= zoom.min() < 0.81
    assert abs(zoom.log().mean()) < 0.01
    shift = augment(x, AugmentConfig(translate=0.25), 0, epoch, keys).matrix_B33[:, :2, 2]
    assert 1.95 < shift.max() <= 2.0
    shear = augment(x, AugmentConfig(shear=45), 0, epoch, keys).matrix_B33[:, 0, 1]
    assert 0.9 < shear.max() <= 1.001


def test_a_sample_is_varied_alike_in_any_batch_and_anew_in_any_epoch() -> None:
    config = AugmentConfig(rotate=20, flip=0.5)
    whole = augment(images(), config, 0, EPOCH, KEYS).images_BCHW
    part = augment(images()[10:13], config, 0, EPOCH[10:13], KEYS[10:13]).images_BCHW
    assert torch.equal(whole[10:13], part)
    assert not torch.equal(whole, augment(images(), config, 0, EPOCH + 1, KEYS).images_BCHW)
