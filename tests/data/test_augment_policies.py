"""Policies: evenly drawn, exactly repeatable, each sample for itself, and the map says where the pixels went."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vitral.data.augment import augment
from vitral.data.augment_policies import (
    AugmentOps,
    Draws,
    Op,
    draw_ops,
    jitter,
    perform,
    randaugment,
    randaugment_table,
    recolor,
    three_augment,
    trivial_augment,
    trivial_table,
)
from vitral.data.config import AugmentConfig

EVERYTHING: dict[str, Any] = {
    "crop": "random_resized", "flip": 0.5, "flip_vertical": 0.2, "rotate": 10.0, "policy": "randaugment", "num_ops": 3,
    "magnitude": 12.0, "magnitude_std": 4.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
    "jitter_prob": 0.8, "gray": 0.2, "blur": 0.3, "solarize": 0.2, "posterize": 0.2, "equalize": 0.2,
    "autocontrast": 0.2, "invert": 0.1, "sharpen": 0.2, "random_erasing": 0.5, "erase_fill": "noise",
}  # fmt: skip


def config(**keys: Any) -> AugmentConfig:
    return AugmentConfig.model_validate(keys)


def images(count: int = 48, channels: int = 3, size: tuple[int, int] = (11, 14)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


def draws(count: int, epoch: int = 0, view: int = 0, seed: int = 0) -> Draws:
    return Draws(seed, epoch, view, torch.arange(count))


def chi_square(values: Tensor, kinds: int) -> float:
    counts = torch.bincount(values.flatten(), minlength=kinds).double()
    expected = values.numel() / kinds
    return float(((counts - expected) ** 2 / expected).sum())


def test_operations_are_drawn_evenly_and_independently() -> None:
    """The 99.99 % points of chi-square are 40 (13 degrees of freedom), 275 (195), 64 (30) and 18.4 (2)."""
    two = randaugment(draws(28_000), (32, 32)).op_RB
    assert chi_square(two, 14) < 40
    assert chi_square(two[0] * 14 + two[1], 196) < 275
    assert chi_square(trivial_augment(draws(28_000), (32, 32)).op_RB, 14) < 40
    three = three_augment(draws(28_000)).op_RB
    assert chi_square(torch.searchsorted(torch.tensor([Op.SOLARIZE, Op.GREY, Op.BLUR]), three), 3) < 18.4


def test_strengths_are_those_of_the_table_with_an_even_sign() -> None:
    drawn = randaugment(draws(20_000), (32, 48), num_ops=1, magnitude=9)
    table = randaugment_table((32, 48))[:, 9]
    op, amount = drawn.op_RB[0], drawn.amount_RB[0]
    assert torch.equal(table[Op.TRANSLATE_X], torch.linspace(0, 150 / 331 * 48, 31)[9])
    for kind in range(Op.SHEAR_X, Op.SHARPNESS + 1):
        mine = amount[op == kind] - (1 if kind >= Op.BRIGHTNESS else 0)
        size = table[kind].trunc() if kind in (Op.TRANSLATE_X, Op.TRANSLATE_Y) else table[kind]
        torch.testing.assert_close(mine.abs(), size.expand_as(mine), atol=1e-6, rtol=0)
        assert 0.43 < (mine > 0).float().mean() < 0.57
    assert (amount[op == Op.POSTERIZE] == 7).all(), "8 - 9 / 7.5, rounded"
    torch.testing.assert_close(amount[op == Op.SOLARIZE].unique(), torch.tensor([0.7]))


def test_trivial_augment_draws_31_strengths_evenly() -> None:
    drawn = trivial_augment(draws(60_000), (32, 32))
    angles = drawn.amount_RB[drawn.op_RB == Op.ROTATE].abs()
    assert chi_square((angles / 4.5).round().long(), 31) < 64
    assert torch.equal(angles.unique(), trivial_table((32, 32))[Op.ROTATE])
    assert drawn.amount_RB[drawn.op_RB == Op.POSTERIZE].unique().tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_magnitude_std_spreads_the_strength() -> None:
    drawn = randaugment(draws(60_000), (32, 32), 1, magnitude=15, magnitude_std=3)
    angles = drawn.amount_RB[drawn.op_RB == Op.ROTATE].abs()
    assert abs(angles.mean() - 15) < 0.2
    assert abs(angles.std() - 3) < 0.15
    edge = randaugment(draws(60_000), (32, 32), 1, magnitude=29, magnitude_std=10)
    assert edge.amount_RB[edge.op_RB == Op.ROTATE].abs().max() == 30
    between = randaugment(draws(9_000), (32, 32), 1, magnitude=9.5)
    assert torch.allclose(between.amount_RB[between.op_RB == Op.ROTATE].abs(), torch.tensor(9.5))


def test_jitter_takes_each_order_and_range_evenly() -> None:
    drawn = jitter(config(brightness=0.4, contrast=0.2, saturation=0.3, hue=0.1), draws(24_000))
    assert (drawn.op_RB.sort(0).values == torch.tensor([6, 7, 8, 14])[:, None]).all()
    assert chi_square((drawn.op_RB * torch.tensor([1, 20, 400, 8000])[:, None]).sum(0).unique(return_inverse=True)[1],
                      24) < 60  # fmt: skip
    for op, middle, width in ((6, 1, 0.4), (7, 1, 0.3), (8, 1, 0.2), (14, 0, 0.1)):
        amount = drawn.amount_RB[drawn.op_RB == op]
        assert chi_square(((amount - middle) / width / 2 + 0.5).mul(20).long().clamp(0, 19), 20) < 55
    some = jitter(config(brightness=0.4, jitter_prob=0.25), draws(24_000)).op_RB
    assert set(some.unique().tolist()) == {Op.IDENTITY, Op.BRIGHTNESS}
    assert 0.24 < (some == Op.BRIGHTNESS).any(0).float().mean() < 0.26


@pytest.mark.parametrize(
    "name", ["gray", "solarize", "posterize", "equalize", "autocontrast", "invert", "sharpen", "blur"]
)
def test_a_single_operation_has_its_probability(name: str) -> None:
    todo = draw_ops(config(**{name: 0.3}), draws(10_000), (8, 8))
    assert todo is not None
    assert todo.op_RB.shape == (1, 10_000)
    assert 0.28 < (todo.op_RB != Op.IDENTITY).float().mean() < 0.32
    assert draw_ops(config(), draws(4), (8, 8)) is None
    assert draw_ops(config(policy="randaugment", num_ops=0), draws(4), (8, 8)) is None


@pytest.mark.parametrize("policy", ["randaugment", "trivial", "three_augment"])
def test_carried_out_as_planned_sample_by_sample(policy: str) -> None:
    x, setup = images(), config(policy=policy, brightness=0.3, hue=0.2)
    todo = draw_ops(setup, draws(48), (11, 14))
    assert todo is not None
    done, matrix = perform(x, todo)
    assert torch.equal(x, images()), "what was given is untouched"
    for i in range(len(x)):
        one = x[i : i + 1]
        for op, amount in zip(todo.op_RB[:, i].tolist(), todo.amount_RB[:, i].split(1), strict=True):
            if op >= Op.BRIGHTNESS:
                one = recolor(Op(op), one, amount)
            elif op:
                one, _ = perform(one, AugmentOps(torch.tensor([[op]]), amount[None]))
        assert torch.equal(done[i : i + 1], one)
        if (todo.op_RB[:, i] >= Op.BRIGHTNESS).all():
            assert torch.equal(matrix[i], torch.eye(3))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("floating", [False, True])
def test_everything_at_once_alone_and_in_a_batch_bit_for_bit(channels: int, floating: bool) -> None:
    x = images(channels=channels).float() / 255 if floating else images(channels=channels)
    setup, keys, epoch = config(**EVERYTHING), torch.arange(48), torch.full((48,), 3)
    whole = augment(x, setup, 7, epoch, keys)
    again = augment(x, setup, 7, epoch, keys)
    assert torch.equal(whole.images_BCHW, again.images_BCHW)
    for i in range(0, 48, 5):
        alone = augment(x[i : i + 1], setup, 7, epoch[:1], keys[i : i + 1])
        assert torch.equal(alone.images_BCHW[0], whole.images_BCHW[i])
        assert torch.equal(alone.matrix_B33[0], whole.matrix_B33[i])
    assert whole.images_BCHW.dtype == torch.float32
    assert whole.images_BCHW.min() >= 0
    assert whole.images_BCHW.max() <= 1
    assert not whole.images_BCHW.requires_grad


def test_seed_epoch_view_and_key_each_give_other_draws() -> None:
    x, setup, zero, keys = (
        images()[:1].expand(64, -1, -1, -1),
        config(**EVERYTHING),
        torch.zeros(64).long(),
        torch.arange(64),
    )
    base = augment(x, setup, 0, zero, keys).images_BCHW
    others = [
        augment(x, setup, 1, zero, keys), augment(x, setup, 0, zero + 1, keys), augment(x, setup, 0, zero, keys + 64),
        augment(x, setup, 0, zero, keys, 1),
    ]  # fmt: skip
    for other in others:
        assert (other.images_BCHW == base).flatten(1).all(1).sum() <= 1


def test_repeats_of_a_sample_differ_and_are_those_of_their_view_number() -> None:
    """Repeated augmentation: a number a sample for `view` draws as that view does."""
    x, setup, zero = images(8), config(**EVERYTHING), torch.zeros(24).long()
    keys, repeat = torch.arange(8).repeat_interleave(3), torch.arange(3).repeat(8)
    views = augment(x[keys], setup, 0, zero, keys, repeat)
    for number in range(3):
        alone = augment(x, setup, 0, zero[:8], torch.arange(8), number)
        assert torch.equal(views.images_BCHW[repeat == number], alone.images_BCHW)
    for one, two in ((0, 1), (1, 2), (0, 2)):
        same = views.images_BCHW[repeat == one] == views.images_BCHW[repeat == two]
        assert not same.flatten(1).all(1).any()


@pytest.mark.parametrize("policy", ["randaugment", "trivial"])
def test_the_matrix_follows_the_policys_moves(policy: str) -> None:
    size, keys = 33, torch.arange(64)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    blob = torch.exp(-((x - 18.0) ** 2 + (y - 15.0) ** 2) / 8).expand(64, 1, size, size)
    setup = config(policy=policy, num_ops=3, flip=0.5, crop="random_resized", crop_scale=[0.8, 1.0], rotate=5.0)
    todo = draw_ops(setup, Draws(0, 0, 0, keys), (size, size))
    assert todo is not None
    view = augment(blob, setup, 0, keys * 0, keys)
    total = view.images_BCHW[:, 0].sum((1, 2))
    expected = (view.matrix_B33 @ torch.tensor([18.0, 15.0, 1.0]))[:, :2]
    # Operations on colors lift the ground and move the center of mass; blobs near the rim are cut.
    kept = (todo.op_RB <= Op.ROTATE).all(0) & ((expected > 6) & (expected < size - 7)).all(1)
    assert kept.sum() >= 6
    weight = view.images_BCHW[:, 0] / total[:, None, None]
    found = torch.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1)
    torch.testing.assert_close(found[kept], expected[kept], atol=0.15, rtol=0)


def test_what_was_done_to_the_images_before_is_taken_into_the_map() -> None:
    x, keys = images(), torch.arange(48)
    taken = torch.eye(3).repeat(48, 1, 1)
    taken[:, 0, 2], taken[:, 0, 0] = -4.0, 2.0
    view = augment(x, config(flip=1.0), 0, keys * 0, keys, source_B33=taken)
    plain = augment(x, config(flip=1.0), 0, keys * 0, keys)
    assert torch.equal(view.images_BCHW, plain.images_BCHW)
    torch.testing.assert_close(view.matrix_B33, plain.matrix_B33 @ taken)


def test_opacity_moves_along_and_keeps_its_values() -> None:
    x = images(channels=4)
    op = torch.full((1, 48), int(Op.INVERT))
    done, _ = perform(x, AugmentOps(op, torch.zeros(1, 48)))
    assert torch.equal(done, torch.cat([255 - x[:, :3], x[:, 3:]], 1))
    moved, matrix = perform(x, AugmentOps(torch.full((1, 48), int(Op.TRANSLATE_X)), torch.full((1, 48), 2.0)))
    assert torch.equal(moved[..., 2:], x[..., :-2])
    assert (moved[..., :2] == 0).all()
    assert (matrix[:, 0, 2] == 2).all()


@pytest.mark.parametrize(("fill", "level"), [("zeros", 0), ("gray", 128)])
def test_what_lies_outside(fill: str, level: int) -> None:
    moved, _ = perform(images(), AugmentOps(torch.full((1, 48), int(Op.TRANSLATE_Y)), torch.full((1, 48), -3.0)), fill)
    assert (moved[..., -3:, :] == level).all()
    assert torch.equal(moved[..., :-3, :], images()[..., 3:, :])


def test_rotation_is_against_the_clock() -> None:
    x = images(size=(9, 9))
    turned, matrix = perform(x, AugmentOps(torch.full((1, 48), int(Op.ROTATE)), torch.full((1, 48), 90.0)))
    assert torch.equal(turned, x.rot90(1, (-2, -1)))
    assert math.isclose(float(matrix[0, 1, 0]), -1, abs_tol=1e-6)
