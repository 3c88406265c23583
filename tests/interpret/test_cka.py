"""CKA against a direct computation, and what it has to be blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.interpret.test_attention import Largest
from tests.interpret.variants import images, variant
from vitral.errors import UserError
from vitral.interpret.cka import cka, compare_layers, layer_features, layer_names
from vitral.models.create import create_model


def hsic(one: Tensor, other: Tensor) -> float:
    """Song et al. 2012, equation 5, written out with traces and ones."""
    k, m = ((x @ x.T).numpy() for x in (one, other))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, ones = len(k), np.ones(len(k))
    value = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (value - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def features(seed: int, *widths: int, size: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    return [
        (shared @ torch.randn(6, width, generator=generator, dtype=torch.float64))
        + torch.randn(size, width, generator=generator, dtype=torch.float64)
        for width in widths
    ]


def test_it_is_the_ratio_of_the_unbiased_estimates() -> None:
    batches = [(features(seed, 5, 9), features(seed, 7, 3, 4)[1:]) for seed in range(3)]
    found = cka(batches)
    assert found.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            cross = sum(hsic(one[i], other[j]) for one, other in batches)
            mine = sum(hsic(one[i], one[i]) for one, _ in batches)
            theirs = sum(hsic(other[j], other[j]) for _, other in batches)
            assert found[i, j].item() == pytest.approx(cross / np.sqrt(mine * theirs), abs=1e-6)


def test_a_layer_with_itself_is_1_and_rotations_scales_and_shifts_change_nothing() -> None:
    one = features(0, 8, 8, size=40)
    assert cka([(one, one)]).diagonal().tolist() == pytest.approx([1.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double())[0]
    other = [one[0] @ rotation, 17.0 * one[0], one[0] + 1000.0, one[0] @ torch.diag(torch.arange(1.0, 9)).double()]
    row = cka([(one[:1], other)])[0]
    assert row[:3].tolist() == pytest.approx([1.0] * 3, abs=1e-4)
    assert row[3] < 0.99, "another mixture of the features is another thing"


def test_unrelated_features_give_about_0_also_where_the_plain_estimate_does_not() -> None:
    """With 8 images and 500 features the biased CKA is near 1."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        ([torch.randn(8, 500, generator=generator)], [torch.randn(8, 500, generator=generator)]) for _ in range(200)
    ]
    assert cka(batches).item() == pytest.approx(0, abs=0.05)
    x, y = (part[0] - part[0].mean(0) for part in batches[0])
    plain = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.8


def test_batches_that_are_too_small_are_left_out_or_refused() -> None:
    one = features(0, 5, 6)
    small = [x[:3] for x in one]
    assert torch.equal(cka([(one, one), (small, small)]), cka([(one, one)]))
    with pytest.raises(UserError, match="at least 4 images"):
        cka([(small, small)])


@pytest.mark.parametrize("name", ["class token", "registers", "hybrid"])
def test_models_of_all_kinds_beside_a_resnet(name: str) -> None:
    torch.manual_seed(0)
    vit = variant(name)
    resnet = create_model("resnet20_cifar", num_classes=3, image_size=(8, 8), in_channels=1, blocks=(1, 2)).eval()
    assert layer_names(resnet) == ["stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1"]
    x, small = images(vit, 9), torch.rand(9, 1, 8, 8)
    with Largest() as largest:
        found = compare_layers([(x, small), (x.flip(0), small.flip(0))], vit, resnet)
    assert found.shape == (vit.config.depth, 3)
    assert found.isfinite().all()
    once = cka([(layer_features(vit, x), layer_features(resnet, small))])
    torch.testing.assert_close(found, once, rtol=0, atol=1e-6)
    assert largest.most < 9 * 9 * len(found) + 9 * 3 * max(vit.grid[0] * vit.grid[1] * 64, 16 * 64) * 4


def test_a_vit_with_itself_has_ones_on_the_diagonal() -> None:
    model = variant("class token")
    x = images(model, 16)
    found = compare_layers([(x, x)], model, model)
    assert found.diagonal().tolist() == pytest.approx([1.0] * len(found))
    torch.testing.assert_close(found, found.T)
