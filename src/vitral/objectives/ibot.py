"""iBOT: DINO plus prediction of the teacher's output at masked patches.

Zhou et al. 2022 (arXiv 2111.07832); by option what DINOv2 (2304.07193) changed. Shape letters: G views of the teacher,
V views, B images, R rows (large views: G B), N patches, M gathered patches, K prototypes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitral.data.counter_rng import Stream
from vitral.data.masking import Grid, blocks, noise
from vitral.errors import UserError
from vitral.models.model import ImageModel
from vitral.objectives.config import IbotConfig
from vitral.objectives.losses import wide
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.projection_head import ProjectionHead
from vitral.objectives.self_distillation import GLOBAL, SelfDistillation
from vitral.objectives.sinkhorn import cross_view_loss
from vitral.objectives.teacher import EMATeacher
from vitral.structs import Batch, StepOutput


class Masked(NamedTuple):
    """Which patches of the large views are hidden: bool [R, N]; their places in [R N], padded to a fixed number [M];
    which places are no padding, bool [M]; and how many patches of its view are hidden, for each place."""

    mask_RN: Tensor
    place_M: Tensor
    is_real_M: Tensor
    number_M: Tensor

    def share_M(self, dtype: torch.dtype) -> Tensor:
        """What each place weighs: all of a view together one over the number of views, padding nothing."""
        return self.is_real_M.to(dtype) / (self.number_M.clamp(min=1) * len(self.mask_RN))


class Ibot(SelfDistillation):
    """DINO's loss, with masked large views, and cross-entropy of the masked patches with the teacher's.

    A view's patches weigh as one image, and views without masked patches count as zero (section 3.2 of the paper and
    its code). The mask token takes the place of patch embeddings before positions are added; the teacher never sees it.
    The center of patches is the moving mean over masked patches only, each view weighing the same; the paper's code
    takes all patches, for which the head would have to be computed on all.
    """

    patch_center_K: Tensor

    def __init__(self, factory: Callable[[], ImageModel], config: IbotConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context, second=config.patch_head == "last_layer")
        encoder = self.model.config
        if encoder.pool not in ("cls", "avg"):
            raise UserError(
                "the head reads patches as it reads pooled images", where="model.pool", got=encoder.pool,
                expected="cls or avg",
            )  # fmt: skip
        self.config, self.mask_token = config, nn.Parameter(torch.zeros(encoder.width))
        self.own_head: ProjectionHead | None = None
        self.teacher_own_head: EMATeacher | None = None
        if config.patch_head == "own":
            self.own_head = self.make_head()
            self.teacher_own_head = EMATeacher(self.own_head, self.make_head())
        self.register_buffer("patch_center_K", torch.zeros(config.out_dim))
        self.start()

    @property
    def prototypes(self) -> list[nn.Parameter]:
        """What the first epochs leave as it is."""
        return self.head.last_parameters + ([] if self.own_head is None else self.own_head.last_parameters)

    @property
    def adds_up(self) -> bool:
        """Not with `mask_spread` either, which deals out the ratios of a micro-batch."""
        return super().adds_up and not self.config.mask_spread

    @property
    def teachers(self) -> list[EMATeacher]:
        """All that follow."""
        return super().teachers + ([] if self.teacher_own_head is None else [self.teacher_own_head])

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss in nats with its parts, `loss_views` and `loss_patches`, and what a collapse shows in."""
        batch = batches["train"]
        config = self.config
        large, small = self.large_and_small(batch)
        masked = draw_masks(config, self.context.seed, step, batch.sample_ids_B.to(large.device), self.model.grid)
        with torch.no_grad():
            out = self.taught.encode(large)
            taught_RD = self.taught.pool(out)
            logits_RK = self.teacher_head(taught_RD)
            target_RK = self.targets(logits_RK, self.center_K, step)
            seen_MD = self.taught.fc_norm(_at(out.patches_BND, masked))
            patch_logits_MK = self._patches_of_teacher(seen_MD, masked)
            target_MK = self.targets(patch_logits_MK, self.patch_center_K, step, masked.is_real_M)
        patches_RND, grid = self.model.embed(large)
        hidden_RND = torch.where(masked.mask_RN[..., None], self.mask_token.to(patches_RND.dtype), patches_RND)
        out = self.model.encode_tokens(hidden_RND, grid)
        pooled = [self.model.pool(out)] + ([] if small is None else [self.model.pool(self.model.encode(small))])
        pred_RK = self.head(torch.cat(pooled)) / config.student_temperature
        pred_MK = self._patches_of_student(self.model.fc_norm(_at(out.patches_BND, masked)), masked)
        loss_views = cross_view_loss(target_RK.unflatten(0, (GLOBAL, -1)), pred_RK.unflatten(0, (len(batch.views), -1)))
        loss_patches = patch_loss(target_MK, pred_MK / config.student_temperature, masked)
        loss = loss_views + config.patch_weight * loss_patches
        metrics = {"loss_views": loss_views.detach(), "loss_patches": loss_patches.detach()}
        metrics |= self.monitors(target_RK, taught_RD)
        if config.koleo:
            metrics["koleo"] = (loss_koleo := self.koleo_loss(pooled[0])).detach()
            loss = loss + config.koleo * loss_koleo
        means = {"logits": wide(logits_RK).mean(0)} | masked_mean(wide(patch_logits_MK), masked)
        return StepOutput.mean(loss, len(batch.sample_ids_B), metrics, means)

    def _patches_of_student(self, x_MD: Tensor, masked: Masked) -> Tensor:
        if self.own_head is not None:
            return self.own_head(x_MD, masked.is_real_M)
        return self.head(x_MD, masked.is_real_M, True)

    def _patches_of_teacher(self, x_MD: Tensor, masked: Masked) -> Tensor:
        if self.teacher_own_head is not None:
            return self.teacher_own_head(x_MD, masked.is_real_M)
        return self.teacher_head(x_MD, masked.is_real_M, True)

    def move_centers(self, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """That of images, and that of patches where any were masked."""
        super().move_centers(means, found_inf)
        share = means["patch_share"]
        none = (share == 0).to(found_inf.dtype)
        self.move_center(self.patch_center_K, means["patch_logits"] / share, torch.maximum(found_inf, none))


def draw_masks(config: IbotConfig, seed: int, step: int, sample_ids_B: Tensor, grid: Grid) -> Masked:
    """The masks of both large views of these samples, with exact counts, all of fixed size.

    A view is masked with `mask_probability`, at a ratio uniform in `mask_ratio`; or, with `mask_spread`, as many views
    of the samples at hand as that are, at ratios in the middles of equal parts of `mask_ratio`, dealt out at random.
    """
    N, masks, bound = grid[0] * grid[1], list[Tensor](), 0
    for view in range(GLOBAL):
        count_B, most = _counts(config, seed, step, view, sample_ids_B, N)
        if config.mask == "blocks":
            masks.append(blocks(seed, step, view, sample_ids_B, grid, count_B))
        else:
            rank_BN = noise(seed, step, view, sample_ids_B, N).argsort(1).argsort(1)
            masks.append(rank_BN < count_B[:, None])
        bound += most
    mask_RN = torch.cat(masks)
    hidden_X = mask_RN.flatten()
    place_M = hidden_X.to(torch.uint8).argsort(descending=True, stable=True)[:bound]
    return Masked(mask_RN, place_M, hidden_X[place_M], mask_RN.sum(1)[place_M // N])


def _counts(config: IbotConfig, seed: int, step: int, view: int, sample_ids_B: Tensor, N: int) -> tuple[Tensor, int]:
    """How many patches of each sample are hidden, [B], and the most that all of them may be."""
    (low, high), B = config.mask_ratio, len(sample_ids_B)
    drawn_B2 = noise(seed, step, view, sample_ids_B, 2, Stream.MASK_SHARE)
    if not config.mask_spread:
        ratio_B = low + (high - low) * drawn_B2[:, 0].double()
        is_masked_B = drawn_B2[:, 1] < config.mask_probability
        return (ratio_B * N).round().long() * is_masked_B, B * round(high * N)
    some = round(B * config.mask_probability)
    counts = [round((low + (high - low) * (i + 0.5) / some) * N) for i in range(some)] + [0] * (B - some)
    dealt_B = drawn_B2[:, 0].argsort().argsort()
    return torch.tensor(counts, device=sample_ids_B.device)[dealt_B], sum(counts)


def patch_loss(target_MK: Tensor, pred_MK: Tensor, masked: Masked) -> Tensor:
    """Cross-entropy at the masked patches, mean over those of a view, then over all views, masked or not; in nats
    (iBOT, equation 2). `pred_MK` are logits over the temperature."""
    terms_M = -(target_MK * wide(pred_MK).log_softmax(-1)).sum(-1)
    return terms_M @ masked.share_M(terms_M.dtype)


def masked_mean(logits_MK: Tensor, masked: Masked) -> dict[str, Tensor]:
    """For the center: the sum over views of the mean over each one's masked patches, and how many views have some, both
    over the number of views, so that averages over micro-batches and processes are those of the whole batch."""
    share_M = masked.share_M(logits_MK.dtype)
    return {"patch_logits": share_M @ logits_MK, "patch_share": share_M.sum()}


def _at(patches_RND: Tensor, masked: Masked) -> Tensor:
    return patches_RND.flatten(0, 1)[masked.place_M]
