"""The summary of a model: shapes of what its modules really put out, columns that add up to the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.interpret.variants import VARIANTS, variant
from vitral.compression.evit import EViT
from vitral.compression.tome import ToMe
from vitral.models.create import build_model, create_model
from vitral.models.model import ImageModel
from vitral.models.presets import resolve
from vitral.models.summary import count_macs, count_parameters, kept_activations, summarize


def seen(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of modules' outputs for one image, without the batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda _m, _i, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:])))
    with torch.no_grad():
        model(images)
    return shapes


@pytest.mark.parametrize("name", [*VARIANTS, "resnet20_cifar"])
def test_shapes_are_those_of_a_real_run(name: str) -> None:
    model: ImageModel = create_model(name).eval() if name == "resnet20_cifar" else variant(name)
    c = model.config
    images = torch.rand(1, c.in_channels, *c.image_size)
    stages = {row.name: row.shape for row in summarize(c)}
    assert stages["image"] == (*c.image_size, c.in_channels)
    for module, shape in seen(build_model(c).eval(), images).items():
        if not isinstance(model.get_submodule(module), nn.Identity):
            assert stages[module] == shape, module


@pytest.mark.parametrize("name", [name for name in VARIANTS if "relative" not in name])
def test_attention_s_rows_are_what_is_captured(name: str) -> None:
    model = variant(name)
    c = model.config
    images = torch.rand(1, c.in_channels, *c.image_size)
    stages = {row.name: row.shape for row in summarize(c)}
    out = model.encode(images, capture=["blocks.0.attn.q", "blocks.0.attn.map"])
    for part in ("blocks.0.attn.q", "blocks.0.attn.map"):
        assert stages[part] == tuple(out.captured[part].shape[1:])


def test_the_paper_s_numbers() -> None:
    shapes = [row.shape for row in summarize(resolve("vit_base_patch16_224"))]
    for shape in ((224, 224, 3), (196, 768), (197, 768), (12, 197, 64), (12, 197, 197), (197, 3072), (1000,)):
        assert shape in shapes


@pytest.mark.parametrize("name", ["vit_micro_patch2_8", "vit_tiny_r_s16_p8_224", "resnet20_cifar"])
def test_columns_add_up(name: str) -> None:
    config = resolve(name)
    rows = summarize(config)
    assert len({row.name for row in rows}) == len(rows)
    assert sum(row.parameters for row in rows) == count_parameters(config)
    assert sum(row.macs for row in rows) == sum(count_macs(config).values())
    assert sum(row.activations for row in rows) == kept_activations(config, 1).total()


@pytest.mark.parametrize("preset", ["vit_base_patch16_224", "vit_small_patch16_224", "vit_micro_patch2_8"])
def test_the_formula_is_the_count_of_a_block_on_all_tokens(preset: str) -> None:
    config: Any = resolve(preset, pool="avg", class_token=False)
    parts = count_macs(config)
    whole = sum(parts[name] for name in ("qkv", "scores", "values", "projection", "mlp"))
    assert config.block_formula[f"{config.depth} blocks"] == whole
    assert config.block_formula["a block"] * config.depth == whole


def test_what_finds_the_tokens_that_go_is_a_part_of_its_own() -> None:
    """ToMe compares half of the 64 patches' keys, mean over the heads, with the other half."""
    config = resolve("vit_tiny_patch4_32", depth=2, num_classes=0)
    merged, kept = (count_macs(config, reduce=each) for each in (ToMe([4, 0]), EViT(0.5, (0,))))
    assert merged["reduction"] == 32 * 32 * 192 // 3, "features of a head"
    assert kept["mlp"] < merged["mlp"] < count_macs(config)["mlp"]
    assert "reduction" not in count_macs(config)
