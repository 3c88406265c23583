"""Compile forward pass, loss and backward pass of an objective as one graph (torch.compile).

Shapes are static: a graph for each size of micro-batch, so two where the last one of a batch is shorter. Clipping and
the optimizer stay outside; they are a few kernels for all parameters already. Imported only when used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from vitral.errors import RunFailed
from vitral.objectives.objective import Objective
from vitral.structs import Batch, StepOutput, device_of


class Compiled(nn.Module):
    """Called as the objective is, with equal results but for rounding, and other random numbers where it draws some.

    A step is compiled again where the key of the objective changes (`Objective.compile_key`), and for
    another size; never otherwise. Raises RunFailed where compiling fails.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        torch.compiler.reset()  # the graphs of runs before this one, in this process, would count towards its limit
        self.objective = objective
        self._graphs: dict[int, Callable[[Mapping[str, Batch], Tensor], StepOutput]] = {}

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """As of the objective."""
        compile_key = self.objective.compile_key(step)
        assert compile_key is not None
        if compile_key not in self._graphs:
            objective, number = self.objective, None if self.objective.step_in_graph else compile_key

            def graph(batches: Mapping[str, Batch], moment: Tensor) -> StepOutput:
                return objective(batches, moment if number is None else number)

            self._graphs[compile_key] = torch.compile(graph, fullgraph=True, dynamic=False)
        try:
            return self._graphs[compile_key](batches, torch.full((), step, device=device_of(batches)))
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise RunFailed(f"the step could not be compiled: {reason}. train.compile=none runs without") from error
