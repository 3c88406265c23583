"""Muon: the momentum of a matrix, made orthogonal, is the step (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon), at the size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982).

Shape letters: P parts of a packed matrix, R rows, C columns, X matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Jordan's quintic: steep at zero, so that five rounds are enough; singular values end near 1, not at it.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def orthogonalise(matrices_XRC: Tensor) -> Tensor:
    """For each matrix U S V^T about U V^T: singular values between 0.68 and 1.14, but for those that are below a
    thousandth of the norm. Newton-Schulz: x <- a x + (b x x^T + c (x x^T)^2) x, in the input's precision."""
    a, b, c = COEFFICIENTS
    is_tall = matrices_XRC.shape[-2] > matrices_XRC.shape[-1]
    x = matrices_XRC.mT if is_tall else matrices_XRC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon for groups with `parts` above 0, AdamW for those with 0.

    A matrix [P R, C] of `parts` P is moved as P matrices (query, key and value are maps of their own), and so is every
    matrix of a stack [P, R, C]. With Nesterov momentum m <- mu m + g, step = 0.2 sqrt(max(R, C)) orthogonalise(g + mu
    m): an orthogonal matrix has entries of root mean square 1 / sqrt(max(R, C)), AdamW's steps of about 0.2, so rate
    and (decoupled) weight decay are AdamW's. Matrices of one shape are one batch; bfloat16 on CUDA. `found_inf`:
    where this number is 1, nothing moves, as in torch's fused optimizers.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0, "momentum": momentum, "parts": 0})
        rest = [group for group in self.param_groups if not group["parts"]]
        self._adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=True) if rest else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        assert closure is None
        if self._adamw is not None:  # loading a state replaces both of these
            self._adamw.param_groups = [group for group in self.param_groups if not group["parts"]]
            self._adamw.state = self.state
            self._adamw.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue]
            self._adamw.step()
        moved = [
            (p, group) for group in self.param_groups if group["parts"] for p in group["params"] if p.grad is not None
        ]
        if not moved:
            return
        directions = _orthogonal([self._direction(p, group) for p, group in moved])
        for (p, group), direction in zip(moved, directions, strict=True):
            size = 0.2 * max(direction.shape[-2:]) ** 0.5
            lr = self._unless_skipped(p, group["lr"], 0.0)
            p.mul_(1 - lr * group["weight_decay"]).sub_(direction.reshape_as(p).to(p.dtype) * (lr * size))

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's look ahead as matrices [P, R, C]; moves the momentum."""
        state, mu = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        assert p.grad is not None
        gradient = p.grad if self.found_inf is None else torch.where(self.found_inf > 0, 0, p.grad)
        buffer = state["momentum_buffer"].mul_(self._unless_skipped(p, mu, 1.0)).add_(gradient)
        return gradient.add(buffer, alpha=mu).reshape(-1, p.shape[-2] // group["parts"], p.shape[-1])

    def _unless_skipped(self, p: Tensor, value: float, skipped: float) -> Any:
        """`value`, or `skipped` where `found_inf` says so: a number on the device, which nobody waits for."""
        if self.found_inf is None:
            return value
        return torch.where(self.found_inf > 0, skipped, torch.full((), value, dtype=p.dtype, device=p.device))


def _orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    """Each stack [P, R, C] orthogonalised, all matrices of one shape in one batch."""
    batches: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for number, stack in enumerate(stacks):
        batches.setdefault((stack.shape[-2:], stack.dtype, stack.device), []).append(number)
    found = list(stacks)
    for numbers in batches.values():
        batch_XRC = torch.cat([stacks[n] for n in numbers])
        done_XRC = orthogonalise(batch_XRC.bfloat16() if batch_XRC.is_cuda else batch_XRC)
        for n, part in zip(numbers, done_XRC.split([len(stacks[n]) for n in numbers]), strict=True):
            found[n] = part
    return found
