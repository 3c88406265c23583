"""Attacks by steps along the gradient: FGSM, FGM, R+FGSM, FGSM-RS, N-FGSM, PGD and MI-FGSM.

Shape letters: B batch, C H W channels, height and width of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitral.attacks.attack import Attack, Problem
from vitral.attacks.ball import per_sample
from vitral.attacks.config import FgsmRsConfig, MifgsmConfig, NfgsmConfig, PgdConfig


def ascend(problem: Problem, x_BCHW: Tensor, steps: int, length_B111: Tensor) -> Tensor:
    """Return the end of so many projected gradient steps from `x_BCHW`, each of the given length in the ball's norm."""
    for _ in range(steps):
        gradient_BCHW, _, _ = problem.gradient(x_BCHW)
        x_BCHW = problem.ball.project(x_BCHW + length_B111 * problem.ball.direction(gradient_BCHW))
    return x_BCHW


class FGSM(Attack):
    """x + eps sign(gradient), clipped to [0,1] (Goodfellow et al. 2015, arXiv 1412.6572)."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        return ascend(problem, problem.images_BCHW, 1, problem.eps_B111)


class FGM(Attack):
    """x + eps gradient / |gradient|, the L2 norm over the whole image (Miyato et al. 2017, arXiv 1605.07725, eq. 3)."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        return ascend(problem, problem.images_BCHW, 1, problem.eps_B111)


class RFGSM(Attack):
    """R+FGSM (Tramer et al. 2018, arXiv 1705.07204, eq. 7): a step eps/2 along the sign of normal noise, then one of
    eps/2 along the sign of the gradient."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        half_B111 = problem.eps_B111 / 2
        noise_BCHW = problem.noise.normal(problem.images_BCHW)
        start_BCHW = problem.ball.project(problem.images_BCHW + half_B111 * noise_BCHW.sign())
        return ascend(problem, start_BCHW, 1, half_B111)


class FGSMRS(Attack):
    """A uniform random start in the ball, then one projected step (Wong et al. 2020, arXiv 2001.03994, algorithm 3)."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        config = self.config
        assert isinstance(config, FgsmRsConfig)
        start_BCHW = problem.ball.random_point(problem.noise, 0)
        ratio = 1.25 if config.step is None else config.step / config.radius
        return ascend(problem, start_BCHW, 1, ratio * problem.eps_B111)


class NFGSM(Attack):
    """FGSM from noise U(-k eps, k eps), without projection (de Jorge et al. 2022, arXiv 2202.01181). Start and result
    are clipped to [0,1]; the change may reach (k + 1) eps."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        config = self.config
        assert isinstance(config, NfgsmConfig)
        noise_BCHW = problem.noise.uniform(problem.images_BCHW, 0)
        start_BCHW = (problem.images_BCHW + config.noise * problem.eps_B111 * noise_BCHW).clamp(0, 1)
        gradient_BCHW, _, _ = problem.gradient(start_BCHW)
        return (start_BCHW + problem.eps_B111 * gradient_BCHW.sign()).clamp(0, 1)


class PGD(Attack):
    """Projected gradient ascent (Madry et al. 2018, arXiv 1706.06083): steps along the sign of the gradient in Linf,
    along the gradient in L2, projected on the ball and [0,1] after each. Of several random starts a sample keeps the
    first that changes its answer, else the one with the largest loss."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        config = self.config
        assert isinstance(config, PgdConfig)
        ratio = 2.5 / config.steps if config.step is None else config.step / config.radius

        def run(part: Problem, restart: int) -> Tensor:
            start_BCHW = part.ball.random_point(part.noise, restart) if config.random_start else part.images_BCHW
            return ascend(part, start_BCHW, config.steps, ratio * part.eps_B111)

        if config.restarts == 1:
            return run(problem, 0)
        best_BCHW = run(problem, 0)
        best_B, wrong_B = problem.measure(best_BCHW)
        for restart in range(1, config.restarts):
            left = (~wrong_B).nonzero()[:, 0]
            if not len(left):
                break
            part = problem.take(left)
            found_BCHW = run(part, restart)
            loss_B, found_wrong_B = part.measure(found_BCHW)
            better = found_wrong_B | (loss_B > best_B[left])
            best_BCHW[left[better]], best_B[left[better]] = found_BCHW[better], loss_B[better]
            wrong_B[left] = found_wrong_B
        return best_BCHW


class MIFGSM(Attack):
    """Steps of eps / steps along the sign of a moving sum of gradients, each divided by its L1 norm (Dong et al. 2018,
    arXiv 1710.06081, algorithm 1)."""

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        config = self.config
        assert isinstance(config, MifgsmConfig)
        x_BCHW = problem.images_BCHW
        sum_BCHW = torch.zeros_like(x_BCHW)
        for _ in range(config.steps):
            gradient_BCHW, _, _ = problem.gradient(x_BCHW)
            l1_B111 = per_sample(gradient_BCHW.abs().flatten(1).sum(1)).clamp(min=1e-12)
            sum_BCHW = config.momentum * sum_BCHW + gradient_BCHW / l1_B111
            x_BCHW = problem.ball.project(x_BCHW + problem.eps_B111 / config.steps * sum_BCHW.sign())
        return x_BCHW
