"""Named Vision Transformers. Imports no torch."""

from __future__ import annotations

from typing import Any

# Base, Large, Huge: table 1 of arXiv 2010.11929. Tiny, Small: DeiT, 2012.12877. Giant, Gigantic: 2106.04560.
# Plus, 7B: 2508.10104.
SIZES: dict[str, dict[str, int]] = {
    "micro": {"width": 64, "depth": 4, "heads": 4, "mlp_dim": 256},
    "nano": {"width": 128, "depth": 6, "heads": 4, "mlp_dim": 512},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    "small": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "small_plus": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120},
    "huge_plus": {"width": 1280, "depth": 32, "heads": 20, "mlp_dim": 5120},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "mlp_dim": 6144},
    "gigantic": {"width": 1664, "depth": 48, "heads": 16, "mlp_dim": 8192},
    "7b": {"width": 4096, "depth": 40, "heads": 32, "mlp_dim": 8192},
}

# Size: (patch, image) in pixels. Names are timm's, `vit_base_patch16_224`; images below 224 are for small data sets.
PUBLISHED: dict[str, tuple[tuple[int, int], ...]] = {
    "micro": ((2, 8),),
    "nano": ((4, 32), (8, 64)),
    "tiny": ((4, 32), (8, 64), (16, 224), (16, 384)),
    "small": ((4, 32), (8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "base": ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "large": ((14, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    "huge": ((14, 224),),
    "giant": ((14, 224),),
    "gigantic": ((14, 224),),
}

# The hybrids of arXiv 2010.11929 and 2106.10270, each for 224 and 384 pixels: size of the transformer, bottlenecks of
# each stage, pixels a token.
HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "vit_tiny_r_s16_p8": ("tiny", (), 32),
    "vit_small_r26_s32": ("small", (2, 2, 2, 2), 32),
    "vit_base_r26_s32": ("base", (2, 2, 2, 2), 32),
    "vit_base_r50_s16": ("base", (3, 4, 9), 16),
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 32),
}

_DINOV2_GIANT: dict[str, Any] = {"heads": 24, "width": 1536, "mlp_dim": 4096, "mlp": "swiglu"}
_DINOV3: dict[str, Any] = {"registers": 4, "layer_scale": 1e-5, "positions": "rope", "norm_eps": 1e-5}


_BEIT: dict[str, Any] = {
    "positions": "relative_bias", "key_bias": False, "weight_init": "beit", "pool": "avg",
}  # fmt: skip


def _preset(size: str, image: int, patch: int, **options: Any) -> dict[str, Any]:
    return {**SIZES[size], "image_size": image, "patch_size": patch, **options}


VITS: dict[str, dict[str, Any]] = {
    **{
        f"vit_{size}_patch{patch}_{image}": _preset(size, image, patch)
        for size, pairs in PUBLISHED.items()
        for patch, image in pairs
    },
    **{
        f"{name}_{image}": _preset(size, image, patch, stem_blocks=blocks)
        for name, (size, blocks, patch) in HYBRIDS.items()
        for image in (224, 384)
    },
    # DeiT with its distillation token (arXiv 2012.12877).
    **{
        f"deit_{size}_distilled_patch16_{image}": _preset(size, image, 16, distill_token=True)
        for size, image in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
    },
    # BEiT (arXiv 2106.08254) and BEiT v2 (2208.06366), as fine-tuned: a bias table for each block.
    **{
        f"{name}_patch16_{image}": _preset(size, image, 16, layer_scale=scale, **_BEIT)
        for name, size, scale, images in (
            ("beit_base", "base", 0.1, (224, 384)), ("beit_large", "large", 1e-5, (224, 384, 512)),
            ("beitv2_base", "base", 0.1, (224,)), ("beitv2_large", "large", 1e-5, (224,)),
        )
        for image in images
    },
    # DINOv2 (arXiv 2304.07193, 2309.16588).
    **{
        f"vit_{size}_patch14_{'reg4_' * bool(registers)}dinov2": _preset(
            size, 518, 14, registers=registers, layer_scale=1e-5, **(_DINOV2_GIANT if size == "giant" else {})
        )
        for registers in (0, 4)
        for size in ("small", "base", "large", "giant")
    },
    # DINOv3 (arXiv 2508.10104).
    **{
        f"vit_{size}_patch16_dinov3": _preset(size, 256, 16, mlp=mlp, **_DINOV3)
        for size, mlp in (
            ("small", "gelu"), ("small_plus", "swiglu"), ("base", "gelu"), ("large", "gelu"), ("huge_plus", "swiglu"),
            ("7b", "swiglu"),
        )
    },
}  # fmt: skip
