"""The way of an image: every stage's shape is that of what the modules really put out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.interpret.variants import VARIANTS, variant
from vitral.models.config import ViTConfig
from vitral.models.create import create_model
from vitral.models.flops import count_macs
from vitral.models.presets import resolve
from vitral.models.walk import formula, walk


def seen(model: nn.Module, images: Tensor, names: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of modules' outputs for one image, without the batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(
                lambda _m, _i, out, name=name: shapes.__setitem__(names[name], tuple(out.shape[1:]))
            )
    with torch.no_grad():
        model(images)
    return shapes


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "hybrid"])
def test_stages_of_vision_transformers(name: str) -> None:
    model = variant(name)
    c = model.config
    images = torch.rand(1, c.in_channels, *c.image_size)
    stages = {stage.name: stage.shape for stage in walk(c)}
    out = model.encode(images, capture=["blocks.0.attn.q", "blocks.0.attn.map"])
    found = seen(
        model, images,
        {"patch_embed": "patch embedding", "blocks.0.attn.qkv": "qkv", "blocks.0.attn.proj": "block 0: projection",
         "blocks.0.mlp.fc2": "fc2", "head": "head"},
    )  # fmt: skip
    _, heads, tokens, width = out.captured["blocks.0.attn.q"].shape
    assert stages["image"] == (*c.image_size, c.in_channels)
    assert stages["patches"] == (c.grid[0] * c.grid[1], c.patch_size**2 * c.in_channels)
    assert stages["block 0: per head, each"] == (tokens, width)
    assert stages["block 0: attention, a head"] == tuple(out.captured["blocks.0.attn.map"].shape[2:])
    assert stages["block 0: queries, keys, values"] == (3, tokens, heads * width)
    assert found["qkv"] == (tokens, 3 * heads * width)
    assert stages["block 0: projection"] == found["block 0: projection"]
    assert stages["block 0: hidden layer of the MLP"][0] == found["fc2"][0]
    assert stages["block 0: hidden layer of the MLP"][1] == model.get_parameter("blocks.0.mlp.fc2.weight").shape[1]
    assert stages[f"after {c.depth} blocks"][0] == c.prefix_tokens + out.patches_BND.shape[1]
    assert stages[f"pooled ({c.pool})"] == tuple(model.pool(out).shape[1:])
    assert stages["head"] == (c.num_classes,)


def test_the_paper_s_numbers() -> None:
    shapes = [stage.shape for stage in walk(resolve("vit_base_patch16_224"))]
    for shape in ((224, 224, 3), (196, 768), (197, 768), (197, 64), (197, 197), (197, 3072), (768,), (1000,)):
        assert shape in shapes


@pytest.mark.parametrize("preset", ["resnet20_cifar", "resnetv2_50x1_bit"])
def test_stages_of_residual_networks(preset: str) -> None:
    options: dict[str, Any] = {"image_size": (40, 32), "num_classes": 7}
    model = create_model(preset, **options).eval()
    maps = seen(model, torch.rand(1, 3, 40, 32), {"stem": "stem", **{f"stages.{i}": f"stage {i}" for i in range(4)}})
    for stage in walk(model.config):
        name = stage.name.partition(",")[0]
        if name in maps:
            assert stage.shape == (*maps[name][1:], maps[name][0]), stage
    assert walk(model.config)[-1].shape == (7,)


@pytest.mark.parametrize("preset", ["vit_base_patch16_224", "vit_small_patch16_224", "vit_micro_patch2_8"])
def test_the_formula_is_the_count_of_a_block_on_all_tokens(preset: str) -> None:
    config = resolve(preset, pool="avg", class_token=False)
    assert isinstance(config, ViTConfig)
    parts = count_macs(config)
    whole = sum(parts[name] for name in ("qkv", "scores", "values", "projection", "mlp"))
    assert formula(config)[f"{config.depth} blocks"] == whole
    assert formula(config)["a block"] * config.depth == whole
