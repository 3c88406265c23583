"""Attention maps of any layer, head and token, computed layer by layer.

Shape letters: B batch, C channels, H W image height and width, N patches, T tokens (prefix and patches), h heads, L
layers, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vitral.interpret.tokens import Grid, pick, token_rows
from vitral.models.vit import VisionTransformer

MAPS_BYTES = 512 * 2**20  # of the maps that one pass may keep


def map_name(layer: int) -> str:
    """What `capture` calls the map of a layer."""
    return f"blocks.{layer}.attn.map"


def grid_of(model: VisionTransformer, images_BCHW: Tensor) -> Grid:
    """Rows and columns of patches of these images."""
    side = model.config.patch_size
    return images_BCHW.shape[-2] // side, images_BCHW.shape[-1] // side


def in_groups(
    model: VisionTransformer, patches_BND: Tensor, layers: Sequence[int], most_bytes: int = MAPS_BYTES
) -> Iterator[Sequence[int]]:
    """The layers in their order, so many together that their maps take at most `most_bytes`, and at least one."""
    B, N, _ = patches_BND.shape
    map_bytes = B * model.config.heads * (model.prefix_tokens + N) ** 2 * model.dtype.itemsize
    together = max(1, most_bytes // map_bytes)
    yield from (layers[start : start + together] for start in range(0, len(layers), together))


@torch.no_grad()
def stream_maps(
    model: VisionTransformer,
    images_BCHW: Tensor,
    layers: Sequence[int] | None = None,
    most_bytes: int = MAPS_BYTES,
) -> Iterator[tuple[int, Tensor]]:
    """(layer, map [B, h, T, T]) of each layer, rows sum to 1; from the first to the last, or as `layers` says.

    images_BCHW: [0,1] or uint8, of any size that the patch size divides. Where the maps of all layers together would
    take more than `most_bytes`, the images pass through the model several times: less memory for more work. A map that
    was handed out is kept by nobody here. Raises UserError for a layer that is not there.
    """
    patches_BND, grid = model.embed(images_BCHW)
    for group in in_groups(model, patches_BND, pick(layers, model.config.depth, "layers"), most_bytes):
        captured = model.encode_tokens(patches_BND, grid, capture=[map_name(layer) for layer in group]).captured
        for layer in group:
            yield layer, captured.pop(map_name(layer))


def token_attention(
    model: VisionTransformer,
    images_BCHW: Tensor,
    token: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """How a token shares its attention out among all tokens: [B, L, h, T], rows sum to 1 (eq. 6 of arXiv 2010.11929).

    token: see `token_rows`; of "mean" the mean of all patches' attention. The first `model.prefix_tokens` of the T are
    no patches; `on_grid` leaves them out. NaN for heads that a layer of a pruned model lacks. Raises UserError for a
    token, layer or head that is not there.
    """
    rows = token_rows(model.config, token, grid_of(model, images_BCHW))
    most = max(model.config.heads_of_blocks)
    chosen = pick(heads, most, "heads")
    shares: list[Tensor] = []
    for _, map_BhTT in stream_maps(model, images_BCHW, layers):
        shares.append(fill_heads(map_BhTT[:, :, rows].mean(2), most)[:, chosen])
    return torch.stack(shares, dim=1)


def fill_heads(values_hT: Tensor, count: int) -> Tensor:
    """The same [..., h, T] with NaN for the heads up to `count` that this layer of a pruned model lacks."""
    return pad(values_hT, (0, 0, 0, count - values_hT.shape[-2]), value=torch.nan)
