"""timm's names, which are ours: what differs is DINOv3's, and registers that have positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitral.weights.keymap import Rule, rule

_SAME = (
    "cls_token", "dist_token", "pos_embed", "pos_embed_y", "pos_embed_x", "offset_embed", "patch_embed.{rest}",
    "blocks.{i}.{part:norm[12]|attn.qkv|attn.proj|attn.q_norm|attn.k_norm|mlp.fc[12]}.{end}", "blocks.{i}.ls{n}.gamma",
    "norm.{end}", "fc_norm.{end}", "pre_logits.fc.{end}", "head.{end}", "head_dist.{end}", "attn_pool.{rest}",
)  # fmt: skip

NO_BIAS = rule("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.bias", "zeros")


def vit_rules(tensors: Mapping[str, Tensor]) -> list[Rule]:
    """VisionTransformer and VisionTransformerDistilled.

    Registers can have positions there. They are constants like the registers themselves: the sum of both is ours.
    DeiT III's own files name the layer scale as Eva does.
    """
    positions, registers = tensors.get("pos_embed"), tensors.get("reg_token")
    if (
        positions is not None
        and registers is not None
        and (rest := _prefix_rows(positions, registers.shape[1], tensors))
    ):
        first, last = rest
        return [
            rule(["reg_token", f"pos_embed[{first}:{last}]"], "reg_token", "add"),
            rule([f"pos_embed[0:{first}]", f"pos_embed[{last}:]"], "pos_embed", "rows"),
            *vit_rules({}),
        ]
    return [
        rule("reg_token", "reg_token"),
        rule("blocks.{i}.gamma_{n:[12]}", "blocks.{i}.ls{n}.gamma"),
        *(rule(name, name) for name in _SAME),
        NO_BIAS,
    ]


def _prefix_rows(positions: Tensor, registers: int, tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The rows of the registers' positions, where the rest is a square of patches with them and none without."""
    first = ("cls_token" in tensors) + ("dist_token" in tensors)
    with_registers = positions.shape[1] - first - registers
    return (first, first + registers) if _square(with_registers) and not _square(with_registers + registers) else None


def _square(count: int) -> bool:
    return count > 0 and round(count**0.5) ** 2 == count


def eva_rules(_: Mapping[str, Tensor]) -> list[Rule]:
    """DINOv3 in timm's Eva: a gate of its own, and biases of query and value alone, or none."""
    block = "blocks.{i}"
    return [
        rule(f"{block}.attn.qkv.weight", f"{block}.attn.qkv.weight"),
        rule(
            [f"{block}.attn.q_bias", f"?{block}.attn.k_bias", f"{block}.attn.v_bias"], f"{block}.attn.qkv.bias", "merge"
        ),
        rule([f"{block}.mlp.fc1_g.{{end}}", f"{block}.mlp.fc1_x.{{end}}"], f"{block}.mlp.fc1.{{end}}", "merge"),
        rule(f"{block}.gamma_{{n}}", f"{block}.ls{{n}}.gamma"),
        rule("reg_token", "reg_token"),
        rule("rope.{rest}", None),
        *(rule(name, name) for name in _SAME),
        NO_BIAS,
    ]


def beit_rules(_: Mapping[str, Tensor]) -> list[Rule]:
    """timm's Beit and the repository of BEiT and BEiT v2: without biases of keys. Where a block has a bias table beside
    that of all, ours is the sum."""
    shared = "rel_pos_bias.relative_position_bias_table"
    own = "blocks.{i}.attn.relative_position_bias_table"
    return [
        rule([own, f"{shared}[0:]"], own, "add"),
        *(rule(name, name) for name in (own, shared, "blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias")),
        rule("blocks.{i}.gamma_{n}", "blocks.{i}.ls{n}.gamma"),
        *(rule(name, None) for name in ("{x:.*}relative_position_index", "mask_token", "lm_head.{end}", "cls_pt_{x}")),
        *(rule(name, name) for name in _SAME),
    ]


def resnet_rules(_: Mapping[str, Tensor]) -> list[Rule]:
    """ResNetV2."""
    return [
        *(rule(name, name) for name in ("stem.{rest}", "stages.{rest}", "norm.{end}", "head.fc.{end}")),
        rule("{x:.*}num_batches_tracked", "{x}num_batches_tracked"),
    ]
