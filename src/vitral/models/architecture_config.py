"""What the configurations of all models have in common. Nothing here imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vitral.config import Config

Shape = tuple[int, ...]


class ArchitectureConfig(Config, ABC):
    """Keys of every architecture; equal configs mean parameters of equal names and shapes.

    `models.registry.FAMILIES` lists the families. Other modules read their differences from the properties.
    """

    family: str

    @property
    @abstractmethod
    def description(self) -> str:
        """The architecture as a phrase, with its size."""

    @property
    @abstractmethod
    def input_shapes(self) -> dict[str, Shape]:
        """Name and shape of each input of the module, of one sample: what compute and memory are stated for."""

    @property
    @abstractmethod
    def table_row(self) -> tuple[object, ...]:
        """What a list of models shows: input size, patch size, width, depth, heads and number of outputs ("-": none)"""

    @property
    def block_count(self) -> int:
        """Number of consecutive blocks with activation checkpointing."""
        return 0

    @property
    def stem_block_count(self) -> int:
        """Number of blocks before these."""
        return 0

    @property
    def dropped_samples(self) -> float:
        """Share of a micro-batch's samples that the last block skips in training (drop-path)."""
        return 0.0

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether a sample's output depends, in training, on the others in its micro-batch."""
        return False

    def part_of(self, module: str) -> str:
        """Return the part of the model that a module belongs to, as `count_macs` names it."""
        return module.partition(".")[0]
