"""Interface of every model: what initialization, checkpointing of activations and measurement need."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vitral.models.architecture_config import ArchitectureConfig


class Network(nn.Module, ABC):
    """A model of one configuration.

    checkpointed: so many blocks, from the input on, recompute their activations in the backward pass instead of keeping
    them.
    """

    config: ArchitectureConfig
    checkpointed: int = 0

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def init_weights(self) -> None:
        """Initialize every parameter again, from torch's global random state."""

    @abstractmethod
    def example_inputs(self, samples: int) -> tuple[Tensor, ...]:
        """Arguments of `forward` for so many samples, with the shapes of `config.input_shapes`, on the model's device.

        They measure compute and memory and trace exports; values are arbitrary.
        """

    @abstractmethod
    def example_labels(self, samples: int) -> Tensor | None:
        """A class for each vector of logits that `example_inputs` leads to, or None where outputs are no logits."""

    def forward_all_tokens(self, *inputs: Tensor) -> Tensor:
        """`forward` without leaving out what the output does not depend on, as papers count compute."""
        return self(*inputs)

    def recomputes(self, block: int) -> bool:
        """Whether this block is checkpointed, here and now: evaluation has no backward pass to save memory for."""
        return block < self.checkpointed and self.training and torch.is_grad_enabled()

    @property
    def checkpointable(self) -> list[nn.Module]:
        """The blocks, in order, that `checkpointed` counts; as many as the config's `block_count`."""
        return []

    @property
    def dtype(self) -> torch.dtype:
        """The kind of number that the model computes with."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
