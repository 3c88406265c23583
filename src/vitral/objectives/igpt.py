"""Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"): pre-training on the codes of images, and
fine-tuning on classes and codes at once.

Shape letters: B batch, C channels or classes, H W image height and width, N codes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitral.data.counter_rng import Stream, uniform
from vitral.models.igpt import IGPT
from vitral.models.masked_sampling import draw_codes
from vitral.models.model import ImageModel
from vitral.models.registry import code_model
from vitral.models.search_config import SearchConfig
from vitral.objectives.igpt_config import IGPTFinetuneConfig, IGPTObjectiveConfig
from vitral.objectives.losses import cross_entropy, soft_targets
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, StepOutput

_GRAY = 0.5  # what is shown of hidden pixels


class ImageGPT(Objective):
    """Cross-entropy of the codes, in nats per token: of each code given those before it, or of hidden codes given the
    others (section 2.2 of the paper), which differ between samples and steps."""

    model: IGPT  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    step_in_graph = True

    def __init__(
        self, factory: Callable[[], ImageModel], config: IGPTObjectiveConfig, context: ObjectiveContext
    ) -> None:
        super().__init__(factory, config, context)
        self.model = _codes_of(factory())  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.config, self.seed = config, context.seed

    def compile_key(self, step: int) -> int:
        """Nothing depends on the step but random numbers."""
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss, normalized by the number of predicted codes, and `train_bits`: bits per token."""
        batch = batches["train"]
        images_BCHW = batch.views[0].images_BCHW
        sample_ids_B = batch.sample_ids_B.to(images_BCHW.device)
        labels_B = None
        if self.model.config.class_tokens:
            dropped_B = uniform(self.seed, step, 0, sample_ids_B, Stream.LABEL_DROP) < self.config.label_dropout
            labels_B = batch.targets["label"].masked_fill(dropped_B, -1)
        nats_B, count_B = self.model.code_nats(images_BCHW, labels_B, sample_ids_B, self.seed, step)
        nats, count = nats_B.sum(), count_B.sum().to(nats_B.dtype)
        return StepOutput(nats, count, {"train_bits": (nats / count).detach() / math.log(2)})

    @torch.no_grad()
    def pictures(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return originals, their colors, and the lower half completed, or hidden pixels predicted."""
        model = self.model
        codes_BN, ids_B = model.codes(images_BCHW), torch.arange(len(images_BCHW), device=model.device)
        colors_BCHW = model.images(codes_BN)
        columns = {"original": images_BCHW, "as its codes show it": colors_BCHW}
        if not model.config.causal:
            hidden_BN = model.hide(ids_B, self.seed, 0)
            best_BN = model.code_head(model.read(codes_BN, None, hidden_BN).patches_BND).argmax(-1)
            hidden_B1HW = hidden_BN.unflatten(1, model.grid)[:, None]
            for axis in (2, 3):  # from codes to pixels
                hidden_B1HW = hidden_B1HW.repeat_interleave(model.config.stride, dim=axis)
            columns["shown"] = colors_BCHW.masked_fill(hidden_B1HW, _GRAY)
            columns["hidden codes predicted"] = model.images(codes_BN.where(~hidden_BN, best_BN))
        if model.config.draws:
            given_BT = codes_BN[:, : model.config.upper_half]
            drawn_BN = draw_codes(model, ids_B * 0 - 1, SearchConfig(search="sample"), range(len(ids_B)), given_BT)
            columns["lower half sampled"] = model.images(drawn_BN)
        return columns


class IGPTFinetune(Objective):
    """Cross-entropy of the classes, by a head on the mean of the tokens, plus that of the codes (section 2.3)."""

    model: IGPT  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(
        self, factory: Callable[[], ImageModel], config: IGPTFinetuneConfig, context: ObjectiveContext
    ) -> None:
        super().__init__(factory, config, context)
        self.model = _codes_of(factory())  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.config = config

    def compile_key(self, step: int) -> int:
        """Nothing depends on the step."""
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The sum of both losses in nats, and `train_top1` and `train_bits`."""
        batch = batches["train"]
        codes_BN = self.model.codes(batch.views[0].images_BCHW)
        out = self.model.read(codes_BN)
        logits_BC = self.model.classify(self.model.pool(out))
        target_BC = soft_targets(batch.targets, logits_BC.shape[-1], self.config.label_smoothing)
        nats = self.model.nll(out.patches_BND, codes_BN).mean()
        right = (logits_BC.detach().argmax(dim=-1) == batch.targets["label"]).float().mean()
        metrics = {"train_top1": right, "train_bits": nats.detach() / math.log(2)}
        loss = cross_entropy(logits_BC, target_BC) + self.config.generative_weight * nats
        return StepOutput.mean(loss, len(codes_BN), metrics)


def _codes_of(model: ImageModel) -> IGPT:
    found = code_model(model)
    assert found is not None
    return found
