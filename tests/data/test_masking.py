"""Masks: exact counts on every grid, equal for any slice of the batch, block-wise where they are asked to be."""

import pytest
import torch

from vitral.data.masking import blocks, kept_count, noise

KEYS = torch.arange(40)


@pytest.mark.parametrize("patches", [1, 2, 3, 10, 16, 49, 100, 196, 197])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 0.99])
def test_the_kept_count_is_rounded_and_never_none(patches: int, ratio: float) -> None:
    kept = kept_count(patches, ratio)
    assert 1 <= kept <= patches
    assert kept == max(patches - round(patches * ratio), 1)


def test_the_counts_that_truncation_gets_wrong() -> None:
    assert kept_count(100, 0.8) == 20, "int(100 * (1 - 0.8)) is 19"
    assert kept_count(10, 0.9) == 1, "int(10 * (1 - 0.9)) is 0"


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (8, 8), (14, 14), (5, 17)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_block_masks_have_exactly_the_count(grid: tuple[int, int], share: float) -> None:
    patches = grid[0] * grid[1]
    count = torch.full((40,), round(share * patches))
    count[::3] = 0
    mask = blocks(3, 7, 1, KEYS, grid, count)
    assert mask.dtype == torch.bool
    assert mask.shape == (40, patches)
    assert torch.equal(mask.sum(1), count)


def test_a_mask_belongs_to_its_sample_step_view_and_seed() -> None:
    count = torch.full((40,), 60)
    whole = blocks(0, 5, 0, KEYS, (14, 14), count)
    parts = [blocks(0, 5, 0, KEYS[s : s + 16], (14, 14), count[s : s + 16]) for s in (0, 16, 32)]
    assert torch.equal(whole, torch.cat(parts)), "slices of the batch see the same masks"
    for other in (
        blocks(1, 5, 0, KEYS, (14, 14), count),
        blocks(0, 6, 0, KEYS, (14, 14), count),
        blocks(0, 5, 1, KEYS, (14, 14), count),
    ):
        assert (whole != other).any(dim=1).all()
    assert len({tuple(row.tolist()) for row in whole}) == 40, "every sample has its own"


def test_blocks_hang_together_more_than_single_patches_do() -> None:
    """Masked neighbors of masked patches: by chance the share of masked ones (0.4), in blocks far more."""
    count = torch.full((400,), 78)
    keys = torch.arange(400)
    mask = blocks(0, 0, 0, keys, (14, 14), count).view(-1, 14, 14).float()
    single = (noise(0, 0, 0, keys, 196).argsort(1).argsort(1) < 78).view(-1, 14, 14).float()

    def together(m: torch.Tensor) -> float:
        return ((m[:, 1:] * m[:, :-1]).sum() / m[:, 1:].sum()).item()

    assert together(single) == pytest.approx(0.4, abs=0.02)
    assert together(mask) > 0.7


def test_every_patch_is_masked_as_often_on_random_masks() -> None:
    share = (noise(0, 0, 0, torch.arange(4000), 49).argsort(1)[:, :24]).flatten().bincount(minlength=49) / 4000
    assert share.sub(24 / 49).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_noise_is_uniform_and_equal_for_slices() -> None:
    found = noise(2, 9, 1, KEYS, 1000)
    assert found.shape == (40, 1000)
    assert 0 <= found.min() <= found.max() < 1
    assert found.mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(noise(2, 9, 1, KEYS[5:8], 1000), found[5:8])
