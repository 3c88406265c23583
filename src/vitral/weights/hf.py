"""The names of transformers: those of its files, and where they differ those of its modules in memory (version 5)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitral.models.position import Grid, resize_bias_table
from vitral.weights.keymap import Rule, rule

Tensors = Mapping[str, Tensor]


_POSITIONS = rule("embeddings.position_embeddings", "pos_embed")
_AROUND = (
    rule("embeddings.cls_token", "cls_token"),
    rule("embeddings.patch_embeddings.projection.{end}", "patch_embed.proj.{end}"),
    rule("embeddings.patch_embeddings.{end}", "patch_embed.proj.{end}"),
    rule("embeddings.register_tokens", "reg_token"),
    rule("layernorm.{end}", "norm.{end}"),
    rule("classifier.{end}", "head.{end}"),
    *(rule(name, None) for name in ("embeddings.mask_token", "pooler.dense.{end}", "decoder{sign:[._]}{rest}")),
)


def _attention(layer: str) -> list[Rule]:
    """As saved, then as in memory."""
    saved = [f"{layer}.attention.attention.{part}" for part in ("query", "key", "value")]
    ways = ((saved, "output.dense"), ([f"{layer}.attention.{part}_proj" for part in "qkv"], "o_proj"))
    return [
        made
        for parts, projection in ways
        for made in (
            rule([f"{part}.{{end}}" for part in parts], "blocks.{i}.attn.qkv.{end}", "merge"),
            rule(f"{layer}.attention.{projection}.{{end}}", "blocks.{i}.attn.proj.{end}"),
            _no_bias(*parts),
        )
    ]


def _no_bias(*parts: str) -> Rule:
    return rule([f"{part}.weight" for part in parts], "blocks.{i}.attn.qkv.bias", "zeros")


def _vit_layer(layer: str) -> list[Rule]:
    return [
        rule(f"{layer}.layernorm_before.{{end}}", "blocks.{i}.norm1.{end}"),
        rule(f"{layer}.layernorm_after.{{end}}", "blocks.{i}.norm2.{end}"),
        *_attention(layer),
        rule(f"{layer}.intermediate.dense.{{end}}", "blocks.{i}.mlp.fc1.{end}"),
        rule(f"{layer}.output.dense.{{end}}", "blocks.{i}.mlp.fc2.{end}"),
        rule(f"{layer}.mlp.fc{{n}}.{{end}}", "blocks.{i}.mlp.fc{n}.{end}"),
    ]


def vit_rules(_: Tensors) -> list[Rule]:
    """ViT and the encoder of ViTMAE."""
    return [*_vit_layer("encoder.layer.{i}"), *_vit_layer("layers.{i}"), _POSITIONS, *_AROUND]


def mae_decoder_rules() -> list[Rule]:
    """The decoder of ViTMAE, by the names of `objectives.mae` without "decoder_" in front. Version 5 saves its blocks
    under another name than it keeps them, and than earlier versions saved them."""
    return [
        *_vit_layer("decoder.decoder_layers.{i}"),
        *_vit_layer("decoder.decoder_encoder.layer.{i}"),
        rule("decoder.decoder_{part:embed|norm|pred}.{end}", "{part}.{end}"),
        rule("decoder.decoder_pos_embed", "pos_embed"),
        rule("decoder.mask_token", "mask_token"),
    ]


def deit_rules(tensors: Tensors) -> list[Rule]:
    """DeiT with both heads, or with one: then the distillation token is a register, and its position a part of it."""
    if "classifier.weight" in tensors:
        (positions,) = _POSITIONS.source
        tokens = [
            rule(["embeddings.distillation_token", f"{positions}[1:2]"], "reg_token", "add"),
            rule([f"{positions}[0:1]", f"{positions}[2:]"], "pos_embed", "rows"),
        ]
    else:
        tokens = [rule("embeddings.distillation_token", "dist_token"), _POSITIONS]
    return [
        *tokens,
        rule("cls_classifier.{end}", "head.{end}"),
        rule("distillation_classifier.{end}", "head_dist.{end}"),
        *_vit_layer("encoder.layer.{i}"),
        *_vit_layer("layers.{i}"),
        *_AROUND,
    ]


def dinov2_rules(_: Tensors) -> list[Rule]:
    """Dinov2 and Dinov2WithRegisters; a packed gate, or as in memory gate and value apart."""
    layer, block = "encoder.layer.{i}", "blocks.{i}"
    return [
        *_attention(layer),
        rule(f"{layer}.norm{{n}}.{{end}}", f"{block}.norm{{n}}.{{end}}"),
        rule(f"{layer}.layer_scale{{n}}.lambda1", f"{block}.ls{{n}}.gamma"),
        rule(f"{layer}.mlp.weights_in.{{end}}", f"{block}.mlp.fc1.{{end}}"),
        rule(f"{layer}.mlp.weights_out.{{end}}", f"{block}.mlp.fc2.{{end}}"),
        *_gated(layer, block),
        rule(f"{layer}.mlp.fc{{n}}.{{end}}", f"{block}.mlp.fc{{n}}.{{end}}"),
        _POSITIONS,
        *_AROUND,
    ]


def beit_rules(_: Tensors) -> list[Rule]:
    """BEiT, BEiT v2 and Data2VecVision: as saved, then as in memory. Where a block has a bias table beside that of all,
    ours is the sum."""
    table, block = "relative_position_bias.relative_position_bias_table", "blocks.{i}"
    attention, ours = "encoder.layer.{i}.attention.attention", f"{block}.attn.relative_position_bias_table"
    saved = [f"{attention}.{part}" for part in ("query", "key", "value")]
    memory = [f"layers.{{i}}.attention.{part}_proj" for part in "qkv"]
    rules: list[Rule] = []
    for layer, parts, projection, own, shared in (
        ("encoder.layer.{i}", saved, "attention.output.dense", f"{attention}.{table}", f"encoder.{table}"),
        ("layers.{i}", memory, "attention.o_proj", f"layers.{{i}}.{table}",
         "shared_position_bias.relative_position_bias_table"),
    ):  # fmt: skip
        rules += [
            rule([own, f"{shared}[0:]"], ours, "add"),
            rule(own, ours),
            rule(shared, "rel_pos_bias.relative_position_bias_table"),
            rule([f"{part}.weight" for part in parts], f"{block}.attn.qkv.weight", "merge"),
            *(rule(f"{part}.bias", f"{block}.attn.{name}_bias") for part, name in zip(parts[::2], "qv", strict=True)),
            rule(f"{layer}.{projection}.{{end}}", f"{block}.attn.proj.{{end}}"),
            rule(f"{layer}.lambda_{{n}}", f"{block}.ls{{n}}.gamma"),
            *(each for each in _vit_layer(layer) if "attention" not in each.source[0]),
        ]
    pooled = rule("pooler.layernorm.{end}", "fc_norm.{end}")
    lost = (rule("lm_head.{end}", None), rule("{x:.*}relative_position_index", None))
    return [*rules, pooled, *lost, _POSITIONS, *_AROUND]


def as_beit_reads(tensors: Tensors, grid: Grid) -> dict[str, Tensor]:
    """The bias tables that transformers' BEiT computes with: it takes the rows of a table for its columns, and resizes
    what it then has to this grid. On a square one nothing changes."""
    turned = {name: tensor for name, tensor in tensors.items() if name.endswith("relative_position_bias_table")}
    return {**tensors, **{name: resize_bias_table(t, (grid[1], grid[0]), grid) for name, t in turned.items()}}


def beit_head_rules() -> list[Rule]:
    """What `beit_rules` leaves out of a pre-training model, by the names of `objectives.beit`."""
    return [rule("embeddings.mask_token", "mask_token", "vector"), rule("lm_head.{end}", "predict.{end}")]


def _gated(layer: str, block: str) -> list[Rule]:
    return [
        rule([f"{layer}.mlp.{part}_proj.{{end}}" for part in ("gate", "up")], f"{block}.mlp.fc1.{{end}}", "merge"),
        rule(f"{layer}.mlp.up_proj.{{end}}", f"{block}.mlp.fc1.{{end}}"),
        rule(f"{layer}.mlp.down_proj.{{end}}", f"{block}.mlp.fc2.{{end}}"),
    ]


def dinov3_rules(tensors: Tensors) -> list[Rule]:
    """DINOv3ViT: keys have no bias, positions are constants."""
    layer = "model.layer.{i}" if any(name.startswith("model.layer.") for name in tensors) else "layer.{i}"
    block, query = "blocks.{i}", f"{layer}.attention.q_proj"
    key, value = (f"{layer}.attention.{part}_proj" for part in "kv")
    return [
        rule([f"{query}.weight", f"{key}.weight", f"{value}.weight"], f"{block}.attn.qkv.weight", "merge"),
        rule([f"{query}.bias", f"?{key}.bias", f"{value}.bias"], f"{block}.attn.qkv.bias", "merge"),
        _no_bias(query, key, value),
        rule(f"{layer}.attention.o_proj.{{end}}", f"{block}.attn.proj.{{end}}"),
        rule(f"{layer}.norm{{n}}.{{end}}", f"{block}.norm{{n}}.{{end}}"),
        rule(f"{layer}.layer_scale{{n}}.lambda1", f"{block}.ls{{n}}.gamma"),
        *_gated(layer, block),
        rule("norm.{end}", "norm.{end}"),
        rule("rope_embeddings.{rest}", None),
        *_AROUND,
    ]
