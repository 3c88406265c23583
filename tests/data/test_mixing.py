"""Mixup and CutMix: pixels and labels are shared in the same proportion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vitral.data.config import AugmentConfig
from vitral.data.mixing import GROUP, Mixer

POSITION = torch.arange(64)


def flat_images(count: int = 64, size: int = 16) -> torch.Tensor:
    """Image i is i everywhere, so a pixel tells whose it is."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, size, size).contiguous()


def test_mixup_blends_pixels_with_the_labels_weight() -> None:
    images, targets = Mixer(AugmentConfig(mixup=0.8), 0)(flat_images(), torch.arange(64), POSITION)
    expected = targets["weight"] * targets["label"] + (1 - targets["weight"]) * targets["partner"]
    torch.testing.assert_close(images[:, 0, 3, 5], expected)
    torch.testing.assert_close(images.flatten(1).std(dim=1), torch.zeros(64), atol=1e-5, rtol=0)


def test_cutmix_weights_are_exact_areas_of_one_box() -> None:
    images, targets = Mixer(AugmentConfig(cutmix=1.0), 0)(flat_images(), torch.arange(64), POSITION)
    own = images[:, 0] == targets["label"].view(-1, 1, 1)
    torch.testing.assert_close(own.float().mean((1, 2)), targets["weight"])
    foreign = ~own
    assert bool((images[:, 0][foreign] == targets["partner"].view(-1, 1, 1).expand_as(own)[foreign]).all())
    for i in range(64):
        rows, columns = foreign[i].any(1).sum(), foreign[i].any(0).sum()
        assert foreign[i].sum() == rows * columns, "one rectangle"


def test_partners_stay_in_their_group_of_eight_and_are_never_oneself() -> None:
    _, targets = Mixer(AugmentConfig(mixup=1.0), 5)(flat_images(), torch.arange(64), POSITION)
    assert torch.equal(targets["partner"] // GROUP, POSITION // GROUP)
    assert (targets["partner"] != targets["label"]).all()
    assert len(set(targets["partner"].tolist())) == 64, "within a group, everyone is partner once"


def test_a_slice_of_whole_groups_mixes_as_within_the_batch() -> None:
    mixer = Mixer(AugmentConfig(mixup=0.4, cutmix=1.0), 1)
    whole, targets = mixer(flat_images(), torch.arange(64), POSITION)
    part, part_targets = mixer(flat_images()[16:40], torch.arange(64)[16:40], POSITION[16:40])
    assert torch.equal(whole[16:40], part)
    assert torch.equal(targets["partner"][16:40], part_targets["partner"])


@pytest.mark.parametrize("size", [1, 2, 7, 13])
def test_odd_batches(size: int) -> None:
    images, targets = Mixer(AugmentConfig(mixup=1.0), 0)(
        flat_images(size), torch.arange(size), torch.arange(100, 100 + size)
    )
    assert images.shape[0] == size
    assert sorted(targets["partner"].tolist()) == list(range(size))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixups_weights_follow_the_beta_distribution(alpha: float) -> None:
    count = 20_000
    _, targets = Mixer(AugmentConfig(mixup=alpha), 0)(
        torch.zeros(count, 1, 1, 1), torch.zeros(count).long(), torch.arange(count)
    )
    # On a grid: float32 cannot tell the weights next to 1 apart, of which a small alpha has many.
    grid = np.linspace(0.001, 0.999, 500)
    below = np.searchsorted(np.sort(targets["weight"].numpy()), grid) / count
    assert np.abs(below - stats.beta(alpha, alpha).cdf(grid)).max() < 1.95 / count**0.5, "Kolmogorov-Smirnov, p = 0.001"


def test_shares_of_mixed_and_of_cut_groups() -> None:
    count = 8 * 4000
    position, images = torch.arange(count), torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    _, targets = Mixer(AugmentConfig(mixup=1.0, mix_prob=0.25), 0)(images, position, position)
    assert abs((targets["weight"] < 1).float().mean() - 0.25) < 0.03
    mixed, targets = Mixer(AugmentConfig(mixup=1.0, cutmix=1.0), 0)(images, position, position)
    blended = (mixed.flatten(1) % 1 != 0).any(1) & (targets["weight"] < 1)
    assert abs(blended.float().mean() - 0.5) < 0.05
