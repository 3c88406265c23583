"""Geometry of attacks: balls in Linf and L2 around images, steps, random points. Shape letters: B batch, C H W image.

Every function treats each sample alone, so a result does not depend on the other images of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitral.data.counter_rng import Stream, normals, uniform, uniform_runs

_TINY = 1e-12


def per_sample(x_B: Tensor) -> Tensor:
    """Return [B] as [B, 1, 1, 1]."""
    return x_B[:, None, None, None]


def l2_norm(x_BCHW: Tensor) -> Tensor:
    """L2 norm of each sample, [B, 1, 1, 1]."""
    return per_sample(x_BCHW.flatten(1).norm(dim=1))


@dataclass(frozen=True)
class Noise:
    """Random numbers of samples: a pure function of seed, step (of training), restart and sample."""

    sample_ids_B: Tensor
    seed: int = 0
    step: int = 0

    def uniform(self, like_BCHW: Tensor, restart: int) -> Tensor:
        """Uniform numbers in [-1, 1) of the shape of `like_BCHW`."""
        count = like_BCHW[0].numel()
        found_NB = uniform_runs(self.seed, self.step, restart, self.sample_ids_B, (Stream.NOISE_RADIUS,), count)[0]
        return (2 * found_NB.T - 1).reshape(like_BCHW.shape).to(like_BCHW.dtype)

    def normal(self, like: Tensor, restart: int = 0) -> Tensor:
        """Standard normal numbers of the shape of `like`, [B, ...]."""
        found = normals(self.seed, self.step, restart, self.sample_ids_B, like[0].numel())
        return found.reshape(like.shape).to(like.dtype)

    def radius(self, restart: int) -> Tensor:
        """Uniform numbers in [0, 1), [B, 1, 1, 1]."""
        return per_sample(uniform(self.seed, self.step, restart, self.sample_ids_B, Stream.NOISE_RADIUS))


@dataclass(frozen=True)
class Ball:
    """All images in [0,1] whose distance from `center_BCHW` in the norm is at most `eps_B111`."""

    center_BCHW: Tensor
    eps_B111: Tensor
    norm: str

    def project(self, x_BCHW: Tensor) -> Tensor:
        """Return the points of the ball that belong to these: the change is limited, then pixels to [0,1]."""
        return (self.center_BCHW + self.limit(x_BCHW - self.center_BCHW)).clamp(0, 1)

    def limit(self, change_BCHW: Tensor) -> Tensor:
        """Return changes of a norm of at most eps: Linf by clipping, L2 by shortening."""
        if self.norm == "linf":
            return change_BCHW.clamp(-self.eps_B111, self.eps_B111)
        return change_BCHW * (self.eps_B111 / l2_norm(change_BCHW).clamp(min=_TINY)).clamp(max=1)

    def direction(self, gradient_BCHW: Tensor) -> Tensor:
        """Return the step of length 1 that raises a linear function most; 0 where the gradient is 0."""
        if self.norm == "linf":
            return gradient_BCHW.sign()
        return gradient_BCHW / l2_norm(gradient_BCHW).clamp(min=_TINY)

    def random_point(self, noise: Noise, restart: int) -> Tensor:
        """Return points drawn uniformly from the ball, clipped to [0,1]."""
        if self.norm == "linf":
            change_BCHW = noise.uniform(self.center_BCHW, restart)
        else:
            normal_BCHW = noise.normal(self.center_BCHW, restart)
            share_B111 = noise.radius(restart).to(normal_BCHW.dtype) ** (1 / self.center_BCHW[0].numel())
            change_BCHW = normal_BCHW / l2_norm(normal_BCHW) * share_B111
        return (self.center_BCHW + self.eps_B111 * change_BCHW).clamp(0, 1)

    def random_surface_point(self, noise: Noise, restart: int) -> Tensor:
        """Return points at the distance eps in random directions, clipped to [0,1]: where APGD starts."""
        if self.norm == "linf":
            change_BCHW = noise.uniform(self.center_BCHW, restart)
            change_BCHW = change_BCHW / per_sample(change_BCHW.abs().flatten(1).amax(1))
        else:
            change_BCHW = noise.normal(self.center_BCHW, restart)
            change_BCHW = change_BCHW / l2_norm(change_BCHW)
        return (self.center_BCHW + self.eps_B111 * change_BCHW).clamp(0, 1)

    def take(self, index: Tensor) -> Ball:
        """Return the balls of some samples."""
        return Ball(self.center_BCHW[index], self.eps_B111[index], self.norm)


def as_eps(eps: float | Tensor, images_BCHW: Tensor) -> Tensor:
    """Return a radius, or one per sample [B], as [B, 1, 1, 1] in the type of the images."""
    eps_B = torch.as_tensor(eps, dtype=images_BCHW.dtype, device=images_BCHW.device)
    return per_sample(eps_B.expand(len(images_BCHW)))
