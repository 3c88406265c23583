"""Exact parameter counts of every preset, and what `resolve` refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from tools.model_table import TABLE, table

from vitral.errors import UserError
from vitral.models.config import ModelConfig, ViTConfig
from vitral.models.create import build_model
from vitral.models.detector_config import DETECTORS
from vitral.models.igpt_config import IGPTS
from vitral.models.image_tokenizer_config import TOKENIZERS
from vitral.models.presets import PRESETS, list_models, preset_table, resolve
from vitral.models.registry import families_of
from vitral.models.resnet_presets import RESNETS
from vitral.models.summary import count_parameters

WITH_HEAD = {
    "vit_micro_patch2_8": 202_698,
    "vit_nano_patch4_32": 1_205_898,
    "vit_nano_patch8_64": 1_224_330,
    "vit_tiny_patch4_32": 5_362_762,
    "vit_tiny_patch8_64": 5_390_410,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "beit_base_patch16_224": 86_530_984,
    "beit_base_patch16_384": 86_744_104,
    "beit_large_patch16_224": 304_430_568,
    "beit_large_patch16_384": 304_998_888,
    "beit_large_patch16_512": 305_674_728,
    "beitv2_base_patch16_224": 86_530_984,
    "beitv2_large_patch16_224": 304_430_568,
    "vit_small_patch4_32": 21_342_346,
    "vit_small_patch8_224": 22_055_272,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_small_patch32_224": 22_878_952,
    "vit_small_patch32_384": 22_915_432,
    "vit_base_patch8_224": 86_576_872,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch32_384": 88_297_192,
    "vit_large_patch14_224": 304_203_752,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch32_224": 306_535_400,
    "vit_large_patch32_384": 306_632_680,
    "vit_huge_patch14_224": 632_045_800,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "vit_tiny_r_s16_p8_224": 6_337_704,
    "vit_tiny_r_s16_p8_384": 6_355_944,
    "vit_small_r26_s32_224": 36_431_912,
    "vit_small_r26_s32_384": 36_468_392,
    "vit_base_r26_s32_224": 101_383_976,
    "vit_base_r26_s32_384": 101_456_936,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_base_r50_s16_384": 98_950_952,
    "vit_large_r50_s32_224": 328_994_856,
    "vit_large_r50_s32_384": 329_092_136,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
    "vit_small_patch14_dinov2": 22_441_192,
    "vit_base_patch14_dinov2": 87_348_712,
    "vit_large_patch14_dinov2": 305_392_616,
    "vit_giant_patch14_dinov2": 1_138_016_232,
    "vit_small_patch14_reg4_dinov2": 22_442_728,
    "vit_base_patch14_reg4_dinov2": 87_351_784,
    "vit_large_patch14_reg4_dinov2": 305_396_712,
    "vit_giant_patch14_reg4_dinov2": 1_138_022_376,
    "vit_small_patch16_dinov3": 21_985_768,
    "vit_small_plus_patch16_dinov3": 29_082_088,
    "vit_base_patch16_dinov3": 86_437_864,
    "vit_large_patch16_dinov3": 304_178_152,
    "vit_huge_plus_patch16_dinov3": 841_913_320,
    "vit_7b_patch16_dinov3": 6_720_619_496,
}

# Without a head, as keras-hub's vit_presets.py states them for the paper's five models.
PUBLISHED_BACKBONES = {
    "vit_base_patch16_224": 85_798_656,
    "vit_base_patch16_384": 86_090_496,
    "vit_base_patch32_224": 87_455_232,
    "vit_base_patch32_384": 87_528_192,
    "vit_large_patch16_224": 303_301_632,
    "vit_large_patch16_384": 303_690_752,
    "vit_large_patch32_224": 305_510_400,
    "vit_large_patch32_384": 305_607_680,
    "vit_huge_patch14_224": 630_764_800,
}

# timm's counts of vit_giant_patch14_reg4_dinov2 and DINOv3 differ by what it leaves out: the class token's position
# (it is added to the token), and the biases of query, key and value.
TIMM_HAS_LESS = {
    "vit_giant_patch14_reg4_dinov2": (1_138_020_840, 1536),
    "vit_small_patch16_dinov3": (21_971_944, 12 * 3 * 384),
    "vit_small_plus_patch16_dinov3": (29_068_264, 12 * 3 * 384),
    "vit_huge_plus_patch16_dinov3": (841_790_440, 32 * 3 * 1280),
    "vit_7b_patch16_dinov3": (6_720_127_976, 40 * 3 * 4096),
}

VARIANTS: tuple[dict[str, Any], ...] = (
    {"num_classes": 0},
    {"head": "mlp", "num_classes": 7},
    {"pool": "avg", "class_token": False, "in_channels": 1},
    {"pool": "avg", "fc_norm": False, "image_size": (12, 20), "patch_size": 4},
    {"fc_norm": True, "width": 12, "heads": 3, "depth": 1, "mlp_dim": 5, "in_channels": 4},
    {"pool": "cls_avg"},
    {"pool": "map", "class_token": False},
    {"distill_token": True, "registers": 3, "num_classes": 7},
    {"mlp": "swiglu", "qk_norm": True, "layer_scale": 0.1},
    *(
        {"positions": positions, "positions_at": at, "image_size": (8, 12), "registers": 1}
        for positions in ("learned", "learned_2d")
        for at in ("stem", "layers", "layers_shared")
    ),
    {"positions": "relative"},
    {"positions": "relative", "positions_at": "layers_shared"},
    {"positions": "relative_bias", "key_bias": False},
    {"positions": "relative_bias", "positions_at": "layers_shared", "class_token": False, "pool": "avg"},
    {"positions": "sincos"},
    {"positions": "rope"},
    {"positions": "none"},
    {"prefix_positions": False},
    {"stem_blocks": [1, 2], "patch_size": 16, "image_size": 32, "in_channels": 1},
    {"stem_blocks": [], "patch_size": 4, "image_size": 16},
)


def built(name: str, **options: Any) -> int:
    """Parameters of the real module."""
    return sum(p.numel() for p in build_model(resolve(name, **options)).parameters())


def test_every_preset_has_a_row() -> None:
    images = {name for name in PRESETS if PRESETS[name]["family"] in families_of(ModelConfig)}
    assert (
        set(WITH_HEAD) | set(RESNETS) | set(IGPTS) | set(TOKENIZERS) | set(DETECTORS) == images
    )  # the others: test_resnet.py, test_igpt.py, test_detector.py


@pytest.mark.parametrize(("name", "count"), WITH_HEAD.items())
def test_exact_count(name: str, count: int) -> None:
    assert count_parameters(resolve(name)) == count
    assert preset_table()[name]["parameters"] == count


@pytest.mark.parametrize(("name", "count"), PUBLISHED_BACKBONES.items())
def test_published_backbones(name: str, count: int) -> None:
    assert count_parameters(resolve(name, num_classes=0)) == count


@pytest.mark.parametrize(("name", "count", "less"), [(name, *pair) for name, pair in TIMM_HAS_LESS.items()])
def test_counts_of_timm(name: str, count: int, less: int) -> None:
    assert count_parameters(resolve(name)) == count + less


@pytest.mark.parametrize("options", VARIANTS)
def test_the_count_is_that_of_the_module(options: dict[str, Any]) -> None:
    assert count_parameters(resolve("vit_micro_patch2_8", **options)) == built("vit_micro_patch2_8", **options)


def test_the_table_of_presets_is_what_its_tool_measures() -> None:
    """`vitral models` reads it, without torch."""
    assert table() == TABLE.read_text(encoding="utf-8")


def test_options_reach_the_config() -> None:
    config = resolve("vit_nano_patch4_32", image_size=48, patch_size=8, in_channels=2, num_classes=3)
    assert config.image_size == (48, 48)
    assert config.grid == (6, 6)
    assert config.mean == config.std == (0.5, 0.5)
    assert resolve("vit_base_patch16_224").num_classes == 1000
    assert resolve("vit_nano_patch4_32").num_classes == 10
    assert ViTConfig.model_validate_json(config.model_dump_json()) == config


def test_norm_place_follows_pooling() -> None:
    def late(**options: Any) -> bool:
        config = resolve("vit_micro_patch2_8", **options)
        assert isinstance(config, ViTConfig)
        return config.norm_after_pool

    assert not late()
    assert late(pool="avg")
    assert not late(pool="avg", fc_norm=False)
    assert late(fc_norm=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": 9}, "9 x 9 is not a multiple of patch_size 2; nearest: 8 x 8"),
        ({"image_size": (8, 0)}, "8 x 0 is not a multiple"),
        ({"heads": 5}, "width 64 cannot be split evenly among 5 heads"),
        ({"mean": [0.5, 0.5]}, "mean has 2 values for 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, "positive in every channel"),
        ({"class_token": False}, "pool=cls needs class_token=true"),
        ({"head": "mlp", "num_classes": 0}, "head=mlp needs num_classes above 0"),
        ({"droput": 0.1}, "did you mean 'dropout'"),
        ({"pool": "average"}, "cls | avg | cls_avg | map"),
        ({"pool": "cls_avg", "class_token": False}, "pool=cls_avg needs class_token=true"),
        ({"distill_token": True, "pool": "avg"}, "distill_token=true needs pool=cls"),
        ({"distill_token": True, "head": "mlp"}, "head=mlp reads one vector of model width"),
        ({"pool": "cls_avg", "fc_norm": True}, "fc_norm=true reads one vector of model width"),
        ({"positions": "rope", "positions_at": "stem"}, "act inside the attention"),
        ({"positions": "sincos", "positions_at": "layers"}, "learn nothing"),
        ({"positions": "sincos", "width": 66, "heads": 3}, "cannot split width 66"),
        ({"positions": "rope", "width": 72}, "heads of 4, 8, 12 ... features, not 18"),
        ({"stem_blocks": [2, 2]}, "patch_size 2 is not a multiple of 8, the stride of this stem"),
        ({"family": "cnn"}, "unknown family"),
        ({"in_channels": 5}, "4 or less"),
        ({"depth": "4"}, "whole number"),
        ({"drop_path": 1.0}, "less than 1"),
        ({"num_classes": True}, "whole number"),
        ({"mean": [float("nan")] * 3}, "finite number"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match="vit_micro_patch2_8") as caught:
        resolve("vit_micro_patch2_8", **options)
    assert text in str(caught.value)


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model[\s\S]*'vit_base_patch16_224'"):
        resolve("vit_base_patch16-224")


def test_list_models() -> None:
    assert list_models() == list(PRESETS)
    assert list_models("*huge_patch*") == ["vit_huge_patch14_224"]
    assert list_models("resnet*") == list(RESNETS)
    assert list_models("swin*") == []


def test_presets_do_not_import_torch() -> None:
    code = "import sys, vitral.models.presets; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
