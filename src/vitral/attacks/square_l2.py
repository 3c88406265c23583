"""Square attack in L2: start and changes (Andriushchenko et al. 2020, arXiv 1912.00049, section 4.2, algorithm 3).

Where ours differs from the paper: windows have at least 3 pixels on a side only where the image does; a place whose
window has no change yet adds nothing to the new one. Shape letters: B batch, C H W channels, height and width of an
image, S side of a window, R rows and T columns of tiles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from vitral.attacks.ball import Ball, per_sample
from vitral.data.counter_rng import Draws, Stream

_TINY = 1e-12
_TILES = 5  # of the start, along the shorter side (section 4.2)


def window(side: int) -> Tensor:
    """Return eta [S, S] of equation 2, with L2 norm 1: the left half falls from its middle like a Gaussian, the right
    one rises from its middle to 0."""
    left = side // 2
    eta_SS = torch.cat([_bump(side, left), -_bump(side, side - left)], dim=1)
    return eta_SS / eta_SS.norm()


def _bump(height: int, width: int) -> Tensor:
    """Sums of 1 / (k + 1)^2 for k from a pixel's distance from the middle, in squares around it, to height // 2."""
    most = height // 2
    row_S = (torch.arange(height) - most).abs()
    column_S = (torch.arange(width) - width // 2).abs()
    sums_K = (1 / (torch.arange(most + 1.0, dtype=torch.float64) + 1) ** 2).flip(0).cumsum(0).flip(0)
    return sums_K[torch.maximum(row_S[:, None], column_S[None]).clamp(max=most)]


def odd_side(share: float, height: int, width: int) -> int:
    """Return the odd side of windows that cover a share of the image: 3 pixels at least, where there are as many."""
    least = min(height, width)
    side = max(round(math.sqrt(share * height * width)), 3) // 2 * 2 + 1
    return min(side, least if least % 2 else max(least - 1, 1))


def tiles(ball: Ball, draws: Draws) -> Tensor:
    """Return the images with a grid of windows of random signs and orientations, at the distance eps."""
    images_BCHW = ball.center_BCHW
    batch, channels, height, width = images_BCHW.shape
    side = max(min(height, width) // _TILES, 1)
    rows, columns = height // side, width // side
    (turned_NB,) = draws.runs((Stream.SQUARE_TURN,), rows * columns)
    turned_BRT = turned_NB.T.reshape(batch, rows, columns) < 0.5
    sign_BCRT = _signs(draws, channels * rows * columns).reshape(batch, channels, rows, columns)
    eta_SS = window(side).to(images_BCHW)
    eta_BRTSS = torch.where(turned_BRT[..., None, None], eta_SS.T, eta_SS)
    change_BCRTSS = sign_BCRT.to(images_BCHW)[..., None, None] * eta_BRTSS[:, None]
    change_BCHW = change_BCRTSS.transpose(3, 4).reshape(batch, channels, rows * side, columns * side)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    change_BCHW = pad(change_BCHW, (left, width - columns * side - left, top, height - rows * side - top))
    return (images_BCHW + ball.eps_B111 * change_BCHW / math.sqrt(channels * rows * columns)).clamp(0, 1)


def moved(ball: Ball, x_BCHW: Tensor, side: int, draws: Draws) -> Tensor:
    """Return images in which the change of one window is moved into another, together with what the ball has left.

    The first window gets its own change and eta, each of length 1 and eta with a random sign per channel, scaled to
    the length that both windows had and a share of what was left; the second one becomes unchanged.
    """
    channels, height, width = x_BCHW.shape[1:]
    change_BCHW = x_BCHW - ball.center_BCHW
    left_B = (ball.eps_B111.flatten() ** 2 - change_BCHW.flatten(1).square().sum(1)).clamp(min=0)
    streams = (Stream.SQUARE_ROW, Stream.SQUARE_COLUMN, Stream.SQUARE_ROW_2, Stream.SQUARE_COLUMN_2)
    rooms = (height - side + 1, width - side + 1) * 2
    starts = [(draws.one(stream) * room).long() for stream, room in zip(streams, rooms, strict=True)]
    first, second = (_places(starts[at], starts[at + 1], side, channels) for at in (0, 2))
    eta_SS = window(side).to(x_BCHW)
    eta_BSS = torch.where(draws.one(Stream.SQUARE_TURN)[:, None, None] < 0.5, eta_SS.T, eta_SS)
    own_BCSS = change_BCHW[first]
    direction_BCSS = _signs(draws, channels).to(x_BCHW)[..., None, None] * eta_BSS[:, None]
    direction_BCSS = direction_BCSS + own_BCSS / _length(own_BCSS).clamp(min=_TINY)
    rest_BCHW = change_BCHW.clone()
    rest_BCHW[first] = 0
    rest_BCHW[second] = 0
    freed_BC11 = (change_BCHW.square() - rest_BCHW.square()).sum((2, 3), keepdim=True).clamp(min=0)
    length_BC11 = (freed_BC11 + per_sample(left_B) / channels).sqrt()
    rest_BCHW[first] = direction_BCSS / _length(direction_BCSS).clamp(min=_TINY) * length_BC11
    return ball.project(ball.center_BCHW + rest_BCHW)


def _places(top_B: Tensor, left_B: Tensor, side: int, channels: int) -> tuple[Tensor, ...]:
    """Index of one window per sample, in all channels."""
    across_S = torch.arange(side, device=top_B.device)
    return (
        torch.arange(len(top_B), device=top_B.device)[:, None, None, None],
        torch.arange(channels, device=top_B.device)[None, :, None, None],
        (top_B[:, None] + across_S)[:, None, :, None],
        (left_B[:, None] + across_S)[:, None, None, :],
    )


def _length(x_BCSS: Tensor) -> Tensor:
    """L2 norm of each channel's window, [B, C, 1, 1]."""
    return x_BCSS.square().sum((2, 3), keepdim=True).sqrt()


def _signs(draws: Draws, count: int) -> Tensor:
    (found_NB,) = draws.runs((Stream.SQUARE_SIGN,), count)
    return torch.where(found_NB.T < 0.5, -1.0, 1.0)
