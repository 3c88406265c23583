"""Masked patch prediction of the Vision Transformer paper (arXiv 2010.11929, appendix B.1.2).

Half of the patch embeddings are corrupted: most by a mask token, some by another patch of the image, some not at all;
of each the mean color is predicted. Shape letters: B batch, C channels, H W image height and width, N patches, M
corrupted ones, D width, T parts of a patch that are predicted, K colors, P side of a part in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitral.data.counter_rng import Stream
from vitral.data.masking import kept_count, noise
from vitral.models.layers import Linear
from vitral.models.model import ImageModel, unit_images
from vitral.models.registry import token_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.collapse_monitors import feature_rank, feature_std
from vitral.objectives.config import MaskedPatchConfig
from vitral.objectives.losses import wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, StepOutput

LEVELS = 8  # a channel: 3 bits


class MaskedPatch(Objective):
    """Cross-entropy of the corrupted patches' mean colors (or squared error of their pixels), from all patches.

    The mask token lies in the space of embeddings, before positions are added. What is predicted comes from the image
    as it was, before normalization. Unlike in the paper's code an image of C channels has 8^C colors.
    """

    model: VisionTransformer  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    step_in_graph = True

    def __init__(self, factory: Callable[[], ImageModel], config: MaskedPatchConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        model = token_encoder(factory())
        assert model is not None
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.config, self.seed = config, context.seed
        encoder = model.config
        self.mask_token = nn.Parameter(torch.empty(encoder.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.parts = {"mean": 1, "4x4": 4}.get(config.target, encoder.patch_size)
        values = encoder.in_channels if config.target == "pixels" else LEVELS**encoder.in_channels
        self.predict = Linear(encoder.width, self.parts**2 * values)
        nn.init.normal_(self.predict.weight, std=0.02)
        nn.init.zeros_(self.predict.bias)

    def compile_key(self, step: int) -> int:
        """All steps: what is drawn follows the step inside the graph."""
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int | Tensor) -> StepOutput:
        """The loss over the corrupted patches in nats (for pixels: mean squared error in [0,1]), and `mask_top1`, the
        share of them whose color is found."""
        batch = batches["train"]
        images_BCHW = batch.views[0].images_BCHW
        patches_BND, grid = self.model.embed(images_BCHW)
        B, N, D = patches_BND.shape
        sample_ids_B = batch.sample_ids_B.to(patches_BND.device)
        order_BN = noise(self.seed, step, 0, sample_ids_B, N).argsort(dim=1)
        chosen_BM = order_BN[:, : N - kept_count(N, self.config.mask_ratio)]
        corrupted_BND = self.corrupt(patches_BND, chosen_BM, sample_ids_B, step)
        out = self.model.encode_tokens(corrupted_BND, grid)
        tokens_BMD = self.model.fc_norm(_rows(out.patches_BND, chosen_BM))
        pred_BMTK = wide(self.predict(tokens_BMD)).unflatten(-1, (self.parts**2, -1))
        target_BNTC = part_means(images_BCHW, grid, self.parts)
        target_BMTC = _rows(target_BNTC.flatten(2), chosen_BM).view(B, chosen_BM.shape[1], self.parts**2, -1)
        pooled_BD = self.model.pool(out).detach()
        metrics = {"feature_std": feature_std(pooled_BD), "feature_rank": feature_rank(pooled_BD)}
        if self.config.target == "pixels":
            return StepOutput.mean(F.mse_loss(pred_BMTK, target_BMTC.to(pred_BMTK.dtype)), B, metrics)
        classes_BMT = colors(target_BMTC)
        loss = F.cross_entropy(pred_BMTK.flatten(0, 2), classes_BMT.flatten())
        metrics["mask_top1"] = (pred_BMTK.detach().argmax(-1) == classes_BMT).float().mean()
        return StepOutput.mean(loss, B, metrics)

    def corrupt(self, patches_BND: Tensor, chosen_BM: Tensor, sample_ids_B: Tensor, step: int | Tensor) -> Tensor:
        """The embeddings with the chosen ones replaced: by the mask token, by another patch of the same image, or by
        themselves, at the config's shares."""
        B, N, D = patches_BND.shape
        M = chosen_BM.shape[1]
        kind_BM1 = noise(self.seed, step, 0, sample_ids_B, M, Stream.CORRUPT_KIND)[..., None]
        far_BM = (noise(self.seed, step, 0, sample_ids_B, M, Stream.CORRUPT_SOURCE) * (N - 1)).long() + 1
        other_BMD = _rows(patches_BND, (chosen_BM + far_BM) % N)
        masked, swapped = self.config.mask_token_prob, self.config.mask_token_prob + self.config.swap_prob
        replaced_BMD = torch.where(kind_BM1 < swapped, other_BMD, _rows(patches_BND, chosen_BM))
        replaced_BMD = torch.where(kind_BM1 < masked, self.mask_token.to(patches_BND.dtype), replaced_BMD)
        return patches_BND.scatter(1, chosen_BM[..., None].expand(-1, -1, D), replaced_BMD)

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Features that no longer differ between images."""
        if metrics.get("feature_std", 1.0) < 0.01:
            return "collapse: the features of all images are nearly equal (feature_std below 0.01)"
        return None


def part_means(images_BCHW: Tensor, grid: tuple[int, int], parts: int) -> Tensor:
    """Mean colors of `parts` x `parts` equal parts of each patch, [B, N, T, C] float32 in [0,1]; patches and parts row
    by row. A patch that the parts do not divide is averaged as adaptive pooling does."""
    unit_BCHW = unit_images(images_BCHW)
    means_BCHW = F.adaptive_avg_pool2d(unit_BCHW, (grid[0] * parts, grid[1] * parts))
    split_BCRPSP = means_BCHW.unflatten(3, (grid[1], parts)).unflatten(2, (grid[0], parts))
    return split_BCRPSP.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def colors(means: Tensor) -> Tensor:
    """Colors [..., C] in [0,1] as class indices [...]: of 8 levels a channel, the first channel counting most, so for
    RGB 64 r + 8 g + b: black is 0, white 511."""
    levels = (means * LEVELS).floor().clamp(0, LEVELS - 1).long()
    scale_C = LEVELS ** torch.arange(means.shape[-1] - 1, -1, -1, device=means.device)
    return (levels * scale_C).sum(-1)


def _rows(x_BNX: Tensor, index_BM: Tensor) -> Tensor:
    return x_BNX.gather(1, index_BM[..., None].expand(-1, -1, x_BNX.shape[-1]))
