"""Exponential moving average of the weights (Polyak and Juditsky 1992), whose memory grows with the run."""

from __future__ import annotations

from torch import Tensor, nn

from vitral.models.ema import EMA


class WeightEMA:
    """A second model whose weights follow the first one's: average += (1 - decay_t) * (weights - average).

    decay_t = min(decay, (1 + t) / (1 + warmup + t)), t counted in updates: the memory, 1 / (1 - decay_t) updates, is at
    most about t / warmup, so a run of any length ends on an average of its own late weights (9: TensorFlow's rule for
    `num_updates`; why memory should be a share of the run: Karras et al. 2023, arXiv 2312.02696, section 3.1). With
    warmup 0 the decay is constant, and a start at random weights is remembered for 1 / (1 - decay) updates.

    `average` must be built fresh; it starts as a copy, is always in evaluation mode and takes no gradients. Buffers are
    copied; what is not trained stays as it is.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float, warmup: float = 9) -> None:
        self.model, self.average, self.decay, self.warmup, self.updates = model, average, decay, warmup, 0
        average.load_state_dict(model.state_dict())
        average.requires_grad_(False).eval()
        self._follower = EMA(average, model)

    def update(self, found_inf: Tensor | None = None) -> None:
        """Move the average one step; to be called after each optimizer step. Where `found_inf`, a number, is 1, nothing
        moves; on another device than the CPU the step is counted all the same, as nobody waits for that number."""
        if found_inf is not None and found_inf.is_cpu and found_inf:
            return
        decay = min(self.decay, (1 + self.updates) / (1 + self.warmup + self.updates))
        self.updates += 1
        self._follower.move(1 - decay, found_inf)
