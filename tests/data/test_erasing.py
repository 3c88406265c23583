"""Random erasing: how often, how much, what replaces it; and the boxes of crops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitral.config import build
from vitral.data.config import AugmentConfig
from vitral.data.counter_rng import Draws
from vitral.data.crop import box_matrix, draw_boxes
from vitral.data.erasing import erase
from vitral.errors import UserError


def draws(count: int) -> Draws:
    return Draws(0, 0, 0, torch.arange(count))


def test_share_of_samples_and_of_area() -> None:
    config = AugmentConfig(random_erasing=0.25, erase_scale=(0.1, 0.3), erase_ratio=(0.5, 2.0))
    erased = 1 - erase(torch.ones(4000, 2, 40, 50), config, draws(4000))
    assert torch.equal(erased[:, 0], erased[:, 1]), "all channels alike"
    area = erased[:, 0].mean((1, 2))
    assert 0.23 < (area > 0).float().mean() < 0.27
    hit = area[area > 0]
    assert abs(hit.mean() - 0.2) < 0.01
    assert hit.min() > 0.08
    assert hit.max() < 0.32
    heights, widths = erased[area > 0, 0].amax(2).sum(1), erased[area > 0, 0].amax(1).sum(1)
    assert torch.equal((heights * widths).long(), (hit * 2000).round().long()), "one solid rectangle each"
    assert (heights / widths).min() > 0.45
    assert (heights / widths).max() < 2.2


@pytest.mark.parametrize("fill", ["zeros", "mean", "noise"])
def test_what_replaces_it(fill: str) -> None:
    x = torch.rand(400, 3, 24, 20, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    config = AugmentConfig.model_validate({"random_erasing": 1.0, "erase_fill": fill})
    done = erase(x, config, draws(400))
    inside = erase(torch.ones_like(x), AugmentConfig(random_erasing=1.0), draws(400)) == 0
    assert torch.equal(done[~inside], x[~inside])
    assert 0.1 < inside.float().mean() < 0.25
    if fill == "zeros":
        assert (done[inside] == 0).all()
    elif fill == "mean":
        mean = x.mean((2, 3), keepdim=True).expand_as(x)
        torch.testing.assert_close(done[inside], mean[inside], atol=1e-6, rtol=0)
    else:
        values = done[inside]
        counts = torch.histc(values, 20, 0, 1)
        assert ((counts - len(values) / 20) ** 2 / (len(values) / 20)).sum() < 60, "uniform in [0,1)"
        assert abs(torch.corrcoef(done.permute(1, 0, 2, 3)[:, inside[:, 0]])[0, 1]) < 0.02, "no channel like another"
        assert len(values.unique()) > 0.98 * len(values)


@pytest.mark.parametrize("fill", ["zeros", "mean", "noise"])
def test_alone_as_in_a_batch(fill: str) -> None:
    x = torch.rand(30, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    config = AugmentConfig.model_validate({"random_erasing": 0.7, "erase_fill": fill})
    whole = erase(x, config, Draws(3, torch.arange(30), torch.arange(30) % 4, torch.arange(30)))
    for i in range(30):
        place = torch.tensor([i])
        assert torch.equal(erase(x[i : i + 1], config, Draws(3, place, i % 4, place))[0], whole[i])


def test_boxes_lie_inside_and_have_their_area_and_shape() -> None:
    sizes = torch.tensor([[480, 640], [33, 47], [200, 30], [1, 1]]).repeat(500, 1)
    boxes = draw_boxes(Draws(0, 0, 0, torch.arange(2000)), sizes, (0.3, 0.5), (0.75, 4 / 3))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    large = boxes[sizes[:, 0] == 480]
    share = large[:, 2:].prod(1) / (480 * 640)
    assert share.min() > 0.297
    assert share.max() < 0.503
    shape = large[:, 3] / large[:, 2]
    assert shape.min() > 0.745
    assert shape.max() < 1.34
    assert (boxes[sizes[:, 0] == 200] == torch.tensor([80, 0, 40, 30])).all(), "none fits: the largest in the middle"


def test_boxes_belong_to_their_sample() -> None:
    sizes = torch.tensor([[48, 64]]).expand(100, 2)
    keys, epoch = torch.arange(100), torch.arange(100) % 3
    whole = draw_boxes(Draws(5, epoch, 2, keys), sizes, (0.08, 1.0), (0.75, 4 / 3))
    part = draw_boxes(Draws(5, epoch[40:43], torch.tensor(2), keys[40:43]), sizes[:3], (0.08, 1.0), (0.75, 4 / 3))
    assert torch.equal(whole[40:43], part)
    assert (draw_boxes(Draws(5, epoch, 3, keys), sizes, (0.08, 1.0), (0.75, 4 / 3)) == whole).all(1).sum() < 5


def test_the_boxs_map_takes_its_edges_to_the_images_edges() -> None:
    matrix = box_matrix(torch.tensor([[10, 20, 30, 40]]), (64, 32))[0]
    corners = torch.tensor([[19.5, 9.5, 1.0], [59.5, 39.5, 1.0]]).T
    torch.testing.assert_close((matrix @ corners)[:2], torch.tensor([[-0.5, 31.5], [-0.5, 63.5]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("crop_scale", [0.5, 0.1], "the smaller one first"),
        ("crop_scale", [0.5, 1.5], "shares end at 1"),
        ("aspect_ratio", [0.0, 1.0], "above 0"),
        ("aspect_ratio", [1.0], "aspect_ratio"),
        ("erase_scale", [-0.1, 0.2], "above 0"),
        ("erase_ratio", [3.0, 0.3], "the smaller one first"),
        ("blur_sigma", [0.0, 2.0], "above 0"),
        ("policy", "autoaugment", "randaugment"),
        ("magnitude", 31, "30 or less"),
        ("num_ops", -1, "0 or more"),
        ("hue", 0.6, "0.5 or less"),
        ("erase_fill", "white", "noise"),
        ("brightness", "strong", "number"),
    ],
)
def test_wrong_values_get_one_message(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(AugmentConfig, {key: value})
    assert key in str(caught.value)
