"""Multiply-accumulates by part add up to those that torch's own counter finds, and to the published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitral.models.create import build_model
from vitral.models.presets import list_models, resolve
from vitral.models.summary import count_macs


def counted(name: str, **options: Any) -> int:
    """Operations of one forward pass of one image; fused attention is missed by the counter on a CPU, not on meta."""
    config = resolve(name, **options)
    with torch.device("meta"):
        model = build_model(config).eval().requires_grad_(False)
        images_BCHW = torch.empty(1, config.in_channels, *config.image_size)
    counter = FlopCounterMode(display=False)
    with counter:
        model(images_BCHW)
    return counter.get_total_flops()


PATTERNS = (
    "*_32",
    "vit_base_patch*_224",
    "vit_huge*",
    "*_r26_*",
    "*_r_*",
    "*distilled*384",
    "*reg4*",
    "*plus*",
    "*x3_bit",
)


@pytest.mark.parametrize("name", [name for pattern in PATTERNS for name in list_models(pattern)])
def test_presets(name: str) -> None:
    assert 2 * sum(count_macs(resolve(name)).values()) == counted(name)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"pool": "avg"},
    {"pool": "map"},
    {"pool": "cls_avg"},
    {"pool": "avg", "class_token": False, "registers": 3},
    {"registers": 2, "image_size": (6, 10)},
    {"mlp": "swiglu", "mlp_dim": 100, "layer_scale": 0.1, "qk_norm": True},
    {"distill_token": True, "num_classes": 7},
    {"head": "mlp", "num_classes": 3, "in_channels": 1},
    {"num_classes": 0, "depth": 1},
    {"positions": "relative", "registers": 1},
    {"positions": "relative", "pool": "avg", "image_size": (4, 6)},
    {"positions": "relative_bias", "key_bias": False, "pool": "avg", "image_size": (4, 6)},
    {"positions": "rope"},
    {"positions": "learned_2d", "positions_at": "layers"},
    {"stem_blocks": [1, 2], "patch_size": 16, "image_size": (32, 48)},
    {"stem_blocks": [], "patch_size": 4},
)


# As their papers give them: table 1 of arXiv 2010.11929's code base for B/16 is 17.6; DeiT (2012.12877), table 5.
@pytest.mark.parametrize(
    ("name", "billions"),
    [("vit_tiny_patch16_224", 1.3), ("vit_small_patch16_224", 4.6), ("vit_base_patch16_224", 17.6)],
)
def test_with_all_tokens_the_work_is_the_published_one(name: str, billions: float) -> None:
    assert sum(count_macs(resolve(name), whole=True).values()) / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"registers": 2}, {"positions": "relative"}, {"mlp": "swiglu"}], ids=str)
def test_all_tokens_are_what_a_model_that_averages_them_computes(options: dict[str, Any]) -> None:
    whole = count_macs(resolve("vit_micro_patch2_8", **options), whole=True)
    assert whole == count_macs(resolve("vit_micro_patch2_8", pool="avg", **options))
    assert 2 * sum(whole.values()) == counted("vit_micro_patch2_8", pool="avg", **options)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant(options: dict[str, Any]) -> None:
    assert 2 * sum(count_macs(resolve("vit_micro_patch2_8", **options)).values()) == counted(
        "vit_micro_patch2_8", **options
    )


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("shortcut", ["zeros", "projection"])
def test_every_resnet(block: str, stem: str, shortcut: str) -> None:
    """Maps of odd sides, which halve upwards."""
    options = {"block": block, "stem": stem, "shortcut": shortcut, "image_size": (37, 42), "blocks": (2, 1, 2)}
    assert 2 * sum(count_macs(resolve("resnet20_cifar", **options)).values()) == counted("resnet20_cifar", **options)


def test_published_numbers() -> None:
    """4.6 and 17.6 billion for S/16 and B/16 (DeiT-S: arXiv 2012.12877, table 5); the last block's patches are left out
    here, as nothing reads them."""
    for name, billions in (("vit_small_patch16_224", 4.61), ("vit_base_patch16_224", 17.58)):
        assert sum(count_macs(resolve(name, pool="avg")).values()) == pytest.approx(billions * 1e9, rel=0.01)
        assert sum(count_macs(resolve(name)).values()) < billions * 1e9
