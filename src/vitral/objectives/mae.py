"""Masked autoencoders (He et al. 2021, arXiv 2111.06377): predict the pixels of masked patches.

Shape letters: B batch, C channels, H W image height and width, N patches (h w the rows and columns of their grid), K of
them seen, M hidden, P side of a patch in pixels, X = P P C values of a patch, D width (of the encoder, then of the
decoder), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitral.data.masking import kept_count, noise
from vitral.errors import UserError
from vitral.models.attention import AttentionContext
from vitral.models.config import ViTConfig
from vitral.models.layers import Block, Linear, xavier
from vitral.models.model import ImageModel
from vitral.models.patches import patchify, unpatchify
from vitral.models.position import Grid, sincos_table
from vitral.models.registry import token_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.collapse_monitors import feature_rank, feature_std
from vitral.objectives.config import MaeConfig
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, EncoderOutput, StepOutput

_EPS = 1e-6  # added to a patch's variance, in units of normalized pixels
_GREY = 0.5  # what is shown where the encoder sees nothing


class Reconstruction(NamedTuple):
    """Images [B, C, H, W] in [0,1]: as they are; what the encoder sees, the rest gray; and the rest as predicted."""

    original_BCHW: Tensor
    masked_BCHW: Tensor
    predicted_BCHW: Tensor


class MAE(Objective):
    """Mean squared error of the hidden patches' pixels, predicted by a small decoder.

    The encoder computes the seen patches alone. What is predicted are the normalized image's pixels, by option with
    each patch brought to mean 0 and variance 1. Parameters of the decoder are named as in the published checkpoints,
    and so are values of a patch ordered: row, column, channel. Unlike in the paper's code hidden patches stand first
    among the decoder's tokens, each with the position of its place, so that its last block and its output are computed
    for them alone: the same prediction for less work. The encoder starts as it does elsewhere, with a class token of
    zeros.
    """

    model: VisionTransformer  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    step_in_graph = True
    decoder_places: Tensor

    def __init__(self, factory: Callable[[], ImageModel], config: MaeConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        model = token_encoder(factory())
        assert model is not None
        _check(model.config, config)
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.config, self.seed = config, context.seed
        encoder, width = model.config, config.decoder_width
        self.decoder_embed = Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_heads, 4 * width, norm_eps=encoder.norm_eps)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=encoder.norm_eps)
        self.decoder_pred = Linear(width, encoder.patch_size**2 * encoder.in_channels)
        self.register_buffer("decoder_places", sincos_table(model.grid, model.grid, width)[0], persistent=False)
        for block in self.decoder_blocks:
            assert isinstance(block, Block)
            block.init_weights()
        xavier(self.decoder_embed, self.decoder_pred)
        nn.init.normal_(self.mask_token, std=0.02)

    def compile_key(self, step: int) -> int:
        """All steps: what is drawn follows the step inside the graph."""
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int | Tensor) -> StepOutput:
        """The loss, a mean over the values of the hidden patches, and how much the seen patches' features differ."""
        batch = batches["train"]
        images_BCHW = batch.views[0].images_BCHW
        patches_BND, grid = self.model.embed(images_BCHW)
        seen_BK, hidden_BM = self.hide(batch.sample_ids_B.to(patches_BND.device), step, grid)
        out = self.model.encode_tokens(patches_BND, grid, seen_BK)
        pred_BMX = self.decode(out, seen_BK, hidden_BM)
        target_BMX = self.standardize(_rows(self.pixels(images_BCHW), hidden_BM))[0]
        pooled_BD = self.model.pool(out).detach()
        metrics = {"feature_std": feature_std(pooled_BD), "feature_rank": feature_rank(pooled_BD)}
        loss = F.mse_loss(pred_BMX.to(target_BMX.dtype), target_BMX)
        return StepOutput.mean(loss, len(batch.sample_ids_B), metrics)

    def hide(self, sample_ids_B: Tensor, step: int | Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Places of the seen patches [B, K] and of the hidden ones [B, M], K = clamp(N - round(N hidden), 1, N)."""
        count = grid[0] * grid[1]
        order_BN = noise(self.seed, step, 0, sample_ids_B, count).argsort(dim=1)
        kept = kept_count(count, self.config.mask_ratio)
        return order_BN[:, :kept], order_BN[:, kept:]

    def decode(self, out: EncoderOutput, seen_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """What the decoder says of the hidden patches, [B, M, X], from the encoded class token and seen patches."""
        front = [] if out.cls_BD is None else [out.cls_BD.unsqueeze(1)]
        encoded_BTD = self.decoder_embed(self.model.fc_norm(torch.cat([*front, out.patches_BND], dim=1)))
        places_ND = self._places(out.grid)
        cls_BTD, seen_BKD = encoded_BTD.to(places_ND.dtype).split([len(front), seen_BK.shape[1]], dim=1)
        x_BTD = torch.cat([self.mask_token + places_ND[hidden_BM], cls_BTD, seen_BKD + places_ND[seen_BK]], dim=1)
        for i, block in enumerate(self.decoder_blocks, 1):
            last = i == len(self.decoder_blocks)
            x_BTD = block(x_BTD, AttentionContext(queries=hidden_BM.shape[1] if last else None))
        return self.decoder_pred(self.decoder_norm(x_BTD))

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """The normalized images as patches [B, N, X], in float32 or better."""
        patches_BNX = patchify(self.model.normalize(images_BCHW), self.model.config.patch_size)
        return patches_BNX.to(torch.promote_types(patches_BNX.dtype, torch.float32))

    def standardize(self, patches_BMX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x - mean) / sqrt(unbiased variance + 1e-6) of each patch, its mean and this root; or 0 and 1 without
        `norm_pix_loss`."""
        if not self.config.norm_pix_loss:
            return patches_BMX, patches_BMX.new_zeros(()), patches_BMX.new_ones(())
        mean_BM1 = patches_BMX.mean(-1, keepdim=True)
        scale_BM1 = (patches_BMX.var(-1, keepdim=True, correction=1) + _EPS).sqrt()
        return (patches_BMX - mean_BM1) / scale_BM1, mean_BM1, scale_BM1

    @torch.no_grad()
    def reconstruct(self, images_BCHW: Tensor, sample_ids_B: Tensor | None = None, step: int = 0) -> Reconstruction:
        """Images in [0,1] or uint8 with their hidden patches predicted. Which ones these are depends on `sample_ids_B`
        (one for each image; default: their numbers), on `step` and on the run's seed.

        With `norm_pix_loss` the prediction knows a patch but for its brightness and contrast: these are the true ones.
        Put the objective in evaluation mode before. Raises UserError as `model.embed` does.
        """
        patches_BND, grid = self.model.embed(images_BCHW)
        sample_ids_B = torch.arange(len(images_BCHW)) if sample_ids_B is None else sample_ids_B
        seen_BK, hidden_BM = self.hide(sample_ids_B.to(patches_BND.device), step, grid)
        pred_BMX = self.decode(self.model.encode_tokens(patches_BND, grid, seen_BK), seen_BK, hidden_BM)
        original_BNX = self.pixels(images_BCHW)
        _, mean, scale = self.standardize(_rows(original_BNX, hidden_BM))
        index_BMX = hidden_BM[..., None].expand_as(pred_BMX)
        predicted_BNX = original_BNX.scatter(1, index_BMX, pred_BMX.to(original_BNX.dtype) * scale + mean)
        original_BCHW, predicted_BCHW = (
            (unpatchify(x_BNX, grid, self.model.config.in_channels) * self.model.std + self.model.mean).clamp(0, 1)
            for x_BNX in (original_BNX, predicted_BNX)
        )
        is_hidden_BNX = torch.zeros_like(original_BNX).scatter(1, index_BMX, 1.0)
        is_hidden_BCHW = unpatchify(is_hidden_BNX, grid, self.model.config.in_channels).bool()
        return Reconstruction(original_BCHW, original_BCHW.masked_fill(is_hidden_BCHW, _GREY), predicted_BCHW)

    def pictures(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return originals, visible patches and reconstructions."""
        return dict(zip(("original", "visible patches", "reconstruction"), self.reconstruct(images_BCHW), strict=True))

    def _places(self, grid: Grid) -> Tensor:
        """The decoder's fixed positions [N, D] on this grid."""
        if grid == self.model.grid:
            return self.decoder_places
        table_1ND = sincos_table(grid, self.model.grid, self.config.decoder_width, self.decoder_places.device)
        return table_1ND[0].to(self.decoder_places.dtype)


def _rows(x_BNX: Tensor, index_BM: Tensor) -> Tensor:
    return x_BNX.gather(1, index_BM[..., None].expand(-1, -1, x_BNX.shape[-1]))


def _check(encoder: ViTConfig, config: MaeConfig) -> None:
    """Raises UserError for encoders that cannot be trained so."""
    if encoder.pool == "map":
        raise UserError("objective.kind=mae trains no pooling", where="model.pool", got="map", expected="cls or avg")
    if encoder.stem_blocks is not None:
        raise UserError(
            "a convolutional stem looks from seen patches into hidden ones", where="model.stem_blocks",
            got=list(encoder.stem_blocks), expected="patches of pixels, for objective.kind=mae",
        )  # fmt: skip
    count = encoder.grid[0] * encoder.grid[1]
    if kept_count(count, config.mask_ratio) == count:
        raise UserError("hides no patch", where="objective.mask_ratio", got=f"{config.mask_ratio} of {count} patches")
    if config.norm_pix_loss and encoder.patch_size**2 * encoder.in_channels == 1:
        raise UserError(
            "patches of one value have no variance", where="objective.norm_pix_loss", got="true", expected="false"
        )
