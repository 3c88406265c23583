"""Multiply-accumulates of one image's forward pass by closed form. Nothing here imports torch.

What is counted are matrix products and convolutions, as torch's FlopCounterMode counts them on the meta device (two
operations a multiply-accumulate); norms, activations and additions are not. Letters: N patches, T tokens, Q tokens
whose result is asked for, R of them that are left for the MLP, D width, E features of all heads together, M hidden
width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vitral.models.config import ResNetConfig, ViTConfig, stage_channels
from vitral.models.resnet_counts import HYBRID_WIDTH, stem_channels

Size = tuple[int, int]


def count_macs(
    config: ViTConfig | ResNetConfig, patches: Sequence[int] | None = None, whole: bool = False
) -> dict[str, int]:
    """Multiply-accumulates of `model(images)` for one image of the model's own size, by part; their sum is the whole.

    Of a Vision Transformer: stem (a hybrid's ResNet), patches, qkv, scores (queries times keys), values (attention
    times values), projection, mlp, positions (those inside the attention), pruner, pool, head. Of a ResNet: stem,
    stages, head. patches: patch tokens that leave the attention of each block, where they become fewer; what finds them
    is not counted, but for a pruner. whole: the last block computes all tokens, as papers and other tools count, also
    where the head reads the class token alone.
    """
    return _vit(config, patches, whole) if isinstance(config, ViTConfig) else _resnet(config)


def asked_tokens(config: ViTConfig) -> int:
    """Tokens that the last block computes for the logits: those that are pooled, where no patch is."""
    return 1 + config.distill_token if config.pool == "cls" else total_tokens(config)


def total_tokens(config: ViTConfig) -> int:
    """Patches of the model's own grid, and the tokens in front of them."""
    return config.grid[0] * config.grid[1] + config.prefix_tokens


def block_macs(c: ViTConfig, heads: int, hidden: int, T: int, Q: int, R: int) -> dict[str, int]:
    """Of one block with so many heads and hidden features, on T tokens of which Q are asked for and R left."""
    D, E = c.width, heads * (c.width // c.heads)
    gates = 2 if c.mlp == "swiglu" else 1
    return {
        "qkv": T * 3 * D * E, "scores": Q * T * E, "values": Q * T * E, "projection": Q * D * E,
        "mlp": R * (gates + 1) * D * hidden,
    }  # fmt: skip


def tokens_of_blocks(
    c: ViTConfig, patches: Sequence[int] | None = None, whole: bool = False
) -> list[tuple[int, int, int]]:
    """Tokens that enter each block, those whose result is asked for, and those of them left for the MLP."""
    P, before = c.prefix_tokens, c.grid[0] * c.grid[1]
    found: list[tuple[int, int, int]] = []
    for i, after in enumerate(patches or [before] * c.depth):
        only = c.pool == "cls" and i == c.depth - 1 and not whole
        found.append((P + before, asked_tokens(c), asked_tokens(c)) if only else (P + before, P + before, P + after))
        before = after
    return found


def _vit(c: ViTConfig, patches: Sequence[int] | None, whole: bool) -> dict[str, int]:
    N, T, D, M = c.grid[0] * c.grid[1], total_tokens(c), c.width, c.mlp_dim
    patches = patches or (c.pruned_counts(N) if c.pruner_blocks else None)
    asked = [T] * (c.depth - 1) + [T if whole else asked_tokens(c)]
    sizes = zip(c.heads_of_blocks, c.mlp_dims_of_blocks, tokens_of_blocks(c, patches, whole), strict=True)
    blocks = [block_macs(c, heads, hidden, *tokens) for heads, hidden, tokens in sizes]
    left = patches[-1] if patches else N
    seen = [tokens[0] - c.prefix_tokens for tokens in tokens_of_blocks(c, patches)]
    H = max(D // 2, 1)
    last = (
        c.depth - 1 if c.pool == "cls" and not whole else c.depth
    )  # a block that is asked for prefix tokens alone drops no patch
    pruner = sum(seen[i] * (2 * D * H + 2 * H * H + 2 * H) for i in c.pruner_blocks if i < last)
    channels = c.in_channels if c.stem_blocks is None else stem_channels(c.stem_blocks)
    stem = 0 if c.stem_blocks is None else _hybrid_stem(c, c.stem_blocks)
    # Prefix tokens have no place; a block that is asked for them alone computes no offsets.
    offsets = sum(Q == T for Q in asked) * N * D * (2 * N - 1) * (c.positions == "relative")
    pool = (2 * D * D + 2 * left * D * D + 2 * left * D + 2 * D * M) * (c.pool == "map")
    return {
        "stem": stem,
        "patches": N * channels * (c.patch_size // c.stem_stride) ** 2 * D,
        **{part: sum(block[part] for block in blocks) for part in ("qkv", "scores", "values", "projection", "mlp")},
        "positions": offsets,
        "pruner": pruner,
        "pool": pool,
        "head": c.pooled_width * c.num_classes + D * D * (c.head == "mlp"),
    }


def _resnet(c: ResNetConfig) -> dict[str, int]:
    if c.stem == "cifar":
        size, kernel = c.image_size, 9
        stem = size[0] * size[1] * kernel * c.in_channels * c.width
    else:
        stem, size = _large_stem(c.image_size, c.in_channels, c.width)
    stages = _stages(c.blocks, c.width, c.block, size, c.shortcut == "projection")
    return {"stem": stem, "stages": stages, "head": c.pooled_width * c.num_classes}


def _hybrid_stem(c: ViTConfig, blocks: Sequence[int]) -> int:
    stem, size = _large_stem(c.image_size, c.in_channels, HYBRID_WIDTH)
    return stem + _stages(blocks, HYBRID_WIDTH, "bottleneck", size, projection=True)


def _large_stem(image: Size, in_channels: int, width: int) -> tuple[int, Size]:
    """A 7x7 convolution of stride 2, and the size of the map after the pooling."""
    rows, columns = _half(image)
    return rows * columns * 49 * in_channels * width, _half((rows, columns))


def _stages(
    blocks: Sequence[int], width: int, block: Literal["bottleneck", "basic"], size: Size, projection: bool
) -> int:
    total, before = 0, width
    for i, (count, out) in enumerate(zip(blocks, stage_channels(blocks, width, block), strict=True)):
        for j in range(count):
            old = size
            size = _half(size) if i and not j else size
            cells, inner = size[0] * size[1], out // 4 if block == "bottleneck" else out
            if block == "bottleneck":  # the first 1x1 still sees the larger map
                total += old[0] * old[1] * before * inner + cells * (9 * inner**2 + inner * out)
            else:
                total += cells * (9 * before * out + 9 * out**2)
            if projection and j == 0 and (i > 0 or before != out):
                total += cells * before * out
            before = out
    return total


def _half(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)
