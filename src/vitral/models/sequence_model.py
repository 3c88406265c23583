"""Interface of all models that write sequences: teacher forcing for training, single steps for a search.

Shape letters: B samples, T target tokens, M tokens of the memory, D width, V vocabulary, R rows of a search (k copies
of each sample, one behind the other), L recurrent layers, h heads, d features of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.attention import KVCache
from vitral.models.network import Network
from vitral.models.sequence_config import SequenceConfig


class Memory(NamedTuple):
    """An encoded source. attend_BM: bool, false for padding; None: there is none. state: what a recurrent decoder
    starts from, [L, B, D] each (an LSTM: output and cell)."""

    memory_BMD: Tensor
    attend_BM: Tensor | None = None
    state: tuple[Tensor, ...] = ()


class SequenceOutput(NamedTuple):
    """Logits [B, T, V], and captured intermediates by name."""

    logits_BTV: Tensor
    captured: dict[str, Tensor]


@dataclass
class State:
    """A search between two steps: R rows, of which row r continues sample r // copies. For inference only.

    memory_kv: keys and values of the memory, of each layer, for B samples: rows share them. caches: keys and values of
    the tokens so far, one cache per decoder block. cells: recurrent states, [L, R, D] each. length: tokens so far.
    """

    rows: int
    copies: int
    attend_BM: Tensor | None
    memory_kv: list[tuple[Tensor, Tensor]]
    caches: list[KVCache] = field(default_factory=list[KVCache])
    cells: tuple[Tensor, ...] = ()
    length: int = 0


class SequenceModel(Network):
    """A source, an image or a text, in; the logits of a sequence of tokens out.

    A text is [B, T] int64, padded on the right with `config.pad_id`; images are as every ImageModel takes them.
    """

    config: SequenceConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    @abstractmethod
    def encode(self, source: Tensor) -> Memory:
        """The source, read once: texts [B, S], or images [B, C, H, W]."""

    @abstractmethod
    def decode(self, memory: Memory, target_in_BT: Tensor, capture: Sequence[str] = ()) -> SequenceOutput:
        """Logits of each next token, given all tokens up to it (teacher forcing).

        target_in_BT: the start token, then the target without its last token. Logits of a position depend on tokens up
        to it alone, so that padding behind the end changes no other. capture: names of `capture_names`. Raises
        UserError for an unknown one, and for a target longer than `config.max_length`.
        """

    def forward(self, source: Tensor, target_in_BT: Tensor) -> Tensor:
        """`decode` of `encode`: [B, T, V]."""
        return self.decode(self.encode(source), target_in_BT).logits_BTV

    @abstractmethod
    def start(self, memory: Memory, copies: int = 1, max_length: int | None = None) -> State:
        """The state before the first token, of `copies` rows per sample; what does not change is computed here, once.

        max_length: most tokens that `step` will get, None: the config's. Raises UserError for more than the config's.
        """

    @abstractmethod
    def step(self, tokens_R: Tensor, state: State) -> Tensor:
        """Append one token to each row and return the logits of the next one, [R, V]; changes `state`."""

    @torch.no_grad()
    def reorder(self, state: State, index_R: Tensor) -> None:
        """Let row r of `state` continue what row `index_R`[r] held, a row of the same sample.

        Fewer rows leave out samples that are done, all their rows at once; only then the memory is copied.
        """
        if index_R.shape[0] != state.rows:
            kept_B = index_R[:: state.copies] // state.copies
            state.attend_BM = None if state.attend_BM is None else state.attend_BM.index_select(0, kept_B)
            state.memory_kv = [(k.index_select(0, kept_B), v.index_select(0, kept_B)) for k, v in state.memory_kv]
            state.rows = index_R.shape[0]
        for cache in state.caches:
            cache.reorder(index_R)
        state.cells = tuple(cell_LRD.index_select(1, index_R) for cell_LRD in state.cells)

    @abstractmethod
    def capture_names(self) -> list[str]:
        """Every name that `capture` takes."""

    @property
    def alignment_names(self) -> list[str]:
        """Those of the maps of target to memory tokens, [B, h, T, M], in the order of layers."""
        return [name for name in self.capture_names() if name.endswith("cross_attn.map")]

    def room(self, max_length: int | None) -> int:
        """`max_length` of `start`, checked."""
        length = self.config.max_length if max_length is None else max_length
        check_length(length, self.config, "max_length")
        return length

    def example_inputs(self, samples: int) -> tuple[Tensor, ...]:
        """A source and a target of the config's `example_length` tokens, without padding."""
        token = 1 if self.config.pad_id == 0 else 0
        text_BT = torch.full((samples, self.config.example_length), token, device=self.device)
        return text_BT, text_BT.clone()

    def example_labels(self, samples: int) -> Tensor | None:
        """A token for each position."""
        return torch.zeros(samples, self.config.example_length, dtype=torch.long, device=self.device)


def check_length(length: int, config: SequenceConfig, where: str) -> None:
    """Raises UserError for a text that is longer than the model takes."""
    if length > config.max_length:
        hint = "Build the model with a larger max_length, or leave these texts out."
        raise UserError("text too long", where=where, got=f"{length} tokens", expected=f"at most {config.max_length}",
                        hint=hint)  # fmt: skip


def source_mask(source_BS: Tensor, config: SequenceConfig) -> Tensor:
    """Which tokens of a text are no padding, [B, S]. Raises UserError for a text that is too long."""
    check_length(source_BS.shape[1], config, "source")
    return source_BS != config.pad_id
