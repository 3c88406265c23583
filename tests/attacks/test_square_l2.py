"""Square in L2: its window by the equation, the whole radius used, monotone, stronger than noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vitral
from tests.attacks.models import Linear, images, random_vit
from vitral.attacks import losses, square_l2
from vitral.attacks.ball import Ball, as_eps
from vitral.attacks.registry import create_attack
from vitral.data.config import DataConfig
from vitral.data.counter_rng import Draws
from vitral.data.sources import open_dataset


def by_equation_2(side: int) -> Tensor:
    """Equation 2 of arXiv 1912.00049, with rows and columns from 1."""
    halves = list[Tensor]()
    for width in (side // 2, side - side // 2):
        half, n = torch.zeros(side, width, dtype=torch.float64), side // 2
        for r in range(1, side + 1):
            for s in range(1, width + 1):
                most = n - max(abs(r - side // 2 - 1), abs(s - width // 2 - 1))
                half[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(most + 1))
        halves.append(half)
    eta = torch.cat([halves[0], -halves[1]], dim=1)
    return eta / eta.norm()


@pytest.mark.parametrize("side", [1, 3, 5, 7, 11])
def test_the_window_is_that_of_the_equation(side: int) -> None:
    torch.testing.assert_close(square_l2.window(side), by_equation_2(side))


@pytest.mark.parametrize(
    ("share", "size", "side"),
    [(0.8, (8, 8), 7), (0.8, (7, 9), 7), (0.01, (32, 32), 3), (0.1, (32, 32), 11), (0.5, (2, 2), 1), (1.0, (1, 5), 1)],
)
def test_windows_have_odd_sides_that_fit(share: float, size: tuple[int, int], side: int) -> None:
    assert square_l2.odd_side(share, *size) == side


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 14), (2, 3, 5)])
def test_start_and_moves_use_the_whole_radius(shape: tuple[int, int, int]) -> None:
    """Where no pixel reaches an end of [0,1]."""
    x = torch.full((6, *shape), 0.5, dtype=torch.float64)
    ball = Ball(x, as_eps(torch.linspace(0.1, 0.4, 6).double(), x), "l2")
    now = square_l2.tiles(ball, Draws(0, 0, 0, torch.arange(6)))
    seen = list[Tensor]()
    for query in range(1, 9):
        seen.append((now - x).flatten(1).norm(dim=1))
        side = square_l2.odd_side(0.8 / query, *shape[1:])
        after = square_l2.moved(ball, now, side, Draws(0, 0, query, torch.arange(6)))
        assert ((after != now).flatten(1).any(1)).all()
        now = after
    for norm in seen:
        torch.testing.assert_close(norm, ball.eps_B111.flatten())


def test_what_an_end_of_the_range_takes_is_used_elsewhere() -> None:
    """Of images of which the half is white, the change lies in the other half, in the end almost all of it."""
    x = torch.full((4, 1, 10, 10), 0.5, dtype=torch.float64)
    x[..., 5:] = 1.0
    ball = Ball(x, as_eps(0.5, x), "l2")
    now = square_l2.tiles(ball, Draws(0, 0, 0, torch.arange(4)))
    start = (now - x).flatten(1).norm(dim=1)
    assert (start < 0.49).all()
    for query in range(1, 60):
        now = square_l2.moved(ball, now, 3, Draws(0, 0, query, torch.arange(4)))
        assert ((now - x).flatten(1).norm(dim=1) <= 0.5 + 1e-12).all()
    assert ((now - x).flatten(1).norm(dim=1) > start).all()


def test_no_query_lowers_the_margin_of_any_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Linear((3, 9, 8), classes=4), images(7, (3, 9, 8)).double()
    model.bias_K.data[0] = 1e3  # no answer becomes wrong, so all samples are followed
    labels, seen, move = torch.zeros(7, dtype=torch.long), list[Tensor](), square_l2.moved

    def moved(ball: Ball, x_BCHW: Tensor, *rest: Any) -> Tensor:
        seen.append(losses.margin(model(x_BCHW), labels).detach())
        return move(ball, x_BCHW, *rest)

    monkeypatch.setattr(square_l2, "moved", moved)
    found = create_attack("square", norm="l2", eps=0.7, queries=60)(model, x, labels)
    margins = torch.stack([*seen, losses.margin(model(found), labels)])
    assert len(margins) == 60
    assert (margins.diff(dim=0) >= 0).all()
    assert ((margins[-1] - margins[0]) > 0).all()


def test_samples_are_independent_of_their_batch() -> None:
    model, x = random_vit().eval().double(), images(6).double()
    labels, attack = model(x).argmax(1), create_attack("square", norm="l2", eps=0.3, queries=25)
    whole = attack(model, x, labels, sample_ids_B=torch.arange(6))
    alone = attack(model, x[4:5], labels[4:5], sample_ids_B=torch.tensor([4]))
    torch.testing.assert_close(whole[4:5], alone, atol=1e-9, rtol=0)
    assert not torch.equal(attack(model, x, labels, seed=1), whole)


def test_it_beats_noise_of_the_same_norm() -> None:
    split = open_dataset(DataConfig(source="digits")).splits["test"]
    model, labels = vitral.load("vitral-digits").model.eval(), torch.from_numpy(split.labels_N[:60])
    x = torch.stack([split.read(place) for place in range(60)]) / 255
    found = create_attack("square", norm="l2", eps=1.0, queries=30)(model, x, labels)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = (x + noise / noise.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)
    top1, noisy_top1 = ((model(changed).argmax(1) == labels).float().mean().item() for changed in (found, noisy))
    assert noisy_top1 > 0.8
    assert top1 < noisy_top1 - 0.3
