"""The palette beside brute force: nearest colors, k-means, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models import kmeans
from vitral.models.kmeans import add_centers, lloyd, nearest
from vitral.models.palette import Palette, count_colors, fit_palette


def pictures(count: int = 3, channels: int = 3, size: tuple[int, int] = (9, 7), levels: int = 256) -> Tensor:
    made = torch.Generator().manual_seed(0)
    step = 255 // (levels - 1)
    return (torch.randint(0, levels, (count, channels, *size), generator=made) * step).to(torch.uint8)


def palette(colors_KC: Tensor) -> Palette:
    made = Palette(*colors_KC.shape)
    made.colors_KC.copy_(colors_KC)
    return made


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("count", [2, 5, 31])
def test_every_code_comes_back_and_every_pixel_gets_the_nearest_color(channels: int, count: int) -> None:
    images = pictures(channels=channels)
    made = palette(fit_palette(*count_colors([images]), count, seed=0))
    codes = torch.arange(count).repeat(2, 3, 1)
    assert torch.equal(made.encode(made.decode(codes)), codes)
    found = made.encode(images)
    assert found.shape == (3, 9, 7)
    pixels, colors = images.double() / 255, made.colors_KC.double()
    for place in ((0, 0, 0), (1, 8, 6), (2, 4, 3)):
        distances = (colors - pixels[place[0], :, place[1], place[2]]).square().sum(1)
        assert distances[found[place]] == distances.min()
    assert torch.equal(found, made.encode(images.double() / 255)), "bytes and floats are the same images"


def test_of_equally_near_colors_the_first_wins() -> None:
    made = palette(torch.tensor([[0.75], [0.25], [0.25]]))
    assert made.encode(torch.full((1, 1, 1, 1), 0.5)).item() == 0
    assert made.encode(torch.zeros(1, 1, 1, 1)).item() == 1


def test_as_many_colors_as_there_are_lose_nothing() -> None:
    images = pictures(channels=1, levels=16)
    made = palette(fit_palette(*count_colors([images[:2], images[2:]]), 16, seed=3))
    torch.testing.assert_close(made.decode(made.encode(images)), images.float() / 255, rtol=0, atol=1e-7)
    assert (made.colors_KC.diff(dim=0) > 0).all(), "from dark to light"


def test_the_error_never_rises_with_more_colors() -> None:
    colors_MC, counts_M = count_colors([pictures(8)])
    centers_KC, errors = colors_MC[:0], list[float]()
    for count in (1, 2, 3, 8, 20, 50):
        centers_KC = lloyd(colors_MC, counts_M, add_centers(colors_MC, counts_M, centers_KC, count, seed=1))
        errors.append(float((nearest(colors_MC, centers_KC)[1] * counts_M).sum()))
    assert errors == sorted(errors, reverse=True)
    mean_C = (colors_MC * counts_M[:, None]).sum(0) / counts_M.sum()
    assert errors[0] == pytest.approx(float(((colors_MC - mean_C).square().sum(1) * counts_M).sum()))


def test_many_centers_are_different_points_spread_as_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth at once, from 512 on: all points in the end, and half of them about as near to all as the same number
    one by one (each error is 0.4 of that of random ones)."""
    made = torch.Generator().manual_seed(0)
    points_MC = torch.cat([torch.randn(1000, 8, generator=made), 20 + torch.randn(40, 8, generator=made)]).double()
    counts_M = torch.ones(len(points_MC), dtype=torch.int64)
    for count in (700, 1040):
        assert len(add_centers(points_MC, counts_M, points_MC[:0], count, seed=0).unique(dim=0)) == count

    def error(at_once: bool) -> float:
        monkeypatch.setattr(kmeans, "_ONE_BY_ONE", 16 if at_once else 1040)
        centers_KC = add_centers(points_MC, counts_M, points_MC[:0], 520, seed=0)
        return float(nearest(points_MC, centers_KC)[1].sum())

    assert error(at_once=True) == pytest.approx(error(at_once=False), rel=0.1)


def test_a_result_is_a_fixed_point_and_belongs_to_its_seed() -> None:
    counted = count_colors([pictures(8)])
    one, two = (fit_palette(*counted, 12, seed=seed) for seed in (0, 1))
    assert torch.equal(one, fit_palette(*counted, 12, seed=0))
    assert not torch.equal(one, two)
    place_M, weights_M1 = nearest(counted[0], one)[0], counted[1][:, None]
    for number, color_C in enumerate(one):
        mine = place_M == number
        mean_C = (counted[0][mine] * weights_M1[mine]).sum(0) / weights_M1[mine].sum()
        torch.testing.assert_close(mean_C.float(), color_C, rtol=0, atol=1e-6)


def test_colors_are_never_rounded() -> None:
    made = palette(fit_palette(*count_colors([pictures()]), 20, seed=0))
    colors = made.colors_KC.clone()
    assert torch.equal(made.bfloat16().double().colors_KC, colors)
    assert made.to("meta").to_empty(device="cpu").colors_KC.shape == colors.shape


def test_what_is_refused() -> None:
    counted = count_colors([pictures(channels=1, levels=16)])
    with pytest.raises(UserError, match=r"(?s)17.*at most 16, the distinct colors"):
        fit_palette(*counted, 17, seed=0)
    made = Palette(4, 1)
    for codes in ([[[4]]], [[[-1]]]):
        with pytest.raises(UserError, match=r"(?s)outside the palette.*0 to 3"):
            made.decode(torch.tensor(codes))
