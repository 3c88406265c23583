"""Checkpoints of the repositories of MAE, DINO, iBOT, DINOv2 and DINOv3: timm's names, and what is theirs alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitral.weights.keymap import Rule, rule
from vitral.weights.timm import vit_rules

Tensors = Mapping[str, Tensor]


def mae_rules(tensors: Tensors) -> list[Rule]:
    """Encoder, without the decoder. Its fixed positions are stored like learned ones."""
    return [rule("decoder_{rest}", None), rule("mask_token", None), *vit_rules(tensors)]


def mae_decoder_rules() -> list[Rule]:
    """What `mae_rules` leaves out, by the names of `objectives.mae` without "decoder_" in front."""
    return [
        rule("decoder_blocks.{i}.{rest}", "blocks.{i}.{rest}"),
        rule("decoder_{part:embed|norm|pred}.{end}", "{part}.{end}"),
        rule("decoder_pos_embed", "pos_embed"),
        rule("mask_token", "mask_token"),
    ]


def beit_head_rules() -> list[Rule]:
    """What `timm.beit_rules` leaves out of a pre-training model, by the names of `objectives.beit`."""
    return [rule("mask_token", "mask_token", "vector"), rule("lm_head.{end}", "predict.{end}")]


def dino_rules(tensors: Tensors) -> list[Rule]:
    """Encoder, without the projection heads of DINO and iBOT and without iBOT's mask token."""
    heads = r"{x:head2?}.{part:(?:mlp|last_layer|last_norm|prototypes).*}"
    return [rule(heads, None), rule("masked_embed", None), *vit_rules(tensors)]


def dinov2_rules(tensors: Tensors) -> list[Rule]:
    """Encoder; blocks may be in chunks (`blocks.0.3.norm1`), numbered through."""
    block, rest = "blocks.{i}", "{part:(?:norm[12]|attn|mlp.fc[12]|ls[12])[.].*}"
    chunk = "blocks.{j}.{i}"
    return [
        *(
            made
            for here in (chunk, block)
            for made in (
                rule(f"{here}.mlp.w12.{{end}}", f"{block}.mlp.fc1.{{end}}"),
                rule(f"{here}.mlp.w3.{{end}}", f"{block}.mlp.fc2.{{end}}"),
            )
        ),
        rule(f"{chunk}.{rest}", f"{block}.{{part}}"),
        rule("register_tokens", "reg_token"),
        rule("mask_token", None),
        *dino_rules(tensors),
    ]


def dinov3_rules(_: Tensors) -> list[Rule]:
    """Encoder; biases of keys are masked to zero there, and positions are constants."""
    block = "blocks.{i}"
    return [
        rule("storage_tokens", "reg_token"),
        rule([f"{block}.attn.qkv.bias", f"{block}.attn.qkv.bias_mask"], f"{block}.attn.qkv.bias", "multiply"),
        rule([f"{block}.mlp.w1.{{end}}", f"{block}.mlp.w2.{{end}}"], f"{block}.mlp.fc1.{{end}}", "merge"),
        rule(f"{block}.mlp.w3.{{end}}", f"{block}.mlp.fc2.{{end}}"),
        rule("rope_embed.{rest}", None),
        rule("mask_token", None),
        *dino_rules({}),
    ]
