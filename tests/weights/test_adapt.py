"""Weights for other images: exact where they can be."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.models.test_vit import tiny
from vitral.data.decode import as_image
from vitral.errors import UserError
from vitral.models.registry import build_config
from vitral.weights.adapt import adapt, channel_mix, resize_patches, without_head


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (5, 7), (3, 12)])
def test_enlarged_patches_are_seen_as_before(old: int, new: int) -> None:
    weight, patches = torch.randn(6, 3, old, old).double(), torch.randn(10, 3, old, old).double()
    larger = F.interpolate(patches, size=(new, new), mode="bilinear", antialias=True)
    found = torch.einsum("bchw,dchw->bd", larger, resize_patches(weight, new))
    torch.testing.assert_close(found, torch.einsum("bchw,dchw->bd", patches, weight))


def test_smaller_patches_are_the_least_squares_answer() -> None:
    weight = torch.randn(2, 1, 6, 6).double()
    patches = torch.eye(36).double().reshape(36, 1, 6, 6)
    smaller = F.interpolate(patches, size=(4, 4), mode="bilinear", antialias=True).flatten(1)
    expected = torch.linalg.lstsq(smaller, weight.flatten(1).T).solution.T
    torch.testing.assert_close(resize_patches(weight, 4).flatten(1), expected)
    assert resize_patches(weight, 6) is weight


@pytest.mark.oracle
@pytest.mark.parametrize(("old", "new"), [(16, 32), (16, 12), (14, 16)])
def test_patches_resize_as_in_timm(timm: ModuleType, old: int, new: int) -> None:
    weight = torch.randn(8, 3, old, old)
    expected = timm.layers.resample_patch_embed(weight, [new, new], interpolation="bilinear", antialias=True)
    torch.testing.assert_close(resize_patches(weight, new), expected, rtol=0, atol=1e-4)


CHANNELS = [(3, 1), (3, 4), (1, 3), (1, 2), (4, 2), (3, 2)]


@pytest.mark.parametrize("old", [1, 2, 3, 4])
@pytest.mark.parametrize("new", [1, 2, 3, 4])
def test_an_image_without_transparency_is_answered_as_before(old: int, new: int) -> None:
    """Read in both channel counts, as images are; luma is rounded to whole levels there."""
    before = tiny(torch.float64, in_channels=old)
    config = build_config({**before.config.model_dump(), "in_channels": new, "mean": (), "std": ()})
    after = tiny(torch.float64, in_channels=new)
    after.load_state_dict(adapt(dict(before.state_dict()), before.config, config)[0])
    rng = np.random.default_rng(0)
    colors = 1 if new < 3 and old < 3 else 3
    gray = rng.integers(0, 256, (8, 8, 1), dtype=np.uint8).repeat(3, 2)
    # What one side cannot see of the colors, the other does not get: gray pictures, where either is gray.
    pixels = gray if min(old, new) < 3 else rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0] if colors == 1 else pixels)
    theirs, ours = (as_image(image, channels)[None] for channels in (old, new))
    torch.testing.assert_close(after(ours), before(theirs), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), CHANNELS)
def test_other_channels_same_answers(old: int, new: int) -> None:
    means, stds = [0.485, 0.4, 0.3, 0.6], [0.2, 0.25, 0.3, 0.5]
    before = tiny(torch.float64, in_channels=old, mean=means[:old], std=stds[:old])
    config = build_config({**before.config.model_dump(), "in_channels": new, "mean": [0.1] * new, "std": [0.7] * new})
    after = tiny(torch.float64, **{k: getattr(config, k) for k in ("in_channels", "mean", "std")})
    state, notes = adapt(dict(before.state_dict()), before.config, config)
    after.load_state_dict(state)
    images = torch.rand(3, new, 8, 8).double()
    converted = torch.einsum("bnhw,on->bohw", images, channel_mix(old, new))
    torch.testing.assert_close(after(images), before(converted))
    assert notes == [f"channels exchanged from {old} to {new}"]
    if new == 1 and old == 3:
        assert torch.equal(converted, images.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position_resize": "google", "registers": 1},
        {"positions": "learned_2d", "positions_at": "layers"},
        {"positions": "relative", "pool": "avg"},
        {"positions": "relative_bias", "pool": "avg", "key_bias": False},
        {"positions": "relative_bias", "positions_at": "layers_shared"},
        {"positions": "rope"},
        {"positions": "none"},
        {"prefix_positions": False},
    ],
)
def test_adapted_weights_are_what_encode_computes(options: dict[str, Any]) -> None:
    """Built for another size with adapted weights, the model says what the old one says when it interpolates."""
    before = tiny(torch.float64, **options)
    config = build_config({**before.config.model_dump(), "image_size": (12, 6)})
    state, notes = adapt(dict(before.state_dict()), before.config, config)
    after = tiny(torch.float64, **options, image_size=(12, 6))
    after.load_state_dict(state)
    images = torch.rand(2, 3, 12, 6)
    torch.testing.assert_close(after.encode(images).patches_BND, before.encode(images).patches_BND)
    assert len(notes) == (options.get("positions") != "none")
    assert "4 x 4 to 6 x 3" in "".join(notes) or not notes


def test_nothing_to_change_changes_nothing() -> None:
    model = tiny()
    state, notes = adapt(dict(model.state_dict()), model.config, model.config)
    assert notes == []
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_model_with_larger_patches_says_the_same_of_enlarged_patches() -> None:
    before = tiny(torch.float64)
    config = build_config({**before.config.model_dump(), "patch_size": 4, "image_size": (16, 16)})
    state, notes = adapt(dict(before.state_dict()), before.config, config)
    after = tiny(torch.float64, patch_size=4, image_size=16)
    after.load_state_dict(state)
    assert notes == ["patches resampled from 2 to 4 pixels a side"]
    images = torch.rand(3, 3, 8, 8).double()
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2)  # [3, 3, 4, 4, 2, 2]
    larger = F.interpolate(patches.reshape(-1, 1, 2, 2), size=(4, 4), mode="bilinear", antialias=True)
    enlarged = larger.reshape(3, 3, 4, 4, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(3, 3, 16, 16)
    torch.testing.assert_close(after(enlarged), before(images))


def test_convolutional_stems_keep_their_channels() -> None:
    config = build_config({**tiny().config.model_dump(), "stem_blocks": [], "patch_size": 4, "image_size": 8})
    gray = build_config({**config.model_dump(), "in_channels": 1, "mean": (), "std": ()})
    with pytest.raises(UserError, match="keeps its channels"):
        adapt({}, config, gray)
    with pytest.raises(UserError, match="keeps its patches"):
        adapt({}, config, build_config({**config.model_dump(), "patch_size": 8}))


def test_heads_are_left_behind() -> None:
    state = without_head(dict(tiny(head="mlp").state_dict()))
    assert "norm.weight" in state
    assert not [name for name in state if "head" in name or "logits" in name]


def test_fixed_positions_become_the_same_learned_ones() -> None:
    """On their own grid, and on another one where the fixed ones lie between."""
    fixed = tiny(torch.float64, positions="sincos", num_classes=0)
    for size in ((8, 8), (8, 12)):
        expected = {**fixed.config.model_dump(), "positions": "learned", "image_size": size}
        config = build_config(expected)
        state, notes = adapt(dict(fixed.state_dict()), fixed.config, config)
        learned = tiny(torch.float64, positions="learned", num_classes=0, image_size=size)
        learned.load_state_dict(state)
        images = torch.rand(2, config.in_channels, *size).double()
        ours, theirs = learned.encode(images), fixed.encode(images)
        torch.testing.assert_close(ours.patches_BND, theirs.patches_BND, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.cls_BD, theirs.cls_BD, rtol=0, atol=1e-9)
        assert notes == ["learned positions that start from the fixed sines and cosines"]


@pytest.mark.parametrize(("old", "new"), [("cls", "avg"), ("avg", "cls")])
def test_a_norm_that_moves_starts_anew(old: str, new: str) -> None:
    before, after = tiny(torch.float64, pool=old), tiny(torch.float64, pool=new)
    for parameter in before.parameters():
        torch.nn.init.normal_(parameter)
    state, notes = adapt(dict(before.state_dict()), before.config, after.config)
    after.load_state_dict(state)
    name = "fc_norm" if new == "avg" else "norm"
    assert torch.equal(after.get_parameter(f"{name}.weight"), torch.ones(after.config.width).double())
    assert not after.get_parameter(f"{name}.bias").any()
    assert len(notes) == 1
    assert notes[0].startswith(f"{name} is initialized")
