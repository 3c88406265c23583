"""Interface of attacks: images in [0,1] and labels in, adversarial images out.

Shape letters: B batch, C H W channels, height and width of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitral.attacks.ball import Ball, Noise, as_eps
from vitral.attacks.config import AttackConfig
from vitral.attacks.losses import AttackLoss, cross_entropy
from vitral.attacks.quiet import quiet
from vitral.errors import UserError

Classifier = Callable[[Tensor], Tensor]  # images [B, C, H, W] in [0,1] to logits [B, classes]


@dataclass(frozen=True)
class Problem:
    """What an attack works on: the model, the balls around the images, the loss to maximize, and the random numbers.

    labels: classes int64 [B], target distributions [B, classes], or pairs (true class, target class) int64 [B, 2].
    """

    model: Classifier
    ball: Ball
    labels: Tensor
    loss: AttackLoss
    noise: Noise

    @property
    def images_BCHW(self) -> Tensor:
        """The unchanged images."""
        return self.ball.center_BCHW

    @property
    def eps_B111(self) -> Tensor:
        """The radius of each ball."""
        return self.ball.eps_B111

    def gradient(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of each sample's loss by its image, the losses [B], and whether the answers are wrong.

        Gradients of parameters are not computed.
        """
        x_BCHW = x_BCHW.detach().requires_grad_(True)
        logits_BK = self.model(x_BCHW)
        loss_B = self.loss(logits_BK, self.labels)
        (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), x_BCHW)
        return gradient_BCHW, loss_B.detach(), self._wrong(logits_BK)

    @torch.no_grad()
    def measure(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses [B], and whether the answers are wrong."""
        logits_BK = self.model(x_BCHW)
        return self.loss(logits_BK, self.labels), self._wrong(logits_BK)

    @property
    def true_B(self) -> Tensor:
        """The class of each sample; of a distribution, the most probable one."""
        if self.labels.is_floating_point():
            return self.labels.argmax(1)
        return self.labels if self.labels.ndim == 1 else self.labels[:, 0]

    def _wrong(self, logits_BK: Tensor) -> Tensor:
        return logits_BK.detach().argmax(1) != self.true_B

    def take(self, index: Tensor) -> Problem:
        """Return the problem of some samples, by their places or by a mask [B]."""
        noise = replace(self.noise, sample_ids_B=self.noise.sample_ids_B[index])
        return replace(self, ball=self.ball.take(index), labels=self.labels[index], noise=noise)


class Attack(ABC):
    """A search in a ball around each image for an image that the model answers wrongly.

    The model is any callable from images in [0,1] to logits; if it is a module, it runs in evaluation mode, so without
    dropout and drop-path, in float32. Its mode, its parameters' gradients and torch's random state are left as found.
    Samples never influence each other. Random starts are a function of seed, step and sample id.
    """

    def __init__(self, config: Any) -> None:
        assert isinstance(config, AttackConfig)
        self.config = config

    def __call__(
        self, model: Classifier, images_BCHW: Tensor, labels: Tensor, *, eps: float | Tensor | None = None,
        loss: AttackLoss = cross_entropy, sample_ids_B: Tensor | None = None, seed: int = 0, step: int = 0,
    ) -> Tensor:  # fmt: skip
        """Return adversarial images in [0,1], detached, of the shape of `images_BCHW`.

        labels: true classes int64 [B], or target distributions [B, classes]. eps: the radius in place of the
        configured one, or one per sample [B]. sample_ids_B: numbers for the random starts, by default the places in the
        batch. step: of training, for other random starts at each step. Raises UserError for images that are no floats
        in [0,1], and for labels of another length or outside of the classes.
        """
        _check(images_BCHW, labels)
        ids_B = torch.arange(len(labels), device=labels.device) if sample_ids_B is None else sample_ids_B
        if not len(labels):
            return images_BCHW.clone()
        radius = self.config.radius if eps is None else eps
        return self.perturb(model, images_BCHW, labels, radius, loss, Noise(ids_B, seed, step))

    def perturb(
        self, model: Classifier, images_BCHW: Tensor, labels: Tensor, eps: float | Tensor, loss: AttackLoss,
        noise: Noise,
    ) -> Tensor:  # fmt: skip
        """Do what a call does, with given random numbers and without checks of the input, which wait for a GPU."""
        dtype = torch.promote_types(images_BCHW.dtype, torch.float32)
        with quiet(model, images_BCHW.device), torch.inference_mode(False), torch.enable_grad():
            # Copies, as autograd takes no tensors of inference mode.
            images_BCHW, labels = images_BCHW.detach().to(dtype).clone(), labels.clone()
            noise = replace(noise, sample_ids_B=noise.sample_ids_B.clone())
            ball = Ball(images_BCHW, as_eps(eps, images_BCHW), self.config.norm)
            return self.search(Problem(model, ball, labels, loss, noise)).detach()

    @abstractmethod
    def search(self, problem: Problem) -> Tensor:
        """Return an adversarial image for each sample of the problem."""


def _check(images_BCHW: Tensor, labels: Tensor) -> None:
    if not images_BCHW.is_floating_point():
        raise UserError(
            "attacks need images as floats in [0,1]", where="images", got=str(images_BCHW.dtype),
            expected="float32", hint="images / 255 converts 8-bit images.",
        )  # fmt: skip
    if images_BCHW.ndim != 4 or len(images_BCHW) != len(labels):
        raise UserError(
            "shapes of images and labels do not match", where="images",
            got=f"{tuple(images_BCHW.shape)} and {tuple(labels.shape)}", expected="(B, C, H, W) and (B,)",
        )  # fmt: skip
    low, high = (float(end) for end in images_BCHW.detach().aminmax()) if images_BCHW.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise UserError("images outside of [0,1]", where="images", got=f"{low:g} to {high:g}", expected="0 to 1")
