"""A pruner of patches learns with its model, from labels and from the model that keeps all of them (Rao et al. 2021,
arXiv 2106.02034).

Shape letters: B batch, N patches, D width of the model, C classes, S blocks that prune.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.counter_rng import Stream
from vitral.data.masking import noise
from vitral.errors import UserError
from vitral.models.dynamic_vit import LearnedPruner, MaskedPruner
from vitral.models.model import ImageModel
from vitral.models.registry import token_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.config import DynamicViTConfig
from vitral.objectives.losses import cross_entropy, soft_targets, wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, StepOutput


class DynamicViT(Objective):
    """Cross-entropy of the masked model's logits, plus what pulls it to the whole model's answers and tokens, plus what
    pulls the kept shares to the configured ones (section 3.4).

    The teacher is the model as it was at the start, with all tokens; it is never trained. Raises UserError for a model
    without a pruner.
    """

    model: VisionTransformer  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(self, factory: Callable[[], ImageModel], config: DynamicViTConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        model, teacher = token_encoder(factory()), token_encoder(factory())
        if model is None or teacher is None or not isinstance(model.reduce, LearnedPruner):
            raise UserError(
                "there is no pruner to learn", where="objective.kind", got="dynamic_vit",
                hint="model.pruner_blocks=1,2 says in which blocks patches are dropped.",
            )  # fmt: skip
        teacher.reduce = None
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.teacher, self.config = teacher.requires_grad_(False).eval(), config
        keep = model.config.pruner_keep
        self.seed = context.seed
        self.shares = [keep ** (stage + 1) for stage in range(len(model.config.pruner_blocks))]

    def train(self, mode: bool = True) -> DynamicViT:
        """Training mode, but for the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss in nats, `train_top1`, and `train_kept`: the share of the patches that reaches the end.

        Raises UserError where images have several classes.
        """
        batch = batches["train"]
        images_BCHW = batch.views[0].images_BCHW
        if batch.targets["label"].ndim == 2:
            raise UserError(
                "pruners learn where an image has one class", where="objective.kind", got="multi-label data"
            )
        assert isinstance(self.model.reduce, LearnedPruner)

        def uniform(block: int, patches: int) -> Tensor:
            return noise(self.seed, step, block, batch.sample_ids_B.to(images_BCHW.device), patches, Stream.PRUNE)

        masked = MaskedPruner(self.model.reduce, uniform)
        out = self.model.encode_tokens(*self.model.embed(images_BCHW), reduce=masked)
        mask_BN = masked.mask_BN
        assert mask_BN is not None
        attended_BN = mask_BN > 0.5 if self.model.config.pool == "map" else mask_BN
        logits_BC = self.model.classify(self.model.pool(out, attended_BN))
        with torch.no_grad():
            whole = self.teacher.encode(images_BCHW)
            theirs_BC = self.teacher.classify(self.teacher.pool(whole))
        target_BC = soft_targets(batch.targets, logits_BC.shape[-1], self.config.label_smoothing)
        loss = cross_entropy(logits_BC, target_BC)
        loss = loss + self.config.answer_weight * divergence(logits_BC, theirs_BC)
        mine_BND, theirs_BND = out.patches_BND, whole.patches_BND
        if self.model.config.norm_after_pool:  # there they are of any size
            mine_BND, theirs_BND = (F.layer_norm(x_BND, x_BND.shape[-1:]) for x_BND in (mine_BND, theirs_BND))
        loss = loss + self.config.token_weight * token_distance(mine_BND, theirs_BND, mask_BN)
        loss = loss + self.config.ratio_weight * share_distance(masked.shares_B, self.shares)
        right_B = logits_BC.detach().argmax(dim=-1) == batch.targets["label"]
        metrics = {"train_top1": right_B.float().mean(), "train_kept": mask_BN.detach().mean()}
        return StepOutput.mean(loss, len(right_B), metrics)


def divergence(logits_BC: Tensor, theirs_BC: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the teacher's answers from these, in nats, mean over the batch."""
    mine_BC, theirs_BC = wide(logits_BC).log_softmax(-1), wide(theirs_BC).log_softmax(-1)
    return F.kl_div(mine_BC, theirs_BC, reduction="batchmean", log_target=True)


def token_distance(mine_BND: Tensor, theirs_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean squared difference of the kept patches' features from the teacher's, mean over an image's kept patches, then
    over images.

    The paper (equation 14) takes one mean over the kept patches of all images; so an image counts by how many of its
    patches are kept, and the loss of one image depends on the others in the batch.
    """
    square_BN = (wide(mine_BND) - wide(theirs_BND)).square().mean(-1)
    return ((square_BN * mask_BN).sum(1) / mask_BN.sum(1).clamp(min=1)).mean()


def share_distance(shares_B: list[Tensor], expected: list[float]) -> Tensor:
    """Squared difference of each image's kept share from the configured one, mean over stages and batch."""
    return torch.stack([(kept - want).square().mean() for kept, want in zip(shares_B, expected, strict=True)]).mean()
