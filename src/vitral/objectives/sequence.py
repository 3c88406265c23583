"""Texts with teacher forcing: cross-entropy of each next token (arXiv 1706.03762), or CTC (Graves et al. 2006).

Shape letters: B batch, T positions of the target, V vocabulary, F frames of CTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.text.batches import shifted
from vitral.data.text.tokenizer import END, PAD
from vitral.models.sequence_model import SequenceModel
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.sequence_config import SequenceLossConfig
from vitral.structs import Batch, StepOutput


class SequenceLoss(Objective):
    """Cross-entropy in nats per token of the whole batch, the end included, with label smoothing over all V tokens; or,
    for a model of CTC, the negative log-likelihood per token, the end not included."""

    model: SequenceModel

    def __init__(
        self, factory: Callable[[], SequenceModel], config: SequenceLossConfig, context: ObjectiveContext
    ) -> None:
        super().__init__(factory, config, context)  # pyright: ignore[reportArgumentType]
        self.model = factory()  # pyright: ignore[reportIncompatibleVariableOverride] - set once, here
        self.label_smoothing = config.label_smoothing

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss, and `train_token_accuracy`, the share of tokens that are the likeliest ones (not of CTC)."""
        batch = batches["train"]
        source, text_BT = source_of(batch), batch.targets["text"]
        if not self.model.config.decodes_steps:
            loss, tokens = ctc_loss(self.model(source), text_BT, self.model.config.vocabulary)
            return StepOutput(loss, tokens, {})
        target_in_BT, target_BT = shifted(text_BT)
        logits_BTV = self.model(source, target_in_BT).float()
        loss = F.cross_entropy(
            logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=PAD, reduction="sum",
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
        real_BT = target_BT != PAD
        tokens = real_BT.sum()
        right = ((logits_BTV.detach().argmax(-1) == target_BT) & real_BT).sum()
        return StepOutput(loss, tokens, {"train_token_accuracy": right / tokens})


def source_of(batch: Batch) -> Tensor:
    """What the model reads: images, or texts."""
    return batch.views[0].images_BCHW if batch.views else batch.targets["source"]


def ctc_loss(logits_BFV: Tensor, text_BT: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Sum over the batch of -log p(text), nats, and the number of its tokens; the end behind a text is not learned.

    Infinite for a text that needs more than F frames: one per token, and one more between two equal ones.
    """
    length_B = ((text_BT != PAD) & (text_BT != END)).sum(1)
    log_probs_FBV = logits_BFV.float().log_softmax(-1).transpose(0, 1)
    frames_B = torch.full_like(length_B, log_probs_FBV.shape[0])
    return F.ctc_loss(log_probs_FBV, text_BT, frames_B, length_B, blank=blank, reduction="sum"), length_B.sum()
