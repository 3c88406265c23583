"""Square attack: random search with outputs only (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 and 2;
in L2 with algorithm 3, in `square_l2.py`).

Shape letters: B batch, C H W channels, height and width of an image, Q queries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitral.attacks import square_l2
from vitral.attacks.attack import Attack, Problem
from vitral.attacks.config import SquareConfig
from vitral.attacks.losses import margin
from vitral.data.counter_rng import Draws, Stream

# Queries, of 10,000, after which the share of the image that a square covers is halved (section 5.1 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(Attack):
    """Starts from vertical stripes of +-eps, then tries squares of +-eps at random places, ever smaller, and keeps
    those that raise the margin of the best wrong class. A sample with a wrong answer is not followed further.

    In L2 it starts from a grid of windows, and moves the change of one window into another.
    """

    @torch.no_grad()
    def search(self, problem: Problem) -> Tensor:
        """See the class."""
        config = self.config
        assert isinstance(config, SquareConfig)
        result_BCHW = problem.images_BCHW.clone()
        margin_B = self._margin(problem, result_BCHW)
        rows = (margin_B <= 0).nonzero()[:, 0]
        for query in range(config.queries):
            if not len(rows):
                break
            part, x_BCHW = problem.take(rows), result_BCHW[rows]
            tried_BCHW = self._start(part) if query == 0 else self._changed(part, x_BCHW, query)
            found_B = self._margin(part, tried_BCHW)
            better_B = found_B > margin_B[rows] if query else torch.ones_like(found_B, dtype=torch.bool)
            result_BCHW[rows[better_B]], margin_B[rows[better_B]] = tried_BCHW[better_B], found_B[better_B]
            rows = rows[margin_B[rows] <= 0]
        return result_BCHW

    @staticmethod
    def _margin(problem: Problem, x_BCHW: Tensor) -> Tensor:
        return margin(problem.model(x_BCHW), problem.true_B)

    def _start(self, problem: Problem) -> Tensor:
        if self.config.norm == "l2":
            return square_l2.tiles(problem.ball, self._draws(problem, 0))
        return self._stripes(problem)

    def _changed(self, problem: Problem, x_BCHW: Tensor, query: int) -> Tensor:
        if self.config.norm == "l2":
            side = square_l2.odd_side(self._share(query), *x_BCHW.shape[2:])
            return square_l2.moved(problem.ball, x_BCHW, side, self._draws(problem, query))
        return self._with_square(problem, x_BCHW, query)

    @staticmethod
    def _draws(problem: Problem, query: int) -> Draws:
        noise = problem.noise
        return Draws(noise.seed, noise.step, query, noise.sample_ids_B)

    def _stripes(self, problem: Problem) -> Tensor:
        _, channels, _, width = problem.images_BCHW.shape
        sign_BCW = self._signs(problem, 0, channels * width).reshape(-1, channels, width)
        return (problem.images_BCHW + problem.eps_B111 * sign_BCW[:, :, None]).clamp(0, 1)

    def _with_square(self, problem: Problem, x_BCHW: Tensor, query: int) -> Tensor:
        """A square of one sign per channel at a random place, where each changed pixel is at +-eps."""
        _, channels, height, width = x_BCHW.shape
        side = self._side(query, height, width)
        top_B, left_B = (
            (self._draws(problem, query).one(stream) * (length - side + 1)).floor()
            for stream, length in ((Stream.SQUARE_ROW, height), (Stream.SQUARE_COLUMN, width))
        )
        inside_BHW = _between(top_B, side, height)[:, :, None] & _between(left_B, side, width)[:, None]
        sign_BC = self._signs(problem, query, channels)
        changed_BCHW = problem.images_BCHW + problem.eps_B111 * sign_BC[:, :, None, None]
        return torch.where(inside_BHW[:, None], changed_BCHW, x_BCHW).clamp(0, 1)

    def _share(self, query: int) -> float:
        """Share of the image that a square covers."""
        assert isinstance(self.config, SquareConfig)
        progress = query * 10_000 / self.config.queries
        return self.config.first_share / 2 ** sum(progress > end for end in _HALVINGS)

    def _side(self, query: int, height: int, width: int) -> int:
        return min(max(round(math.sqrt(self._share(query) * height * width)), 1), height, width)

    def _signs(self, problem: Problem, query: int, count: int) -> Tensor:
        (found_NB,) = self._draws(problem, query).runs((Stream.SQUARE_SIGN,), count)
        return torch.where(found_NB.T < 0.5, -1.0, 1.0).to(problem.images_BCHW.dtype)


def _between(start_B: Tensor, length: int, size: int) -> Tensor:
    """Whether each place of an axis is inside [start, start + length), [B, size]."""
    place_N = torch.arange(size, device=start_B.device)
    return (place_N >= start_B[:, None]) & (place_N < start_B[:, None] + length)
