"""The way of one image through a model: every stage with its shape. Nothing here imports torch."""

from __future__ import annotations

from typing import NamedTuple

from vitral.models.config import ResNetConfig, ViTConfig, stage_channels
from vitral.models.flops import Size, total_tokens
from vitral.models.resnet_counts import stem_channels


class Stage(NamedTuple):
    """A stage's name, and the shape of what leaves it, for one image: tokens x features, heads first, or height x width
    x channels."""

    name: str
    shape: tuple[int, ...]


def walk(config: ViTConfig | ResNetConfig) -> list[Stage]:
    """All stages in order, of a Vision Transformer the inside of its first block too (sections 3.1 and appendix A of
    arXiv 2010.11929)."""
    return _vit(config) if isinstance(config, ViTConfig) else _resnet(config)


def formula(c: ViTConfig) -> dict[str, int]:
    """Multiply-accumulates of a block on all N tokens by the closed form 4 N D^2 + 2 N^2 D + 2 N D D_h: projections,
    attention, MLP (D_h its hidden width; a gated MLP takes 3 N D D_h), and their sum over all blocks."""
    N, D = total_tokens(c), c.width
    gates = 3 if c.mlp == "swiglu" else 2
    one = {"4 N D^2": 4 * N * D * D, "2 N^2 D": 2 * N * N * D, f"{gates} N D D_h": gates * N * D * c.mlp_dim}
    return {**one, "a block": sum(one.values()), f"{c.depth} blocks": c.depth * sum(one.values())}


def _vit(c: ViTConfig) -> list[Stage]:
    (rows, columns), T, D = c.grid, total_tokens(c), c.width
    N, heads, hidden = rows * columns, c.heads_of_blocks[0], c.mlp_dims_of_blocks[0]
    d = D // c.heads
    side, channels = c.patch_size // c.stem_stride, c.in_channels
    stages = [Stage("image", (*c.image_size, c.in_channels))]
    if c.stem_blocks is not None:
        channels = stem_channels(c.stem_blocks)
        stages.append(Stage("convolutional stem", (rows * side, columns * side, channels)))
    stages += [Stage("patches", (N, side * side * channels)), Stage("patch embedding", (N, D))]
    prefix = [*["class token"] * c.class_token, *["distillation token"] * c.distill_token]
    prefix += [f"{c.registers} registers"] * bool(c.registers)
    if prefix:
        stages.append(Stage(f"with {' and '.join(prefix)}", (T, D)))
    left = [c.prefix_tokens + count for count in c.pruned_counts(N)] if c.pruner_blocks else [T] * c.depth
    stages += [
        Stage("block 0: queries, keys, values", (3, T, heads * d)), Stage("block 0: per head, each", (T, d)),
        Stage("block 0: attention, a head", (T, T)), Stage("block 0: heads joined", (T, heads * d)),
        Stage("block 0: projection", (T, D)),
        Stage("block 0: hidden layer of the MLP", (left[0], hidden)),
        Stage(f"after {c.depth} blocks" if c.depth > 1 else "after the block", (left[-1], D)),
        Stage(f"pooled ({c.pool})", (c.pooled_width,)),
    ]  # fmt: skip
    return [*stages, *([Stage("head", (c.num_classes,))] if c.num_classes else [])]


def _resnet(c: ResNetConfig) -> list[Stage]:
    stages = [Stage("image", (*c.image_size, c.in_channels))]
    size: Size = c.image_size
    if c.stem != "cifar":
        size = _half(_half(size))
    stages.append(Stage("stem", (*size, c.width)))
    channels = stage_channels(c.blocks, c.width, c.block)
    for number, (count, out) in enumerate(zip(c.blocks, channels, strict=True)):
        size = _half(size) if number else size
        stages.append(Stage(f"stage {number}, {count} blocks", (*size, out)))
    stages.append(Stage("pooled (avg)", (c.pooled_width,)))
    return [*stages, *([Stage("head", (c.num_classes,))] if c.num_classes else [])]


def _half(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)
