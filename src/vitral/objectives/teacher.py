"""A teacher as the moving average of its student, shared by all methods that have one.

Mean Teacher (Tarvainen and Valpola 2017, arXiv 1703.01780); with a rising momentum: BYOL (2006.07733), DINO
(2104.14294).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vitral.models.ema import EMA


class EMATeacher(nn.Module):
    """teacher <- momentum * teacher + (1 - momentum) * student, parameters matched by name, buffers copied.

    `module` must be built fresh, with the names of `student`; it starts as its copy, is always in evaluation mode
    (whatever `train` is called with) and takes no gradients, so no optimizer has it.
    """

    def __init__(self, student: nn.Module, module: nn.Module) -> None:
        super().__init__()
        module.load_state_dict(student.state_dict())
        self.module = module.requires_grad_(False).eval()
        self._follower = EMA(module, student)

    def train(self, mode: bool = True) -> EMATeacher:
        """A teacher is never trained."""
        super().train(False)
        return self

    def update(self, momentum: float, found_inf: Tensor | None = None) -> None:
        """Moves the teacher a step towards its student; not where `found_inf`, a number, is 1."""
        self._follower.move(1 - momentum, found_inf)

    @torch.no_grad()
    def forward(self, *arguments: Any) -> Any:
        """What the module says, without gradients."""
        return self.module(*arguments)


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `steps` - 1, along half a cosine."""
    done = min(step / max(steps - 1, 1), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
