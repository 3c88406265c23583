"""Named models of sequences. Imports no torch. The data replace the sizes of vocabularies.

Base and big: table 3 of arXiv 1706.03762, with the 37,000 shared tokens of its section 5.1, and without biases of the
output. Their 63.1 and 214.2 million parameters are printed there as 65 and 213, which fits no one vocabulary (about
40,700 and 35,800 tokens). The small ones are for a laptop.
"""

from __future__ import annotations

from typing import Any

from vitral.models.vit_presets import SIZES, VITS


def _transformer(depth: int, width: int, heads: int, dropout: float, **options: Any) -> dict[str, Any]:
    stacks = {"encoder_depth": depth, "decoder_depth": depth, "width": width, "heads": heads, "mlp_dim": 4 * width}
    return {**stacks, "dropout": dropout, **options}


_SMALL = {"vocabulary": 64, "source_vocabulary": 64}
_PAPER = {"vocabulary": 37_000, "source_vocabulary": 37_000, "share_embeddings": True, "norm_first": False}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "transformer_tiny": _transformer(2, 64, 4, 0.1, **_SMALL),
    "transformer_small": _transformer(3, 128, 4, 0.1, **_SMALL),
    "transformer_base": _transformer(6, 512, 8, 0.1, **_PAPER),
    "transformer_big": _transformer(6, 1024, 16, 0.3, **_PAPER),
}

LSTMS: dict[str, dict[str, Any]] = {
    "lstm_tiny": {"width": 64, "dropout": 0.1, **_SMALL},
    "lstm_small": {"width": 128, "dropout": 0.1, **_SMALL},
    "lstm_base": {"width": 512, "layers": 2, "dropout": 0.3, **_SMALL},
}

_MICRO = {**SIZES["micro"], "depth": 3, "patch_size": 2, "image_size": (8, 40), "in_channels": 1, "positions": "sincos"}
_MICRO4 = {**_MICRO, "patch_size": 4, "image_size": (12, 60)}
_LINES = {**SIZES["nano"], "patch_size": 8, "image_size": (32, 256), "in_channels": 1, "positions": "sincos"}
# TrOCR-base (arXiv 2109.10282): ViT-B/16 at 384 pixels and the decoder of RoBERTa-large, of which all 12 layers.
_TROCR = {
    "encoder": VITS["vit_base_patch16_384"], "vocabulary": 50_265, "width": 1024, "decoder_depth": 12, "heads": 16,
    "mlp_dim": 4096, "norm_first": False, "activation": "gelu", "positions": "learned", "scale_embeddings": False,
    "embedding_norm": True, "project_memory": False, "pad_id": 1, "dropout": 0.1,
}  # fmt: skip
IMAGE_TO_TEXT: dict[str, dict[str, Any]] = {
    "vit_text_micro_patch2_8x40": {
        "encoder": _MICRO, "vocabulary": 64, "width": 64, "mlp_dim": 256, "max_length": 64, "dropout": 0.1,
    },
    "vit_text_micro_patch4_12x60": {
        "encoder": _MICRO4, "vocabulary": 64, "width": 64, "mlp_dim": 256, "max_length": 64, "dropout": 0.1,
    },
    "vit_ctc_micro_patch2_8x40": {"encoder": _MICRO, "vocabulary": 64, "decoder": "ctc"},
    "vit_ctc_micro_patch4_12x60": {"encoder": _MICRO4, "vocabulary": 64, "decoder": "ctc"},
    "vit_text_nano_patch8_32x256": {
        "encoder": _LINES, "vocabulary": 128, "width": 128, "mlp_dim": 512, "max_length": 128, "dropout": 0.1,
    },
    "vit_ctc_nano_patch8_32x256": {"encoder": _LINES, "vocabulary": 128, "decoder": "ctc"},
    "trocr_base_patch16_384": _TROCR,
}  # fmt: skip
