"""Exponential moving average of a module's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Moves the weights of `average` towards those of `model` with the same names; what the model does not train stays
    as it is, buffers are copied."""

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        names = dict(average.named_parameters())
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._pairs = [(names[name], parameter) for name, parameter in trained]
        self._average, self._model = average, model

    @torch.no_grad()
    def move(self, share: float, found_inf: Tensor | None = None) -> None:
        """average += share * (model - average); nothing where `found_inf`, a number, is 1. On another device than the
        CPU nobody waits for that number."""
        if found_inf is not None and found_inf.is_cpu:
            if found_inf:
                return
            found_inf = None
        averages: list[Tensor] = [average for average, _ in self._pairs]
        parameters: list[Tensor] = [parameter for _, parameter in self._pairs]
        if found_inf is None:
            torch._foreach_lerp_(averages, parameters, share)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        else:
            moved = (1 - found_inf) * share
            for average, parameter in self._pairs:
                average.lerp_(parameter, moved.to(average.dtype))
        for mine, theirs in zip(self._average.buffers(), self._model.buffers(), strict=True):
            mine.copy_(theirs)
