"""Virtual adversarial training (VAT): the prediction is to withstand the small change of an image that moves it most.

Miyato et al. 2018, arXiv 1704.03976. The math is in pure functions over a function from images to logits, which must be
the same function in all calls: without dropout and drop-path, in float32. Shape letters: B batch, C classes, X values
of an image; images are [B, C, H, W], written BCHW.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitral.attacks.losses import kl_divergence
from vitral.data.counter_rng import normals
from vitral.models.model import ImageModel, unit_images
from vitral.objectives.losses import wide
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.semi_supervised import SemiSupervised, UnlabeledPart, steady
from vitral.objectives.semi_supervised_config import VATConfig
from vitral.structs import Batch

LogitsOf = Callable[[Tensor], Tensor]


def prediction_entropy(logits_BC: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) per sample, [B], in nats; finite, gradient included, at one-hot
    probabilities."""
    log_p_BC = wide(logits_BC).log_softmax(-1)
    return -(log_p_BC.exp() * log_p_BC).sum(-1)


def unit(x_BCHW: Tensor, fallback_BCHW: Tensor) -> Tensor:
    """Return each sample at L2 norm 1 over all its values; that of `fallback_BCHW` where a sample is 0.

    Divides by the largest value first, since squares of small gradients underflow."""
    most_B111 = x_BCHW.abs().amax((1, 2, 3), keepdim=True)
    x_BCHW = torch.where(most_B111 > 0, x_BCHW / most_B111.clamp(min=torch.finfo(x_BCHW.dtype).tiny), fallback_BCHW)
    return x_BCHW / x_BCHW.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=torch.finfo(x_BCHW.dtype).tiny)


def adversarial_direction(
    logits_of: LogitsOf, images_BCHW: Tensor, log_q_BC: Tensor, start_BCHW: Tensor, *, xi: float, iterations: int
) -> Tensor:
    """Return unit vectors [B, C, H, W] along which the divergence from q grows fastest, without gradient: equations 11
    and 12 of the paper.

    Each power iteration takes the gradient of the divergence at a distance `xi` in the direction so far. At distance 0
    this gradient is 0, so a tiny `xi` leaves only rounding (below 1e-5 for pixels in [0,1] in float32). From 1e-4 to
    1e-2 the result is the dominant eigenvector of the Hessian, as in the paper; at `xi` = eps it is the steepest
    direction where the perturbation ends, which moves the prediction further. Parameters get no gradients. A constant
    model returns the start.
    """
    direction_BCHW = unit(start_BCHW, torch.ones_like(start_BCHW))
    with torch.enable_grad():
        for _ in range(iterations):
            moved_BCHW = (images_BCHW + xi * direction_BCHW).detach().requires_grad_()
            divergence = kl_divergence(wide(logits_of(moved_BCHW)), log_q_BC.detach()).sum()
            (gradient_BCHW,) = torch.autograd.grad(divergence, moved_BCHW)
            direction_BCHW = unit(gradient_BCHW.to(direction_BCHW.dtype), direction_BCHW)
    return direction_BCHW.detach()


class VAT(SemiSupervised):
    """KL divergence of the prediction for an image from that for the image changed adversarially, and the entropy.

    All passes over unlabeled images run in evaluation mode and float32: with dropout, or in bfloat16, the divergence of
    equal images would not be 0, and small changes would drown in noise.
    """

    def __init__(self, factory: Callable[[], ImageModel], config: VATConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.config = config
        self.xi = config.eps if config.xi == "auto" else config.xi

    def unlabeled_part(self, batch: Batch, step: int) -> UnlabeledPart:
        """Return the divergence plus the weighted entropy; metric `vat_loss`: the divergence, `prediction_entropy`: the
        mean entropy, both in nats."""
        config, images_BCHW = self.config, unit_images(batch.views[0].images_BCHW)
        ids_B = batch.sample_ids_B.to(images_BCHW.device)
        start_BX = normals(self.seed, step, 0, ids_B, images_BCHW[0].numel())
        with steady(self.model, images_BCHW, wide=True):
            with torch.set_grad_enabled(torch.is_grad_enabled() and config.entropy_weight > 0):
                logits_BC = self.model(images_BCHW)
            log_q_BC = wide(logits_BC.detach()).log_softmax(-1)
            change_BCHW = config.eps * adversarial_direction(
                self.model, images_BCHW, log_q_BC, start_BX.view_as(images_BCHW).to(images_BCHW.dtype),
                xi=self.xi, iterations=config.power_iterations,
            )  # fmt: skip
            divergence = kl_divergence(wide(self.model(images_BCHW + change_BCHW)), log_q_BC).mean()
        spread = prediction_entropy(logits_BC).mean()
        # The weight of the sum is unlabeled_weight; entropy_weight counts against the supervised loss, as the paper's.
        loss = divergence
        if config.entropy_weight:
            loss = loss + config.entropy_weight / config.unlabeled_weight * spread
        metrics = {"vat_loss": divergence.detach(), "prediction_entropy": spread.detach()}
        return UnlabeledPart(loss, logits_BC, metrics)
