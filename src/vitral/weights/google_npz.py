"""Google's .npz files: the ViT paper's own layout, big_vision's, and BiT's.

Flax stores dense kernels as [in, out], convolutions as [H, W, I, O], attention by heads as [D, h, d] and [h, d, D].
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitral.weights.keymap import Rule, rule


def _dense(foreign: str, ours: str) -> list[Rule]:
    return [
        rule(f"{foreign}/kernel", f"{ours}.weight", "transpose"),
        rule(f"{foreign}/bias", f"{ours}.bias"),
    ]


def _norm(foreign: str, ours: str, scale: str = "scale", bias: str = "bias") -> list[Rule]:
    """Scales of group norms are [1, 1, 1, C]."""
    return [
        rule(f"{foreign}/{scale}", f"{ours}.weight", "vector"),
        rule(f"{foreign}/{bias}", f"{ours}.bias", "vector"),
    ]


def _attention(foreign: str, ours: str, **packed: str) -> list[Rule]:
    """packed: our layers, and the names of the projections that each consists of."""
    merged = [
        rule([f"{foreign}/{name}/{part}" for name in names.split()], f"{ours}.{layer}.{end}", "heads_in")
        for layer, names in packed.items()
        for part, end in (("kernel", "weight"), ("bias", "bias"))
    ]
    projection = rule(f"{foreign}/out/kernel", f"{ours}.proj.weight", "heads_out")
    return [*merged, projection, rule(f"{foreign}/out/bias", f"{ours}.proj.bias")]


def _encoder(block: str, attention: int, norm2: int, mlp: int) -> list[Rule]:
    """Flax numbers the modules of a block; both code bases do it their own way."""
    return [
        *_norm(f"{block}/LayerNorm_0", "blocks.{i}.norm1"),
        *_norm(f"{block}/LayerNorm_{norm2}", "blocks.{i}.norm2"),
        *_attention(f"{block}/MultiHeadDotProductAttention_{attention}", "blocks.{i}.attn", qkv="query key value"),
        *_dense(f"{block}/MlpBlock_{mlp}/Dense_0", "blocks.{i}.mlp.fc1"),
        *_dense(f"{block}/MlpBlock_{mlp}/Dense_1", "blocks.{i}.mlp.fc2"),
    ]


def _around() -> list[Rule]:
    return [
        rule("cls", "cls_token"),
        *_dense("embedding", "patch_embed.proj"),
        *_norm("Transformer/encoder_norm", "norm"),
        *_dense("head", "head"),
        *_dense("pre_logits", "pre_logits.fc"),
    ]


def rules(tensors: Mapping[str, Tensor]) -> list[Rule]:
    """vision_transformer: ViT, AugReg, and the hybrids with a ResNet of this layout in front."""
    whole = not tensors or any(name.startswith("block1/") for name in tensors)
    stem = "patch_embed.backbone.stem" if whole else "patch_embed.backbone"
    unit, stage = "block{i+1}/unit{j+1}", "patch_embed.backbone.stages.{i}.blocks.{j}"
    return [
        *_around(),
        rule("Transformer/posembed_input/pos_embedding", "pos_embed"),
        *_encoder("Transformer/encoderblock_{i}", attention=1, norm2=2, mlp=3),
        rule("conv_root/kernel", f"{stem}.conv.weight", "transpose"),
        *_norm("gn_root", f"{stem}.norm"),
        rule(f"{unit}/conv{{n}}/kernel", f"{stage}.conv{{n}}.weight", "transpose"),
        *_norm(f"{unit}/gn{{n}}", f"{stage}.norm{{n}}"),
        rule(f"{unit}/conv_proj/kernel", f"{stage}.downsample.conv.weight", "transpose"),
        *_norm(f"{unit}/gn_proj", f"{stage}.downsample.norm"),
    ]


def big_vision_rules(_: Mapping[str, Tensor]) -> list[Rule]:
    """big_vision: plain ViT and the image towers of SigLIP, a tensor a block or all blocks in one (`unstack`)."""
    return [
        *_around(),
        rule("pos_embedding", "pos_embed"),
        *_encoder("Transformer/encoderblock_{i}", attention=0, norm2=1, mlp=0),
        rule("MAPHead_0/probe", "attn_pool.latent"),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "attn_pool", q="query", kv="key value"),
        *_norm("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
        *_dense("MAPHead_0/MlpBlock_0/Dense_0", "attn_pool.mlp.fc1"),
        *_dense("MAPHead_0/MlpBlock_0/Dense_1", "attn_pool.mlp.fc2"),
    ]


def unstack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split into one tensor per block, where all blocks are stacked along the first axis (`encoderblock/...`)."""
    mark = "Transformer/encoderblock/"
    single = {name: tensor for name, tensor in tensors.items() if not name.startswith(mark)}
    for name, tensor in tensors.items():
        if name.startswith(mark):
            rest = name.removeprefix(mark)
            single |= {f"Transformer/encoderblock_{i}/{rest}": part for i, part in enumerate(tensor)}
    return single


def bit_rules(_: Mapping[str, Tensor]) -> list[Rule]:
    """BiT ResNets; a, b and c are the convolutions of a unit."""
    conv, norm = "standardized_conv2d/kernel", ("gamma", "beta")
    unit, block = "resnet/block{i+1}/unit{j+1:02}", "stages.{i}.blocks.{j}"
    inside = [
        made
        for n, letter in enumerate("abc", 1)
        for made in (
            rule(f"{unit}/{letter}/{conv}", f"{block}.conv{n}.weight", "transpose"),
            *_norm(f"{unit}/{letter}/group_norm", f"{block}.norm{n}", *norm),
        )
    ]
    return [
        rule(f"resnet/root_block/{conv}", "stem.conv.weight", "transpose"),
        *inside,
        rule(f"{unit}/a/proj/{conv}", f"{block}.downsample.conv.weight", "transpose"),
        *_norm("resnet/group_norm", "norm", *norm),
        *_dense("resnet/head/conv2d", "head.fc"),
    ]
