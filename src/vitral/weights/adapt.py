"""Weights of one architecture for another image size, patch size or number of channels.

Shape letters: D width, C channels, P side of a patch, X values of a patch, N patches, L tables of positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.errors import UserError
from vitral.models.config import ModelConfig, ViTConfig
from vitral.models.parameters import is_head
from vitral.models.position import (
    interpolate_positions,
    resize_bias_table,
    resize_offsets,
    resize_table,
    sincos_table,
)
from vitral.models.registry import token_config

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, how images are read as gray


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights alone, whose output is the paper's bare representation."""
    return {name: tensor for name, tensor in state.items() if not is_head(name)}


def adapt(state: dict[str, Tensor], old: ModelConfig, new: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of an `old` model for a `new` one that takes other images, and a line on each change.

    Positions are interpolated to the new grid (arXiv 2010.11929, section 3.2), as `new.position_resize` sets;
    patches resampled by the pseudo-inverse (arXiv 2212.08013); channels converted so that the model gives the
    output of the old one for the same image in the old channels. Learned positions start from fixed ones, bias tables
    of blocks from a shared one, and a final norm that moves behind or before the pooling is initialized again, as in
    MAE's fine-tuning (arXiv 2111.06377, appendix A). What does not change comes back as it is. Raises UserError where
    other channels or patches meet a convolutional stem, and where the model keeps its size.
    """
    if old.has_fixed_size and (old.image_size, old.in_channels) != (new.image_size, new.in_channels):
        sizes = (" x ".join(map(str, (*each.image_size, each.in_channels))) for each in (new, old))
        raise UserError("this model keeps the size and channels of its images", where=old.description,
                        got=next(sizes), expected=next(sizes))  # fmt: skip
    state, notes = dict(state), list[str]()
    mine, theirs = token_config(old), token_config(new)
    if mine is not None and theirs is not None:
        notes += _adapt_tokens(state, mine, theirs)
    if old.in_channels != new.in_channels:
        if old.has_convolutional_stem:
            raise UserError(
                "a convolutional stem keeps its channels: its weights are standardized, which undoes any scale",
                where="data.channels", got=new.in_channels, expected=old.in_channels,
            )  # fmt: skip
        _exchange_channels(state, old, new)
        notes.append(f"channels exchanged from {old.in_channels} to {new.in_channels}")
    return state, notes


def _adapt_tokens(state: dict[str, Tensor], old: ViTConfig, new: ViTConfig) -> list[str]:
    notes = _learn_positions(state, old, new) + _share_out(state, new) + _move_norm(state, old, new)
    if old.grid != new.grid and new.positions == old.positions:
        _resize_positions(state, old, new)
        if new.positions != "none":
            notes.append(f"positions brought from a grid of {_by(old.grid)} to {_by(new.grid)} patches")
    if old.patch_size != new.patch_size:
        if old.has_convolutional_stem:
            raise UserError(
                "a convolutional stem keeps its patches", where="model.patch_size", got=new.patch_size,
                expected=old.patch_size,
            )  # fmt: skip
        name = "patch_embed.proj.weight"
        state[name] = resize_patches(state[name], new.patch_size)
        notes.append(f"patches resampled from {old.patch_size} to {new.patch_size} pixels a side")
    return notes


def _learn_positions(state: dict[str, Tensor], old: ViTConfig, new: ViTConfig) -> list[str]:
    """A learned table of what the fixed positions were on this grid; class and distillation token had none, so 0."""
    if old.positions != "sincos" or new.positions != "learned" or new.position_tables > 1:
        return []
    table_1ND = sincos_table(new.grid, old.grid, new.width)
    prefix_1PD = table_1ND.new_zeros(1, new.position_rows, new.width)
    state["pos_embed"] = torch.cat([prefix_1PD, table_1ND], dim=1).to(state["patch_embed.proj.weight"].dtype)
    return ["learned positions that start from the fixed sines and cosines"]


def _share_out(state: dict[str, Tensor], new: ViTConfig) -> list[str]:
    """A bias table for each block from the one of all, as BEiT's fine-tuning starts."""
    name = "rel_pos_bias.relative_position_bias_table"
    if name not in state or new.positions != "relative_bias" or new.positions_at == "layers_shared":
        return []
    table_Oh = state.pop(name)
    for block in range(new.depth):
        state[f"blocks.{block}.attn.relative_position_bias_table"] = table_Oh.clone()
    return ["each block starts from the bias table that all of them shared"]


def _move_norm(state: dict[str, Tensor], old: ViTConfig, new: ViTConfig) -> list[str]:
    """The other norm's weights, 1 and 0, in place of those of the norm that the new model does not have."""
    if old.norm_after_pool == new.norm_after_pool:
        return []
    before, now = ("fc_norm", "norm") if old.norm_after_pool else ("norm", "fc_norm")
    for end, start in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        state[f"{now}.{end}"] = start(state.pop(f"{before}.{end}"))
    place = "follows" if now == "fc_norm" else "precedes"
    return [f"{now} is initialized in place of {before}: the norm {place} the pooling"]


def _resize_positions(state: dict[str, Tensor], old: ViTConfig, new: ViTConfig) -> None:
    how = new.position_resize
    if (table := state.get("pos_embed")) is not None:
        state["pos_embed"] = interpolate_positions(table, old.position_rows, old.grid, new.grid, how)
    if "offset_embed" in state:
        state["offset_embed"] = resize_offsets(state["offset_embed"], new.grid[0] * new.grid[1])
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name] = resize_bias_table(state[name], old.grid, new.grid)
    for axis, name in enumerate(("pos_embed_y", "pos_embed_x")):
        if name in state:
            state[name] = resize_table(state[name], (old.grid[axis], 1), (new.grid[axis], 1), how)


def resize_patches(weight_DCPP: Tensor, size: int) -> Tensor:
    """Patch projections for patches of `size` pixels a side: w' = (B^T)^+ w, B the bilinear resize of a patch.

    The best in the mean over resized patches, and where patches grow exact: w' of a patch that was enlarged is w of the
    patch (FlexiViT, arXiv 2212.08013, section 3.3, "PI-resize"; computed in float64). At the same size the very same
    tensor comes back.
    """
    old = weight_DCPP.shape[-1]
    if old == size:
        return weight_DCPP
    unit_X1PP = torch.eye(old * old, dtype=torch.float64, device=weight_DCPP.device).reshape(-1, 1, old, old)
    resized = F.interpolate(unit_X1PP, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    resize_YX = resized.flatten(1).T
    weight_DCX = weight_DCPP.to(torch.float64).flatten(2)
    return (weight_DCX @ torch.linalg.pinv(resize_YX)).unflatten(-1, (size, size)).to(weight_DCPP.dtype)


def _exchange_channels(state: dict[str, Tensor], old: ModelConfig, new: ModelConfig) -> None:
    """Both normalizations and the change of channels are linear, so they fold into the projection: exact."""
    name, bias = "patch_embed.proj.weight", "patch_embed.proj.bias"
    weight_DCPP = state[name].to(torch.float64)
    mix_CE = channel_mix(old.in_channels, new.in_channels).to(weight_DCPP.device)
    mean_C, std_C, mean_E, std_E = (
        torch.tensor(values, dtype=torch.float64, device=weight_DCPP.device)
        for values in (old.mean, old.std, new.mean, new.std)
    )
    scaled_DCPP = weight_DCPP / std_C[:, None, None]
    opaque_C = torch.zeros_like(mean_C)
    if old.in_channels in (2, 4) and new.in_channels in (1, 3):
        opaque_C[-1] = 1  # how an image without transparency is read
    moved_C = mix_CE @ mean_E + opaque_C - mean_C
    shift_D = torch.einsum("dchw,c->d", scaled_DCPP, moved_C)
    folded = torch.einsum("dchw,ce->dehw", scaled_DCPP, mix_CE * std_E)
    state[bias] = (state[bias].to(torch.float64) + shift_D).to(state[bias].dtype)
    state[name] = folded.to(state[name].dtype)


def channel_mix(old: int, new: int) -> Tensor:
    """[old, new] float64: an image's old channels from its new ones. 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.

    Gray is seen as RGB of three equal channels, RGB as gray by its luma; alpha that the old model did not know counts
    for nothing. Alpha that the new images lack is constant, so it is not in here.
    """
    colors_old, colors_new = (1 if count < 3 else 3 for count in (old, new))
    if colors_old == colors_new:
        color = torch.eye(colors_old, dtype=torch.float64)
    else:
        color = torch.ones(3, 1).double() if colors_old == 3 else torch.tensor([_LUMA], dtype=torch.float64)
    mix = torch.zeros(old, new, dtype=torch.float64)
    mix[:colors_old, :colors_new] = color
    if old in (2, 4) and new in (2, 4):
        mix[-1, -1] = 1
    return mix


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
