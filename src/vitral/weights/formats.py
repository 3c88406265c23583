"""The known checkpoint layouts: how each is recognized, its key rules, and the facts that its tensors do not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vitral.weights import google_npz, hf, imagegpt, ssl_checkpoints, timm
from vitral.weights.keymap import Rule, Template

Tensors = Mapping[str, Tensor]


class Format(NamedTuple):
    """One layout. marks: templates of names, each of which has a tensor. facts: fields of the architecture."""

    name: str
    what: str
    marks: tuple[str, ...]
    rules: Callable[[Tensors], Sequence[Rule]]
    facts: Mapping[str, Any]
    looks: Mapping[str, Any]

    def fits(self, tensors: Tensors) -> bool:
        """Whether these are the names of this layout."""
        return all(any(t.match(name) is not None for name in tensors) for t in map(Template, self.marks))


_HALF = {"mean": (0.5,), "std": (0.5,)}
_IMAGENET = {
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "resize_mode": "crop", "interpolation": "bicubic"
}  # fmt: skip
_GOOGLE_LOOKS = {**_HALF, "resize_mode": "squash", "interpolation": "bilinear", "crop_pct": 1.0}
_GOOGLE = {"gelu": "tanh", "norm_eps": 1e-6, "position_resize": "google", "stem_epsilons": "google"}

# The first that fits is it: the more special ones stand above.
FORMATS: tuple[Format, ...] = (
    Format(
        "google", "Google's vision_transformer (.npz; AugReg, hybrids)",
        ("Transformer/posembed_input/pos_embedding", "embedding/kernel"),
        google_npz.rules, _GOOGLE, _GOOGLE_LOOKS,
    ),
    Format(
        "big_vision", "Google's big_vision (.npz)",
        ("Transformer/{x:encoderblock.*}/LayerNorm_1/scale", "embedding/kernel"),
        google_npz.big_vision_rules, _GOOGLE, _GOOGLE_LOOKS,
    ),
    Format(
        "bit", "Google's BiT ResNets (.npz)", ("resnet/root_block/standardized_conv2d/kernel",),
        google_npz.bit_rules, {}, _GOOGLE_LOOKS,
    ),
    Format(
        "hf_dinov3", "transformers DINOv3ViT", ("{x:(?:model\\.)?}layer.{i}.attention.q_proj.weight",),
        hf.dinov3_rules, {"positions": "rope", "norm_eps": 1e-5}, {**_IMAGENET, "crop_pct": 1.0},
    ),
    Format(
        "hf_dinov2", "transformers Dinov2, Dinov2WithRegisters", ("encoder.layer.{i}.layer_scale1.lambda1",),
        hf.dinov2_rules, {"position_resize": "bicubic", "norm_eps": 1e-6}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    Format(
        "hf_deit", "transformers DeiT", ("embeddings.distillation_token", "embeddings.position_embeddings"),
        hf.deit_rules, {"position_resize": "bicubic", "norm_eps": 1e-12}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    Format(
        "hf_beit", "transformers Beit, Data2VecVision",
        ("{x:encoder\\.layer|layers}.{i}.layernorm_before.{end}", "{x:.*(?:lambda_1|relative_position_bias_table)}"),
        hf.beit_rules, {"norm_eps": 1e-12},
        {**_HALF, "resize_mode": "squash", "interpolation": "bicubic", "crop_pct": 1.0},
    ),
    Format(
        "hf_mae", "transformers ViTMAE", ("embeddings.position_embeddings", "decoder.decoder_embed.weight"),
        hf.vit_rules, {"position_resize": "bicubic", "norm_eps": 1e-12}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    *(
        Format(
            "hf_vit", f"transformers ViT ({where})", (f"{layer}.layernorm_before.{{end}}",),
            hf.vit_rules, {"position_resize": "bicubic", "norm_eps": 1e-12},
            {**_HALF, "resize_mode": "squash", "interpolation": "bilinear", "crop_pct": 1.0},
        )
        for where, layer in (("as saved", "encoder.layer.{i}"), ("in memory", "layers.{i}"))
    ),
    Format(
        "hf_imagegpt", "transformers ImageGPT", ("transformer.h.{i}.attn.c_attn.weight", "lm_head.weight"),
        imagegpt.rules, {}, {**_HALF, "resize_mode": "squash", "interpolation": "bilinear", "crop_pct": 1.0},
    ),
    Format(
        "mae", "MAE's repository", ("decoder_embed.weight", "blocks.{i}.attn.qkv.weight"),
        ssl_checkpoints.mae_rules, {}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    Format(
        "dinov3", "DINOv3's repository", ("storage_tokens", "blocks.{i}.attn.qkv.weight"),
        ssl_checkpoints.dinov3_rules, {"positions": "rope", "norm_eps": 1e-5}, {**_IMAGENET, "crop_pct": 1.0},
    ),
    Format(
        "dinov2", "DINOv2's repository", ("mask_token", "{x:blocks.*}.{i}.ls1.gamma"),
        ssl_checkpoints.dinov2_rules, {"position_resize": "bicubic"}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    Format(
        "ibot", "iBOT's repository", ("masked_embed", "blocks.{i}.attn.qkv.weight"),
        ssl_checkpoints.dino_rules, {}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    Format(
        "dino", "DINO's repository", ("head.last_layer.{rest}", "blocks.{i}.attn.qkv.weight"),
        ssl_checkpoints.dino_rules, {}, {**_IMAGENET, "crop_pct": 0.875},
    ),
    Format(
        "timm_dinov3", "timm DINOv3 (Eva)", ("blocks.{i}.gamma_1", "reg_token"),
        timm.eva_rules, {"positions": "rope", "norm_eps": 1e-5}, {**_IMAGENET, "crop_pct": 1.0},
    ),
    Format(
        "beit", "timm Beit; repository of BEiT and BEiT v2",
        ("{x:.*}relative_position_bias_table", "blocks.{i}.attn.q_bias"),
        timm.beit_rules, {}, {**_HALF, "resize_mode": "crop", "interpolation": "bicubic", "crop_pct": 0.9},
    ),
    Format(
        "timm", "timm ViT, DeiT, hybrids; DeiT, DINO and MAE encoders", ("blocks.{i}.attn.qkv.weight",),
        timm.vit_rules, {}, {**_IMAGENET, "crop_pct": 0.9},
    ),
    Format(
        "timm_resnetv2", "timm BiT ResNets", ("stages.{i}.blocks.{j}.conv1.weight", "stem.conv.weight"),
        timm.resnet_rules, {}, {**_HALF, "resize_mode": "crop", "interpolation": "bilinear", "crop_pct": 0.875},
    ),
)  # fmt: skip


def find_format(tensors: Tensors) -> Format | None:
    """The layout of these names, or None."""
    return next((each for each in FORMATS if each.fits(tensors)), None)


def closest_format(tensors: Tensors) -> tuple[Format, int]:
    """The layout that knows most of these names, and how many it knows."""
    found = [(_known(each, tensors), each) for each in FORMATS]
    count, each = max(found, key=lambda pair: pair[0])
    return each, count


def _known(each: Format, tensors: Tensors) -> int:
    templates = [template for rule in each.rules({}) for template in rule.sources]
    return sum(any(template.match(name) is not None for template in templates) for name in tensors)
