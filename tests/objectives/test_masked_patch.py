"""Masked patch prediction: what is corrupted, what is predicted, from what; and that nothing else matters."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import create_vit
from vitral.data.masking import noise
from vitral.objectives.config import MaskedPatchConfig
from vitral.objectives.masked_patch import MaskedPatch, colors, part_means
from vitral.objectives.objective import ObjectiveContext
from vitral.structs import Batch, View


def batch(size: int = 6, channels: int = 3, shape: tuple[int, int] = (8, 8)) -> Batch:
    images = torch.rand(size, channels, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = torch.eye(3).expand(size, 3, 3)
    return Batch((View(images, matrix),), {"label": torch.zeros(size, dtype=torch.int64)}, torch.arange(size) + 7)


def objective(seed: int = 0, channels: int = 3, pool: str = "avg", **keys: object) -> MaskedPatch:
    torch.manual_seed(seed)

    def factory() -> torch.nn.Module:
        return create_vit("vit_micro_patch2_8", num_classes=0, in_channels=channels, pool=pool, depth=2).double()

    config = MaskedPatchConfig(kind="masked_patch", **keys)  # type: ignore[arg-type]
    return MaskedPatch(factory, config, ObjectiveContext(10, seed=3)).double()  # type: ignore[arg-type]


def test_white_is_511_and_black_is_0() -> None:
    assert colors(torch.ones(3)).item() == 511
    assert colors(torch.zeros(3)).item() == 0
    assert colors(torch.tensor([0.5, 0.0, 0.99])).item() == 4 * 64 + 7
    assert colors(torch.tensor([[0.13], [0.99]])).tolist() == [1, 7], "one channel: 8 classes"


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_part_means_are_the_means_of_the_parts(parts: int) -> None:
    images = torch.rand(2, 3, 8, 16, dtype=torch.float64)
    found = part_means(images, (2, 4), parts)
    side = 4 // parts
    for row in range(2):
        for column in range(4):
            for y in range(parts):
                for x in range(parts):
                    top, left = row * 4 + y * side, column * 4 + x * side
                    expected = images[:, :, top : top + side, left : left + side].mean((2, 3))
                    torch.testing.assert_close(found[:, row * 4 + column, y * parts + x], expected)


def test_targets_come_from_the_image_as_it_is_uint8_or_not() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(part_means(images, (4, 4), 1), part_means(images.float() / 255, (4, 4), 1))


def test_the_corruption_is_at_the_shares_asked_for() -> None:
    made = objective(mask_token_prob=0.8, swap_prob=0.1)
    N, M, size = 64, 32, 2000
    patches = torch.arange(size * N, dtype=torch.float64).view(size, N, 1).expand(-1, -1, made.model.config.width)
    chosen = torch.rand(size, N, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :M]
    found = made.corrupt(patches.contiguous(), chosen, torch.arange(size), 4)
    untouched = torch.ones(size, N, dtype=torch.bool).scatter(1, chosen, False)
    assert torch.equal(found[untouched], patches[untouched]), "what is not chosen stays"
    picked = found.gather(1, chosen[..., None].expand(-1, -1, found.shape[-1]))
    original = patches.gather(1, chosen[..., None].expand(-1, -1, found.shape[-1]))
    is_token = (picked == made.mask_token).all(-1)
    is_kept = (picked == original).all(-1)
    is_other = ~is_token & ~is_kept
    deviation = 4 * math.sqrt(0.25 / (size * M))
    assert is_token.double().mean().item() == pytest.approx(0.8, abs=deviation)
    assert is_other.double().mean().item() == pytest.approx(0.1, abs=deviation)
    same_image = (picked[..., 0] // N) == torch.arange(size)[:, None]
    assert same_image[is_other].all(), "the other patch is of the same image"


@pytest.mark.parametrize("pool", ["avg", "cls"])
@pytest.mark.parametrize(
    ("channels", "target", "width"), [(3, "mean", 512), (1, "mean", 8), (1, "4x4", 16 * 8), (3, "pixels", 12)]
)
def test_the_loss_is_that_of_the_chosen_patches_alone(pool: str, channels: int, target: str, width: int) -> None:
    """By hand: corrupt, encode everything, predict everything, pick."""
    made, one = objective(channels=channels, pool=pool, target=target), batch(channels=channels)
    assert made.predict.weight.shape[0] == width
    torch.nn.init.normal_(made.predict.weight)
    patches, grid = made.model.embed(one.views[0].images_BCHW)
    chosen = noise(3, 2, 0, one.sample_ids_B, 16).argsort(1)[:, :8]
    out = made.model.encode_tokens(made.corrupt(patches, chosen, one.sample_ids_B, 2), grid)
    said = made.predict(made.model.fc_norm(out.patches_BND)).view(6, 16, made.parts**2, -1)
    expected = part_means(one.views[0].images_BCHW, grid, made.parts)
    losses = []
    for image in range(6):
        for patch in chosen[image].tolist():
            for part in range(made.parts**2):
                if target == "pixels":
                    losses.append((said[image, patch, part] - expected[image, patch, part]).square().mean())
                else:
                    losses.append(F.cross_entropy(said[image, patch, part], colors(expected[image, patch, part])))
    assert made({"train": one}, 2).loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)


def test_every_step_and_sample_has_its_own_patches_and_a_second_call_the_same() -> None:
    made, one = objective(), batch()
    assert made({"train": one}, 1).loss == made({"train": one}, 1).loss
    assert made({"train": one}, 1).loss != made({"train": one}, 2).loss


def test_micro_batches_make_the_whole() -> None:
    made, one = objective(), batch()
    whole = made({"train": one}, 0).loss
    parts = sum(made({"train": one.slice(s, s + 2)}, 0).loss.item() * 2 / 6 for s in (0, 2, 4))
    assert whole.item() == pytest.approx(parts, abs=1e-12)


def test_every_parameter_learns() -> None:
    made = objective()
    torch.nn.init.normal_(made.predict.weight)
    made({"train": batch()}, 0).loss.backward()
    idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in idle if not name.endswith("qkv.bias")]


def test_bfloat16_is_near() -> None:
    made, one = objective().float(), batch()
    one = one._replace(views=(one.views[0]._replace(images_BCHW=one.views[0].images_BCHW.float()),))
    exact = made({"train": one}, 0).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert made({"train": one}, 0).loss.item() == pytest.approx(exact, rel=0.02)


def test_equal_features_raise_the_alarm() -> None:
    made = objective()
    assert made.check_collapse({"feature_std": 0.5}) is None
    assert "collapse" in (made.check_collapse({"feature_std": 1e-4}) or "")
