"""APGD: PGD with momentum that halves its step length where progress stalls (Croce and Hein 2020, arXiv 2003.01690).

Shape letters: B batch, C H W channels, height and width of an image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vitral.attacks.attack import Attack, Problem
from vitral.attacks.ball import per_sample
from vitral.attacks.config import ApgdConfig
from vitral.attacks.losses import dlr, targeted_dlr

_MOMENTUM = 0.75  # alpha of algorithm 1
_RAISED = 0.75  # rho of condition 1


class APGD(Attack):
    """Maximizes cross-entropy, DLR or targeted DLR. Returns for each sample the first image that is found with a wrong
    answer, else the one with the largest loss; restarts and targets only work on what is left.

    A sample with a wrong answer is not followed further. Raises UserError for too few classes for DLR.
    """

    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        config = self.config
        assert isinstance(config, ApgdConfig)
        if config.loss == "dlr":
            problem = replace(problem, labels=problem.true_B, loss=dlr)
        result_BCHW = problem.images_BCHW.clone()
        best_B, wrong_B = problem.measure(result_BCHW)
        targets_BK = _wrong_classes(problem)[:, : config.targets]
        for run in range(config.restarts * max(targets_BK.shape[1], 1)):
            left = (~wrong_B).nonzero()[:, 0]
            if not len(left):
                break
            part = problem.take(left)
            if config.targets:
                target_B = targets_BK[left, run % targets_BK.shape[1]]
                part = replace(part, labels=torch.stack([part.labels, target_B], dim=1), loss=_targeted)
            found_BCHW, now_wrong_B = maximize(part, config.steps, run)
            loss_B, _ = problem.take(left).measure(found_BCHW)
            better = now_wrong_B | (loss_B > best_B[left])
            result_BCHW[left[better]], best_B[left[better]] = found_BCHW[better], loss_B[better]
            wrong_B[left] = now_wrong_B
        return result_BCHW


def _wrong_classes(problem: Problem) -> Tensor:
    """The wrong classes of each sample, [B, K - 1], the most probable first."""
    with torch.no_grad():
        order_BK = problem.model(problem.images_BCHW).argsort(dim=1, descending=True)
    return order_BK[order_BK != problem.true_B[:, None]].reshape(len(order_BK), -1)


def _targeted(logits_BK: Tensor, labels_B2: Tensor) -> Tensor:
    return targeted_dlr(logits_BK, *labels_B2.unbind(1))


@dataclass
class _Search:
    """State of algorithm 1, one row per sample. x, last: the current point and the one before; step: step length;
    best_*: point, gradient and loss of the largest loss; raised: steps since the checkpoint that raised the loss;
    halved, best_then: whether the step was halved at the last checkpoint, and the largest loss then."""

    x_BCHW: Tensor
    last_BCHW: Tensor
    gradient_BCHW: Tensor
    loss_B: Tensor
    step_B111: Tensor
    best_BCHW: Tensor
    best_gradient_BCHW: Tensor
    best_B: Tensor
    raised_B: Tensor
    halved_B: Tensor
    best_then_B: Tensor

    def take(self, rows: Tensor) -> _Search:
        """Return the state of some samples."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def move(self, problem: Problem, momentum: float) -> Tensor:
        """Make one step (lines 7 and 8), and return whether the answers are wrong there."""
        ball = problem.ball
        ahead_BCHW = ball.project(self.x_BCHW + self.step_B111 * ball.direction(self.gradient_BCHW))
        before_BCHW, self.last_BCHW = self.last_BCHW, self.x_BCHW
        self.x_BCHW = ball.project(
            self.x_BCHW + momentum * (ahead_BCHW - self.x_BCHW) + (1 - momentum) * (self.x_BCHW - before_BCHW)
        )
        self.gradient_BCHW, loss_B, wrong_B = problem.gradient(self.x_BCHW)
        self.raised_B = self.raised_B + (loss_B > self.loss_B)
        self.loss_B = loss_B
        better_B = loss_B > self.best_B
        self.best_B = torch.where(better_B, loss_B, self.best_B)
        self.best_BCHW = torch.where(per_sample(better_B), self.x_BCHW, self.best_BCHW)
        self.best_gradient_BCHW = torch.where(per_sample(better_B), self.gradient_BCHW, self.best_gradient_BCHW)
        return wrong_B

    def adapt(self, period: int) -> None:
        """At a checkpoint: halve the step and go back to the best point where too few steps of the period raised the
        loss (condition 1; equality counts, as in the authors' code), or where neither the step nor the largest loss
        has changed since the last checkpoint (condition 2)."""
        stalled_B = (self.raised_B <= _RAISED * period) | (~self.halved_B & (self.best_then_B >= self.best_B))
        self.step_B111 = torch.where(per_sample(stalled_B), self.step_B111 / 2, self.step_B111)
        self.x_BCHW = torch.where(per_sample(stalled_B), self.best_BCHW, self.x_BCHW)
        self.gradient_BCHW = torch.where(per_sample(stalled_B), self.best_gradient_BCHW, self.gradient_BCHW)
        self.halved_B, self.best_then_B, self.raised_B = stalled_B, self.best_B, torch.zeros_like(self.raised_B)


def maximize(problem: Problem, steps: int, run: int) -> tuple[Tensor, Tensor]:
    """Run algorithm 1 from the random start of this number; return images, and whether their answers are wrong."""
    x_BCHW = problem.ball.random_surface_point(problem.noise, run)
    gradient_BCHW, loss_B, wrong_B = problem.gradient(x_BCHW)
    search = _Search(
        x_BCHW, x_BCHW, gradient_BCHW, loss_B, 2 * problem.eps_B111, x_BCHW, gradient_BCHW, loss_B,
        raised_B=torch.zeros_like(loss_B), halved_B=torch.ones_like(wrong_B), best_then_B=loss_B,
    )  # fmt: skip
    result_BCHW, is_wrong_B = x_BCHW.clone(), torch.zeros_like(wrong_B)
    rows = torch.arange(len(x_BCHW), device=x_BCHW.device)
    periods = _periods(steps)
    for number in range(steps + 1):
        if number:
            wrong_B = search.move(problem, _MOMENTUM if number > 1 else 1.0)
        if wrong_B.any():
            result_BCHW[rows[wrong_B]], is_wrong_B[rows[wrong_B]] = search.x_BCHW[wrong_B], True
            left_B = ~wrong_B
            rows, search, problem = rows[left_B], search.take(left_B), problem.take(left_B)
        if not len(rows):
            break
        if number in periods:
            search.adapt(periods[number])
    result_BCHW[rows] = search.best_BCHW
    return result_BCHW, is_wrong_B


def _periods(steps: int) -> dict[int, int]:
    """Return the checkpoints after which step lengths are adapted, and the steps since the one before: first 0.22 of
    all steps, then each time 0.03 less, at least 0.06 (section 3.1)."""
    period, less, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found: dict[int, int] = {}
    end = period
    while end <= steps:
        found[end] = period
        period = max(period - less, least)
        end += period
    return found
