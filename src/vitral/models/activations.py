"""Bytes that a forward pass keeps for the backward pass, block by block, by closed form.

What is counted are the tensors that autograd saves, each storage once, parameters left out: docs/memory.md derives the
terms. Letters: B samples of a micro-batch, K samples that a block's branches run, T tokens, Q tokens asked for, D
width, h heads, E features of all heads together, M hidden width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from vitral.models.config import ResNetConfig, ViTConfig, stage_channels
from vitral.models.flops import asked_tokens, total_tokens
from vitral.models.layers import kept_count
from vitral.models.presets import attention_parameters, mlp_parameters
from vitral.models.resnet_counts import HYBRID_WIDTH, stem_channels

Precision = Literal["float32", "bfloat16", "bfloat16_params"]


class Widths(NamedTuple):
    """Bytes of a number. stream: between blocks and into norms. inner: into matrix products. cast: of the copy of a
    parameter that autograd keeps under autocast. mask: of a dropout mask. maps: whether attention keeps its maps."""

    stream: int
    inner: int
    cast: int
    mask: int
    maps: bool


class Kept(NamedTuple):
    """Bytes kept for the backward pass: before the blocks, by each block, by each block's input alone (all that a
    checkpointed block keeps), after the blocks; and the largest gradients in flight beside them."""

    stem: int
    blocks: tuple[int, ...]
    inputs: tuple[int, ...]
    head: int
    workspace: int

    def total(self, checkpointed: int = 0) -> int:
        """At the end of the forward pass, the first so many blocks checkpointed."""
        return self.stem + sum(self.inputs[:checkpointed]) + sum(self.blocks[checkpointed:]) + self.head


def widths(precision: Precision, device: Literal["cpu", "cuda"] = "cpu") -> Widths:
    """Bytes of a number in each precision. A dropout mask is of the masked type on a CPU, and of bytes on CUDA."""
    stream, inner, cast = {"float32": (4, 4, 0), "bfloat16": (4, 2, 2), "bfloat16_params": (2, 2, 0)}[precision]
    return Widths(stream, inner, cast, inner if device == "cpu" else 1, device == "cpu" and inner == 2)


def kept_activations(
    config: ViTConfig | ResNetConfig, samples: int, precision: Precision, device: Literal["cpu", "cuda"] = "cpu"
) -> Kept:
    """What training on `samples` images at once keeps, logits and loss included."""
    sizes = widths(precision, device)
    return _vit(config, samples, sizes) if isinstance(config, ViTConfig) else _resnet(config, samples, sizes)


def _vit(c: ViTConfig, B: int, w: Widths) -> Kept:
    (rows, columns), T, D = c.grid, total_tokens(c), c.width
    N, Q = rows * columns, asked_tokens(c)
    side = c.patch_size // c.stem_stride
    channels = c.in_channels if c.stem_blocks is None else stem_channels(c.stem_blocks)
    stem = B * N * channels * side**2 * w.inner
    if c.stem_blocks is not None:
        maps, size = _large_stem(c.image_size, c.in_channels, HYBRID_WIDTH, after=True)
        stages = _stages(c.stem_blocks, HYBRID_WIDTH, "bottleneck", size, preactivation=False, projection=True)
        values, weights = (sum(column) for column in zip(*stages, strict=True)) if stages else (0, 0)
        stem += (B * (maps + values) + weights) * w.inner + channels * side**2 * D * w.cast
    stem += B * T * D * w.mask * (c.dropout > 0)
    asked = [T] * (c.depth - 1) + [Q]
    kept = [kept_count(B, rate) for rate in c.drop_path_rates]
    # Where samples are left out, the sum keeps both branches' results.
    sizes = zip(c.heads_of_blocks, c.mlp_dims_of_blocks, kept, asked, strict=True)
    blocks = [_block(c, h, M, K, T, Q, w) + 2 * K * Q * D * w.stream * (K < B) for h, M, K, Q in sizes]
    return Kept(
        stem=stem,
        blocks=tuple(blocks),
        inputs=(B * T * D * w.stream,) * c.depth,
        head=_head(c, B, N, Q, w),
        workspace=B * T * ((3 if c.mlp == "swiglu" else 2) * max(c.mlp_dims_of_blocks) * w.inner + 2 * D * w.stream),
    )


def _block(c: ViTConfig, h: int, M: int, K: int, T: int, Q: int, w: Widths) -> int:
    """One block of h heads, K samples of which run its branches; see the table in docs/memory.md."""
    D, E = c.width, h * (c.width // c.heads)
    gates = 2 if c.mlp == "swiglu" else 1
    norms = (T + Q) * (D + 2) * w.stream
    attention = (T * D + 3 * T * E + Q * E) * w.inner  # input, packed q k v, result
    explicit = w.maps and not (c.positions == "relative" and Q == T)
    if explicit:  # the map, and queries, keys, values of their own; of one sample they stay packed
        attention += (h * Q * T + (Q * E if K == 1 else (Q - T) * E)) * w.inner
    else:
        attention += 4 * h * Q  # log-sum-exp in float32
    if c.qk_norm:
        attention += (2 * T * E + Q * E) * w.inner + 4 * T * h * w.inner
    if c.positions == "rope" and not explicit:
        attention += (2 * T * E + Q * E) * w.inner
    if c.positions == "relative" and Q == T:
        # A bias that learns takes attention off the fused kernel, in float32: q, k, v and the map are kept.
        N = T - c.prefix_tokens
        attention += 4 * (3 * T * D + h * T * T - h * Q) - 3 * T * D * w.inner
        attention += (N * D + (D + h * N) * (2 * N - 1)) * w.inner
    mlp = (Q * D + Q * M * (4 if gates == 2 else 2)) * w.inner
    scales = 2 * Q * D * w.inner * (c.layer_scale is not None)
    masks = (2 * Q * D + Q * M) * w.mask * (c.dropout > 0)
    weights = attention_parameters(D, E) - 3 * E - D + mlp_parameters(D, M, gates) - M * gates - D
    return K * (norms + attention + mlp + scales + masks) + weights * w.cast


def _head(c: ViTConfig, B: int, N: int, Q: int, w: Widths) -> int:
    """Final norm, pooling, head; the loss keeps the probabilities in float32."""
    D, M, S = c.width, c.mlp_dim, c.num_classes
    rows = B if c.norm_after_pool else B * (N + c.prefix_tokens if c.pool != "cls" else Q)
    kept = rows * (D + 2) * w.stream + B * c.pooled_width * w.inner + B * S * 4 + c.pooled_width * S * w.cast
    if c.pool == "map":
        kept += B * (3 * N * D + 3 * D + 2 * M) * w.inner + (4 * D * D + 2 * D * M) * w.cast
    if c.head == "mlp":
        kept += B * D * w.inner + D * D * w.cast
    return kept


def _resnet(c: ResNetConfig, B: int, w: Widths) -> Kept:
    """Every map is of the precision of the convolutions; the weights that group norm standardises are kept too."""
    after = not c.preactivation
    if c.stem == "cifar":
        size = c.image_size
        maps = size[0] * size[1] * (c.in_channels + (2 * c.width if after else 0))
    else:
        maps, size = _large_stem(c.image_size, c.in_channels, c.width, after)
    stages = _stages(c.blocks, c.width, c.block, size, c.preactivation, c.shortcut == "projection")
    beside = w.inner if c.norm == "group" else w.cast
    rows, columns = c.grid
    last = rows * columns * c.pooled_width * 2 * c.preactivation
    blocks = tuple(B * maps * w.inner + weights * beside for maps, weights in stages)
    inputs = [size[0] * size[1] * c.width]
    for i, (count, out) in enumerate(zip(c.blocks, stage_channels(c.blocks, c.width, c.block), strict=True)):
        size = _half(size) if i else size
        inputs += [size[0] * size[1] * out] * count
    return Kept(
        stem=B * maps * w.inner,
        blocks=blocks,
        inputs=tuple(B * values * w.inner for values in inputs[:-1]),
        head=B * (last + c.pooled_width) * w.inner + B * c.num_classes * 4 + c.pooled_width * c.num_classes * w.cast,
        workspace=2 * B * max(inputs) * w.inner,
    )


def _large_stem(image: tuple[int, int], in_channels: int, width: int, after: bool) -> tuple[int, tuple[int, int]]:
    """Values kept of an image, a 7x7 convolution, norm and ReLU if they come after it, the padded map and the pooling's
    indices, which are as large as two or four values; and the size of the pooled map."""
    rows, columns = _half(image)
    pooled = _half((rows, columns))
    indices = 3 * pooled[0] * pooled[1] * width
    maps = image[0] * image[1] * in_channels + (rows + 1) * (columns + 1) * width * (3 if after else 1)
    return maps + indices, pooled


def _stages(
    blocks: Sequence[int], width: int, block: Literal["bottleneck", "basic"], size: tuple[int, int],
    preactivation: bool, projection: bool,
) -> list[tuple[int, int]]:  # fmt: skip
    """Of each residual block: values kept an image, and weights of its convolutions."""
    found: list[tuple[int, int]] = []
    before = width
    for i, (count, out) in enumerate(zip(blocks, stage_channels(blocks, width, block), strict=True)):
        for j in range(count):
            old = size[0] * size[1]
            size = _half(size) if i and not j else size
            cells, inner = size[0] * size[1], out // 4 if block == "bottleneck" else out
            shaped = projection and j == 0 and (i > 0 or before != out)
            if block == "bottleneck":  # in front of and behind a norm: after the first 1x1, after the 3x3
                maps, weights = 2 * inner * (old + cells), inner * before + 9 * inner**2 + inner * out
            else:
                maps, weights = 2 * out * cells, 9 * before * out + 9 * out**2
            # Before the first convolution also the block's input and its norm; or its last norm's input and its result.
            maps += 2 * before * old if preactivation else 2 * out * cells
            maps += out * cells * (shaped and not preactivation)
            found.append((maps, weights + before * out * shaped))
            before = out
    return found


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)
