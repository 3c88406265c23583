"""Image tokenizers: codes and images, shapes of any patch and grid, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.tokenizers import KINDS, SMALL, pictures, tokenizer
from vitral.errors import UserError
from vitral.models.create import create_model
from vitral.models.fit_codes import fit_codes, fit_patches
from vitral.models.image_tokenizer_config import ImageTokenizerConfig
from vitral.models.quantizers import VQ
from vitral.models.registry import build_config, image_tokenizer

SHAPES: list[dict[str, Any]] = [
    {}, {"patch_size": 1}, {"in_channels": 1, "image_size": (5, 15), "patch_size": 5}, {"in_channels": 4},
]  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_images_have_their_shapes(kind: str, shape: dict[str, Any]) -> None:
    model = tokenizer(kind, **shape)
    c = model.config
    images = pictures(2, c.image_size, c.in_channels)
    codes = model.codes(images)
    rows, columns = model.grid
    assert (rows, columns) == (c.image_size[0] // c.patch_size, c.image_size[1] // c.patch_size)
    assert codes.shape == (2, rows * columns)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < c.codes
    made = model.images(codes)
    assert made.shape == images.shape
    assert 0 <= made.min() <= made.max() <= 1
    torch.testing.assert_close(model(images), made, rtol=0, atol=1e-5)
    assert torch.equal(codes, model.codes(images.float() / 255)), "bytes and floats are the same images"


@torch.no_grad()
def test_codes_are_row_by_row() -> None:
    """A changed patch changes its own code alone, without a network."""
    model, images = tokenizer("kmeans"), pictures(1)
    codes = model.codes(images)
    for place, (top, left) in enumerate((top, left) for top in range(0, 6, 2) for left in range(0, 10, 2)):
        other = images.clone()
        changed = (255 * model.images((codes + 1) % 9)).round().byte()
        other[:, :, top : top + 2, left : left + 2] = changed[:, :, top : top + 2, left : left + 2]
        assert (model.codes(other) != codes).nonzero().tolist() == [[0, place]]


def test_mean_patches_come_back_exactly() -> None:
    model = tokenizer("kmeans")
    codes = torch.arange(15).remainder(9)[None]
    assert torch.equal(model.codes(model.images(codes)), codes)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_refused(kind: str) -> None:
    model = tokenizer(kind)
    with pytest.raises(UserError, match=r"(?s)wrong image size.*6 x 6.*6 x 10"):
        model.codes(torch.zeros(1, 3, 6, 6))
    codes = torch.zeros(1, 15, dtype=torch.int64)
    for wrong in (-1, model.config.codes):
        with pytest.raises(UserError, match=rf"(?s)codes outside the codebook.*0 to {model.config.codes - 1}"):
            model.images(codes + wrong)
    with pytest.raises(UserError, match=r"(?s)wrong number of codes.*14.*15, 3 x 5"):
        model.images(codes[:, :14])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"patch_size": 4}, "6 x 10 is not a multiple of patch_size 4"),
        ({"num_classes": 3}, "no head for classes"),
        ({"quantizer": "fsq", "codes": 24}, "levels none make 1 codes, and codes is 24"),
        ({"quantizer": "fsq", "codes": 24, "levels": (5, 5)}, "levels 5 x 5 make 25 codes, and codes is 24"),
        ({"levels": (5, 5)}, "levels=.* has no effect"),
        ({"quantizer": "kmeans"}, "width=16 has no effect"),
        ({"heads": 3}, "heads=3 has no effect"),
        ({"coder": "vit", "heads": 3}, "width 16 cannot be split evenly among 3 heads"),
        ({"quantizer": "fsq", "codes": 25, "levels": (5, 5), "code_width": 7}, "code_width=7 has no effect"),
    ],
)
def test_configurations_that_do_not_fit(keys: dict[str, Any], words: str) -> None:
    tree = {"family": "image_tokenizer", **{k: v for k, v in SMALL.items() if k != "heads"}, "codes": 12, **keys}
    with pytest.raises(UserError, match=words):
        build_config(tree)


def test_the_deepest_preset_has_its_numbers() -> None:
    model = create_model("vq_nano_patch4_32", num_classes=0)
    found = image_tokenizer(model)
    assert found is not None
    assert (found.config.codes, found.grid, found.config.tokens) == (512, (8, 8), 64)
    assert image_tokenizer(create_model("vit_micro_patch2_8")) is None


def batches(count: int) -> list[torch.Tensor]:
    return [pictures(min(count, 40))]


def test_k_means_finds_the_patches_that_there_are() -> None:
    """As many codes as different patches lose nothing; one more is refused."""
    made = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (5, 3, 2, 2), generator=made, dtype=torch.uint8)
    index = torch.randint(0, 5, (20, 3, 5), generator=made)
    images = patches[index].permute(0, 3, 1, 4, 2, 5).reshape(20, 3, 6, 10)
    config = tokenizer("kmeans", codes=5).config
    found = fit_codes(config, lambda _: images.split(7), 0)
    assert found is not None
    model = tokenizer("kmeans", codes=5)
    model.load_state_dict(found.weights)
    torch.testing.assert_close(model(images), images.float() / 255, rtol=0, atol=1e-6)
    sums = found.weights["quantizer.patches_KD"].sum(1)
    assert torch.equal(sums, sums.sort().values), "from dark to light"
    with pytest.raises(UserError, match=r"(?s)model\.codes.*6.*at most 5 different patches"):
        fit_patches(tokenizer("kmeans", codes=6).config, images.split(7), 0)


@torch.no_grad()
def test_more_means_are_never_worse() -> None:
    images = pictures(40)
    errors: list[float] = []
    for codes in (2, 8, 32):
        model = tokenizer("kmeans", codes=codes)
        found = fit_codes(model.config, lambda _: [images], 0)
        assert found is not None
        model.load_state_dict(found.weights)
        errors.append((model(images) - images / 255).square().mean().item())
    assert errors == sorted(errors, reverse=True)


def test_a_codebook_starts_among_the_encoders_vectors() -> None:
    config = tokenizer().config
    found = fit_codes(config, lambda _: [pictures(40)], 3)
    again = fit_codes(config, lambda _: [pictures(40)], 3)
    assert found is not None
    assert again is not None
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in found.weights.items())
    model = tokenizer()
    model.load_state_dict(found.weights)
    assert isinstance(model.quantizer, VQ)
    assert len(model.codes(pictures(40)).unique()) == 12
    x = model.embed(pictures(40)).flatten(0, 1)
    codes = model.codes(pictures(40)).flatten()
    means = torch.stack([x[codes == k].mean(0) for k in range(12)])
    spread = (means - model.quantizer.codebook_KD).square().sum(1).mean() / x.var(0).sum()
    assert spread < 0.05, "near the means of their vectors, but for rounds that were left"
    assert fit_codes(ImageTokenizerConfig(**tokenizer("fsq").config.model_dump()), lambda _: [], 0) is None
