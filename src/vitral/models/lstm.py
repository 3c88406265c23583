"""Recurrent encoder-decoders: LSTMs (arXiv 1409.3215), without attention or with that of Luong or Bahdanau.

Shape letters: B batch, S source tokens, T target tokens, Q queries, M tokens of the memory, D width, X width of the
memory's tokens (both directions), V vocabulary, L layers, R rows of a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vitral.errors import UserError
from vitral.models.layers import Linear, xavier
from vitral.models.model import check_capture
from vitral.models.sequence_config import LSTMConfig
from vitral.models.sequence_model import Memory, SequenceModel, SequenceOutput, State, check_length, source_mask

_MAP = "decoder.cross_attn.map"
Cells = tuple[Tensor, ...]


class RecurrentEncoder(nn.Module):
    """Embeddings and recurrent layers, in both directions by option."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        c = config
        self.weight = nn.Parameter(torch.empty(c.source_vocabulary, c.width))
        self.drop = nn.Dropout(c.dropout)
        self.rnn = _layers(c, c.width, c.bidirectional)

    def forward(self, source_BS: Tensor, attend_BS: Tensor) -> tuple[Tensor, Cells]:
        """[B, S] to outputs [B, S, X], 0 behind the end, and last states, [L, B, X] each.

        No layer ever sees padding: the other direction would begin with it.
        """
        x_BSD = self.drop(F.embedding(source_BS, self.weight))
        if source_BS.is_meta:  # measured without values, so without padding
            y_BSX, last = self.rnn(x_BSD)
        else:
            lengths_B = attend_BS.sum(1).cpu()
            if not lengths_B.all():
                row = int(lengths_B.argmin())
                raise UserError("a source without tokens", where=f"row {row} of the batch", got="padding alone")
            packed = pack_padded_sequence(x_BSD, lengths_B, batch_first=True, enforce_sorted=False)
            with _without_autocast(source_BS.device):
                packed, last = self.rnn(packed)
            y_BSX, _ = pad_packed_sequence(packed, batch_first=True, total_length=source_BS.shape[1])
        directions = 1 + self.rnn.bidirectional
        cells = last if isinstance(last, tuple) else (last,)
        return y_BSX, tuple(cell.unflatten(0, (-1, directions)).transpose(1, 2).flatten(2) for cell in cells)


class DotAttention(nn.Module):
    """score(h, s) = h^T W s (Luong et al. 2015, arXiv 1508.04025, eq. 8, "general")."""

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.key = Linear(memory_width, width, bias=False)

    def init_weights(self) -> None:
        """Xavier uniform."""
        nn.init.xavier_uniform_(self.key.weight)

    def scores(self, query_BQD: Tensor, key_BMD: Tensor) -> Tensor:
        """[B, Q, M]."""
        return query_BQD @ key_BMD.mT


class AdditiveAttention(nn.Module):
    """score(s, h) = v^T tanh(W s + U h) (Bahdanau et al. 2015, arXiv 1409.0473, appendix A.1.2)."""

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.key = Linear(memory_width, width, bias=False)
        self.query = Linear(width, width, bias=False)
        self.v = Linear(width, 1, bias=False)

    def init_weights(self) -> None:
        """Xavier uniform."""
        for layer in (self.key, self.query, self.v):
            nn.init.xavier_uniform_(layer.weight)

    def scores(self, query_BQD: Tensor, key_BMD: Tensor) -> Tensor:
        """[B, Q, M]."""
        return self.v((self.query(query_BQD)[:, :, None] + key_BMD[:, None]).tanh()).squeeze(-1)


class RecurrentDecoder(nn.Module):
    """Embeddings, recurrent layers, attention to the memory, and the output layer.

    With attention the output layer reads tanh(W [c; h]) of context and state (Luong et al., eq. 5). Dot: the state
    attends after its update, so that all steps of the layers run at once. Additive: the state before the update
    attends, and the context enters the first layer (Bahdanau et al., section 3.1), so that steps run one by one.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        c, memory_width = config, config.memory_width
        self.weight = nn.Parameter(torch.empty(c.vocabulary, c.width))
        self.drop = nn.Dropout(c.dropout)
        self.context_enters = c.attention == "additive"
        self.rnn = _layers(c, c.width + memory_width * self.context_enters, False)
        kind = {"none": None, "dot": DotAttention, "additive": AdditiveAttention}[c.attention]
        self.cross_attn = None if kind is None else kind(c.width, memory_width)
        self.mix = None if kind is None else Linear(memory_width + c.width, c.width)

    def keys_values(self, memory_BMX: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What attention compares queries with, [B, M, D], and what it averages, [B, M, X]; nothing without it."""
        return [] if self.cross_attn is None else [(self.cross_attn.key(memory_BMX), memory_BMX)]

    def forward(
        self, tokens_RT: Tensor, cells: Cells, memory_kv: Sequence[tuple[Tensor, Tensor]], attend_BM: Tensor | None
    ) -> tuple[Tensor, Cells, Tensor | None]:
        """What the output layer reads, [R, T, D], the states after the last token, and the attention map.

        The map is [R, T, M], None without attention. R = B, or k rows of each sample one behind the other.
        """
        x_RTD = self.drop(F.embedding(tokens_RT, self.weight))
        if self.cross_attn is None or self.mix is None:
            y_RTD, cells = _run(self.rnn, x_RTD, cells)
            return self.drop(y_RTD), cells, None
        if self.context_enters:
            parts: list[tuple[Tensor, Tensor, Tensor]] = []
            for x_R1D in x_RTD.split(1, dim=1):
                context_R1X, map_R1M = self._attend(cells[0][-1][:, None], memory_kv, attend_BM)
                y_R1D, cells = _run(self.rnn, torch.cat([x_R1D, context_R1X], dim=-1), cells)
                parts.append((y_R1D, context_R1X, map_R1M))
            y_RTD, context_RTX, map_RTM = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        else:
            y_RTD, cells = _run(self.rnn, x_RTD, cells)
            context_RTX, map_RTM = self._attend(y_RTD, memory_kv, attend_BM)
        mixed_RTD = self.mix(torch.cat([context_RTX, y_RTD], dim=-1)).tanh()
        return self.drop(mixed_RTD), cells, map_RTM

    def _attend(
        self, query_RQD: Tensor, memory_kv: Sequence[tuple[Tensor, Tensor]], attend_BM: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Context [R, Q, X] and map [R, Q, M]; rows of one sample are further queries to its memory."""
        assert self.cross_attn is not None
        ((key_BMD, value_BMX),) = memory_kv
        scores_BQM = self.cross_attn.scores(query_RQD.reshape(key_BMD.shape[0], -1, query_RQD.shape[-1]), key_BMD)
        if attend_BM is not None:
            scores_BQM = scores_BQM.masked_fill(~attend_BM[:, None], float("-inf"))
        map_BQM = scores_BQM.softmax(-1)
        rows = query_RQD.shape[:2]
        return (map_BQM @ value_BMX).reshape(*rows, -1), map_BQM.reshape(*rows, -1)


class RecurrentSeq2Seq(SequenceModel):
    """Text to text: a recurrent encoder, and a decoder that starts from its last states.

    A bidirectional encoder's states go through a dense layer each, that of outputs with tanh (arXiv 1409.0473, appendix
    A.2.2, where it reads one direction); otherwise they are those of the decoder (arXiv 1409.3215).
    """

    config: LSTMConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        c = config
        self.encoder = RecurrentEncoder(c)
        kinds = (2 if c.cell == "lstm" else 1) * c.bidirectional
        self.bridge = nn.ModuleList(Linear(c.memory_width, c.width) for _ in range(kinds))
        self.decoder = RecurrentDecoder(c)
        self.output = Linear(c.width, c.vocabulary)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Recurrent layers uniform within D^-1/2, as torch has them; embeddings N(0, 1); others Xavier uniform."""
        for half in (self.encoder, self.decoder):
            nn.init.normal_(half.weight)
            half.rnn.reset_parameters()
        for layer in (*self.bridge, self.decoder.mix, self.output):
            if isinstance(layer, Linear):
                xavier(layer)
        if self.decoder.cross_attn is not None:
            self.decoder.cross_attn.init_weights()

    def encode(self, source: Tensor) -> Memory:
        """Texts [B, S] to memory [B, S, X]. Raises UserError for a text of padding alone."""
        attend_BS = source_mask(source, self.config)
        memory_BSX, cells = self.encoder(source, attend_BS)
        if len(self.bridge):
            cells = tuple(layer(cell) for layer, cell in zip(self.bridge, cells, strict=True))
            cells = cells[0].tanh(), *cells[1:]
        return Memory(memory_BSX, attend_BS, cells)

    def decode(self, memory: Memory, target_in_BT: Tensor, capture: Sequence[str] = ()) -> SequenceOutput:
        """See `SequenceModel`."""
        check_capture(capture, self.capture_names())
        check_length(target_in_BT.shape[1], self.config, "target")
        memory_kv = self.decoder.keys_values(memory.memory_BMD)
        y_BTD, _, map_BTM = self.decoder(target_in_BT, memory.state, memory_kv, memory.attend_BM)
        maps = {} if map_BTM is None else {_MAP: map_BTM[:, None]}
        return SequenceOutput(self.output(y_BTD), {name: maps[name] for name in capture})

    @torch.no_grad()
    def start(self, memory: Memory, copies: int = 1, max_length: int | None = None) -> State:
        """See `SequenceModel`."""
        self.room(max_length)
        cells = tuple(cell_LBD.repeat_interleave(copies, dim=1) for cell_LBD in memory.state)
        memory_kv = self.decoder.keys_values(memory.memory_BMD)
        return State(cells[0].shape[1], copies, memory.attend_BM, memory_kv, cells=cells)

    @torch.no_grad()
    def step(self, tokens_R: Tensor, state: State) -> Tensor:
        """See `SequenceModel`."""
        y_R1D, state.cells, _ = self.decoder(tokens_R[:, None], state.cells, state.memory_kv, state.attend_BM)
        state.length += 1
        return self.output(y_R1D)[:, 0]

    def capture_names(self) -> list[str]:
        """The attention map, [B, 1, T, M], where there is attention."""
        return [] if self.decoder.cross_attn is None else [_MAP]


def _layers(config: LSTMConfig, inputs: int, bidirectional: bool) -> nn.LSTM | nn.RNN:
    kind = nn.LSTM if config.cell == "lstm" else nn.RNN
    dropout = config.dropout if config.layers > 1 else 0.0
    return kind(inputs, config.width, config.layers, batch_first=True, dropout=dropout, bidirectional=bidirectional)


def _run(rnn: nn.LSTM | nn.RNN, x_BTD: Tensor, cells: Cells) -> tuple[Tensor, Cells]:
    """Outputs and last states after the inputs; a plain cell has one state, an LSTM two."""
    if x_BTD.device.type == "cpu":
        dtype = next(rnn.parameters()).dtype
        x_BTD, cells = x_BTD.to(dtype), tuple(cell.to(dtype) for cell in cells)
    with _without_autocast(x_BTD.device):
        y_BTD, last = rnn(x_BTD, cells if isinstance(rnn, nn.LSTM) else cells[0])
    return y_BTD, last if isinstance(last, tuple) else (last,)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU recurrent layers compute in the type of their weights: without AVX-512 there is no LSTM in bfloat16."""
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()
