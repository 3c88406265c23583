"""Shared parts of DINO and iBOT: student, teacher, heads, targets, and state between steps.

Shape letters: G B K views of the teacher, images, prototypes; R rows; C H W of an image; h heads, T tokens, N patches,
D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vitral import distributed
from vitral.models.model import ImageModel
from vitral.models.registry import token_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.collapse_monitors import entropy, feature_rank, feature_std
from vitral.objectives.config import SelfDistillationConfig
from vitral.objectives.koleo import koleo
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.projection_head import ProjectionHead
from vitral.objectives.sinkhorn import centered, sinkhorn
from vitral.objectives.teacher import EMATeacher, cosine
from vitral.structs import Batch
from vitral.weights.dino_checkpoint import read_distilled
from vitral.weights.tensors import check_match

GLOBAL = 2  # views that the teacher sees


class SelfDistillation(Objective):
    """A student's encoder (`model`) and head, the teachers of both, and the moving mean of the teacher's logits.

    The teacher's encoder is evaluated and saved.
    """

    model: VisionTransformer  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    center_K: Tensor

    def __init__(
        self,
        factory: Callable[[], ImageModel],
        config: SelfDistillationConfig,
        context: ObjectiveContext,
        *,
        second: bool = False,
    ) -> None:
        """second: the heads have other prototypes for patches."""
        super().__init__(factory, config, context)
        model, teacher = token_encoder(factory()), factory()
        assert model is not None
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.distilled, self.context, self.second = config, context, second
        self.head = self.make_head()
        self.teacher, self.teacher_head = EMATeacher(model, teacher), EMATeacher(self.head, self.make_head())
        self.register_buffer("center_K", torch.zeros(config.out_dim))

    def start(self) -> None:
        """Takes over both networks, heads and centers of the configured training checkpoint, if any, by their names.
        Raises UserError where anything is missing, left over or of another shape."""
        file = self.distilled.checkpoint
        if file is None:
            return
        mine, theirs = self.state_dict(), read_distilled(Path(file).expanduser())
        for name in [name for name in theirs if "last_layer2." in name and name not in mine]:
            if torch.equal(theirs[name], theirs[name.replace("last_layer2", "last_layer")]):
                del theirs[name]  # a shared layer is there by both of its names
        hint = (
            "objective.patch_head, prototypes and head_* have to be those of the checkpoint, and model.* its encoder's."
        )
        check_match(mine, theirs, file, hint=hint)
        self.load_state_dict(theirs)

    def make_head(self) -> ProjectionHead:
        """A fresh head behind the model's pooled features."""
        config = self.distilled
        return ProjectionHead(
            self.model.config.pooled_width, config.out_dim, config.head_depth, config.head_hidden,
            config.head_bottleneck, norm=config.head_norm == "batch", fixed=config.norm_last_layer, second=self.second,
        )  # fmt: skip

    @property
    def eval_model(self) -> ImageModel:
        """The teacher's encoder."""
        return self.taught

    @property
    def taught(self) -> VisionTransformer:
        """The teacher's encoder, to be called without gradients."""
        assert isinstance(self.teacher.module, ImageModel)
        module = token_encoder(self.teacher.module)
        assert module is not None
        return module

    @property
    def uses_collectives(self) -> bool:
        """Sinkhorn, batch norms and KoLeo look at the rows of all processes."""
        config = self.distilled
        return config.centering == "sinkhorn" or config.head_norm == "batch" or config.koleo > 0

    @property
    def prototypes(self) -> list[nn.Parameter]:
        """What the first epochs leave as it is."""
        return self.head.last_parameters

    def temperature(self, step: int) -> float:
        """The teacher's, linear in the warm-up: `teacher_temperature_start` at step 0."""
        config, warmup = self.distilled, self.distilled.temperature_warmup
        steps = warmup * (self.context.epoch_steps if warmup >= 1 else self.context.steps)
        done = min(step / steps, 1.0) if steps else 1.0
        start = config.teacher_temperature_start
        return start + (config.teacher_temperature - start) * done

    def targets(self, logits_RK: Tensor, center_K: Tensor, step: int, is_real_R: Tensor | None = None) -> Tensor:
        """What the student is to say, [R, K]; rows sum to 1. Rows that are not real are padding."""
        config, temperature = self.distilled, self.temperature(step)
        if config.centering == "sinkhorn":
            return sinkhorn(logits_RK, temperature, config.sinkhorn_rounds, is_real_R)
        return centered(logits_RK, center_K, temperature)

    def large_and_small(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The views' images by their size, one view behind the other: [G B, C, H, W], and the small ones, if any."""
        images = [view.images_BCHW for view in batch.views]
        return torch.cat(images[:GLOBAL]), torch.cat(images[GLOBAL:]) if len(images) > GLOBAL else None

    def koleo_loss(self, pooled_RD: Tensor) -> Tensor:
        """The KoLeo loss, mean over the large views, each separately."""
        views = pooled_RD.chunk(GLOBAL)
        return torch.stack([koleo(view_BD) for view_BD in views]).mean()

    @torch.no_grad()
    def monitors(self, target_RK: Tensor, pooled_RD: Tensor) -> dict[str, Tensor]:
        """Entropy of the targets and of their mean, in nats; spread and rank of the teacher's features of one view."""
        pooled_BD = pooled_RD.chunk(GLOBAL)[0]
        return {
            "teacher_entropy": entropy(target_RK), "teacher_mean_entropy": entropy(target_RK.mean(0, keepdim=True)),
            "feature_std": feature_std(pooled_BD), "feature_rank": feature_rank(pooled_BD),
        }  # fmt: skip

    def before_update(self, step: int) -> None:
        """In the first epochs prototypes have no gradient: neither it nor weight decay moves them."""
        if step < self.distilled.freeze_last_layer * self.context.epoch_steps:
            for parameter in self.prototypes:
                parameter.grad = None

    def after_update(self, step: int, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """The teacher follows the student, the center the teacher's logits; neither in a step that was skipped."""
        config = self.distilled
        momentum = cosine(step, self.context.steps, config.momentum, config.momentum_final)
        for teacher in self.teachers:
            teacher.update(momentum, found_inf)
        if config.centering == "mean":
            self.move_centers(dict(zip(means, distributed.mean(means.values()), strict=True)), found_inf)

    @property
    def teachers(self) -> list[EMATeacher]:
        """All that follow."""
        return [self.teacher, self.teacher_head]

    def move_centers(self, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """`means` are those of all processes."""
        self.move_center(self.center_K, means["logits"], found_inf)

    @torch.no_grad()
    def move_center(self, center_K: Tensor, mean_K: Tensor, found_inf: Tensor) -> None:
        """center <- m center + (1 - m) mean; where `found_inf` is 1 it stays (the mean may be NaN)."""
        moved_K = center_K.lerp(mean_K.to(center_K.dtype), 1 - self.distilled.center_momentum)
        center_K.copy_(torch.where(found_inf > 0, center_K, moved_K))

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """A collapse, and which way it goes."""
        most = math.log(self.distilled.out_dim)
        if metrics.get("feature_std", 1.0) < 0.01:
            return "collapse: the teacher's features of all images are nearly equal (feature_std below 0.01)"
        if metrics.get("teacher_entropy", 0.0) > 0.999 * most:
            return (
                "collapse: the teacher says the same of every prototype (teacher_entropy near its most, "
                f"{most:.2f} nats). A lower objective.teacher_temperature or a longer warm-up may help"
            )
        if metrics.get("teacher_mean_entropy", most) < 0.1:
            return (
                "collapse: the teacher puts all images to one prototype (teacher_mean_entropy near 0). Smaller "
                "objective.center_momentum, or objective.centering=sinkhorn, may help"
            )
        return None

    def pictures(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Patches colored by the three directions in which their features differ most; and, where the class token is
        read, what it attends to in the last block, mean over the heads."""
        model = self.taught
        name = f"blocks.{len(model.blocks) - 1}.attn.map"
        out = model.encode(images_BCHW, capture=(name,))
        size = (images_BCHW.shape[-2], images_BCHW.shape[-1])
        columns = {"image": images_BCHW, "features of its patches": _shown(_colors(out.patches_BND), out.grid, size)}
        if model.config.pool in ("cls", "cls_avg"):
            seen_BN1 = out.captured[name].mean(1)[:, 0, model.prefix_tokens :, None].float()
            columns["class token's attention"] = _shown(seen_BN1 / seen_BN1.amax(1, keepdim=True), out.grid, size)
        return columns


def _colors(patches_BND: Tensor) -> Tensor:
    """Places along the first three principal axes of all patches, [B, N, 3], from 0 to 1 within two deviations."""
    rows_XD = patches_BND.flatten(0, 1).float()
    _, _, axes_DD = torch.linalg.svd(rows_XD - rows_XD.mean(0), full_matrices=False)
    places_X3 = (rows_XD - rows_XD.mean(0)) @ axes_DD[:3].T
    unit_X3 = (places_X3 / places_X3.std(0).clamp(min=1e-6) / 4 + 0.5).clamp(0, 1)
    return unit_X3.view(*patches_BND.shape[:2], -1)


def _shown(values_BNC: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A number, or a color, a patch as images [B, C, H, W]."""
    return nn.functional.interpolate(values_BNC.mT.unflatten(2, grid), size, mode="nearest")
