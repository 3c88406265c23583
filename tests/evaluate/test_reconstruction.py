"""Quality of reconstructions beside loops over pixels, and use of codes by counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.tokenizers import pictures, tokenizer
from vitral.evaluate.reconstruction import (
    Reconstruction,
    bits_per_image,
    entropy_bits,
    kmeans_tokenizer,
    psnr,
    reconstruct,
    ssim,
)


def pair(size: tuple[int, int] = (14, 13), channels: int = 2) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    one = torch.rand(3, channels, *size, generator=made, dtype=torch.float64)
    return one, (one + 0.2 * torch.randn(one.shape, generator=made, dtype=torch.float64)).clamp(0, 1)


def test_psnr_is_that_of_each_image() -> None:
    one, other = pair()
    expected = [10 * math.log10(1 / float(((a - b) ** 2).mean())) for a, b in zip(one, other, strict=True)]
    assert psnr(one, other).tolist() == pytest.approx(expected)
    assert psnr(one, one).tolist() == [100.0] * 3
    assert psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1)).item() == pytest.approx(20)


@pytest.mark.parametrize(("size", "side"), [((14, 13), 11), ((8, 8), 7), ((3, 9), 3), ((1, 1), 1)])
def test_ssim_is_the_mean_over_windows(size: tuple[int, int], side: int) -> None:
    one, other = pair(size)
    offset = np.arange(side) - side // 2
    window = np.exp(-(offset**2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    found = list[float]()
    for a, b in zip(one.numpy(), other.numpy(), strict=True):
        values = list[float]()
        for x, y in zip(a, b, strict=True):
            for top in range(size[0] - side + 1):
                for left in range(size[1] - side + 1):
                    p, q = (image[top : top + side, left : left + side] for image in (x, y))
                    mean_p, mean_q = (window * p).sum(), (window * q).sum()
                    var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
                    both = (window * (p - mean_p) * (q - mean_q)).sum()
                    top_part = (2 * mean_p * mean_q + 1e-4) * (2 * both + 9e-4)
                    values.append(top_part / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4)))
        found.append(float(np.mean(values)))
    torch.testing.assert_close(ssim(one, other), torch.tensor(found, dtype=torch.float64))
    torch.testing.assert_close(ssim(one, one), torch.ones(3, dtype=torch.float64))


def test_use_of_codes_is_over_the_whole_split() -> None:
    model, images = tokenizer("kmeans"), pictures(30)
    found = reconstruct(model, [(part, torch.zeros(len(part))) for part in images.split(7)])
    assert isinstance(found, Reconstruction)
    with torch.no_grad():
        codes = model.codes(images)
    assert found.counts_K.tolist() == codes.flatten().bincount(minlength=9).tolist()
    assert found.psnr_N.shape == found.ssim_N.shape == found.mae_N.shape == (30,)
    assert found.used == (found.counts_K > 0).mean()
    assert entropy_bits(np.array([5, 5, 0, 5, 5])) == pytest.approx(2)
    assert entropy_bits(np.array([7, 0])) == 0
    assert bits_per_image(512, 64) == 576


def test_the_baseline_is_k_means_with_as_many_codes() -> None:
    model, images = tokenizer(), pictures(30)
    made = kmeans_tokenizer(model, images.float().div(255).split(7))
    assert made is not None
    assert (made.config.quantizer, made.config.codes, made.grid) == ("kmeans", 12, model.grid)
    batches = [(images, torch.zeros(30))]
    worse = reconstruct(tokenizer("kmeans", codes=12), batches).psnr_N.mean()
    assert reconstruct(made, batches).psnr_N.mean() > worse
    assert kmeans_tokenizer(model, [torch.zeros(3, 3, 6, 10)]) is None, "one patch, not twelve"
