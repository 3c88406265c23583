"""The Transformer's stacks for texts (arXiv 1706.03762, section 3): embeddings, blocks, and the decoder.

Shape letters: B batch, T tokens, M tokens of the memory, D width, V vocabulary, P positions, R rows of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.activation_checkpointing import checkpointed_call
from vitral.models.attention import PLAIN, AttentionContext, KVCache
from vitral.models.layers import Attention, CrossAttention, Linear, Mlp
from vitral.models.position import sinusoidal_table
from vitral.models.sequence_config import TransformerDecoderConfig
from vitral.models.sequence_model import Memory, SequenceOutput, State, check_length


class TokenEmbedding(nn.Module):
    """Vectors of tokens, times sqrt(D) by option, plus positions (sections 3.4, 3.5); norm by option; dropout.

    vocabulary: None where the vectors of tokens are those of another embedding, which every call then gets.
    """

    places: Tensor | None

    def __init__(self, config: TransformerDecoderConfig, vocabulary: int | None) -> None:
        super().__init__()
        c = self.config = config
        self.weight = None if vocabulary is None else nn.Parameter(torch.empty(vocabulary, c.width))
        learned = c.positions == "learned"
        self.positions = nn.Parameter(torch.empty(c.max_length, c.width)) if learned else None
        self.norm = nn.LayerNorm(c.width, eps=c.norm_eps) if c.embedding_norm else nn.Identity()
        self.drop = nn.Dropout(c.dropout)
        self._set_places(None)

    def _set_places(self, device: torch.device | None) -> None:
        """Registers the table of sines, which no file holds, in float32."""
        table = None
        if self.positions is None:
            halves = self.config.positions == "sinusoidal_halves"
            table = sinusoidal_table(self.config.max_length, self.config.width, halves, device).float()
        self.register_buffer("places", table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as usual, but the table of sines is computed again, in float32."""
        super()._apply(fn, recurse)
        if self.places is not None:
            self._set_places(self.places.device)
        return self

    def init_weights(self) -> None:
        """Vectors of tokens N(0, 1 / D), so that scaled ones have variance 1; of positions N(0, 0.02)."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.config.width**-0.5)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.02)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()

    def forward(self, tokens_BT: Tensor, weight_VD: Tensor | None = None, start: int = 0) -> Tensor:
        """[B, T] to [B, T, D]; start: place of the first token. Raises UserError beyond the longest text."""
        weight_VD = self.weight if weight_VD is None else weight_VD
        table_PD = self.places if self.positions is None else self.positions
        assert weight_VD is not None
        assert table_PD is not None
        stop = start + tokens_BT.shape[1]
        check_length(stop, self.config, "text")
        x_BTD = F.embedding(tokens_BT, weight_VD)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * self.config.width**0.5
        return self.drop(self.norm(x_BTD + table_PD[start:stop].to(x_BTD.dtype)))


class SequenceBlock(nn.Module):
    """Self-attention, in a decoder then attention to the memory, and an MLP (section 3.1): each with dropout and a
    residual connection, its norm before the layer or, as published, after the connection (`norm_first=false`).

    memory_width: width of the memory's tokens, None: no attention to a memory.
    """

    def __init__(self, config: TransformerDecoderConfig, memory_width: int | None = None) -> None:
        super().__init__()
        c = config
        self.norm_first = c.norm_first
        self.norm1 = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.attn = Attention(c.width, c.heads, c.dropout)
        self.cross_attn = None
        if memory_width is not None:
            self.norm_cross = nn.LayerNorm(c.width, eps=c.norm_eps)
            self.cross_attn = CrossAttention(c.width, c.heads, memory_width, c.dropout)
        self.norm2 = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.mlp = Mlp(c.width, c.mlp_dim, c.dropout, "exact" if c.activation == "gelu" else None)

    def init_weights(self) -> None:
        """Sets every parameter of the block."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Attention | CrossAttention | Mlp):
                module.init_weights()

    def forward(self, x_BTD: Tensor, context: AttentionContext = PLAIN) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x_BTD = self._add(x_BTD, self.norm1, lambda x: self.attn(x, context))
        cross_attn = self.cross_attn
        if cross_attn is not None:
            x_BTD = self._add(x_BTD, self.norm_cross, lambda x: cross_attn(x, context))
        return self._add(x_BTD, self.norm2, self.mlp)

    def _add(self, x_BTD: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BTD + layer(norm(x_BTD)) if self.norm_first else norm(x_BTD + layer(x_BTD))


class TextDecoder(nn.Module):
    """Tokens so far and a memory in, logits of each next token out.

    The output layer has the weights of the embeddings by option (`tie_output`, section 3.4). checkpointed: see
    `Network`, of this stack alone.
    """

    def __init__(self, config: TransformerDecoderConfig, memory_width: int) -> None:
        super().__init__()
        c = self.config = config
        self.embed = TokenEmbedding(c, c.vocabulary)
        self.blocks = nn.ModuleList(SequenceBlock(c, memory_width) for _ in range(c.decoder_depth))
        self.norm = nn.LayerNorm(c.width, eps=c.norm_eps) if c.norm_first else nn.Identity()
        self.output = None if c.tie_output else Linear(c.width, c.vocabulary, bias=False)
        self.output_bias = nn.Parameter(torch.empty(c.vocabulary)) if c.output_bias else None

    def init_weights(self) -> None:
        """Sets every parameter; the output's weights are Xavier uniform where they are its own."""
        init_stack(self.embed, self.blocks, self.norm)
        if self.output is not None:
            nn.init.xavier_uniform_(self.output.weight)
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    def forward(
        self, tokens_BT: Tensor, memory: Memory, capture: Sequence[str] = (), recompute: Sequence[bool] = ()
    ) -> SequenceOutput:
        """Logits [B, T, V], and what `capture` names, as "decoder.blocks.0.cross_attn.map". recompute: which blocks
        store their input alone."""
        plain = AttentionContext(causal=True, memory_BMD=memory.memory_BMD, attend_BM=memory.attend_BM)
        captured: dict[str, Tensor] = {}
        x_BTD = self.embed(tokens_BT)
        for i, block in enumerate(self.blocks):
            name, inside = f"decoder.blocks.{i}", dict[str, Tensor]()
            is_seen = any(each.startswith(f"{name}.") for each in capture)
            context = plain._replace(captured=inside if is_seen else None)
            again = not is_seen and any(recompute[i : i + 1])
            x_BTD = checkpointed_call(block, x_BTD, context) if again else block(x_BTD, context)
            found = {name: x_BTD} | {f"{name}.{part}": value for part, value in inside.items()}
            captured |= {each: found[each] for each in capture if each in found}
        return SequenceOutput(self.logits(x_BTD), captured)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Tokens after the last block to logits [..., V]."""
        x_BTD = self.norm(x_BTD)
        if self.output is None:
            assert self.embed.weight is not None
            return F.linear(x_BTD, self.embed.weight, self.output_bias)
        return self.output(x_BTD) if self.output_bias is None else self.output(x_BTD) + self.output_bias

    @torch.no_grad()
    def start(self, memory: Memory, copies: int, max_length: int) -> State:
        """See `SequenceModel.start`. Keys and values of the memory are computed once per sample and never copied. A
        mask that forbids nothing is left out: attention is faster without one."""
        attend_BM = memory.attend_BM
        if attend_BM is not None and not torch.compiler.is_compiling() and attend_BM.all():
            attend_BM = None
        memory_kv: list[tuple[Tensor, Tensor]] = []
        for block in self.blocks:
            assert isinstance(block, SequenceBlock)
            assert block.cross_attn is not None
            memory_kv.append(block.cross_attn.keys_values(memory.memory_BMD))
        rows, heads = memory.memory_BMD.shape[0] * copies, self.config.heads
        caches = [
            KVCache(rows, heads, self.config.width // heads, max_length, k_BhMd.dtype, k_BhMd.device)
            for k_BhMd, _ in memory_kv
        ]
        return State(rows, copies, attend_BM, memory_kv, caches)

    @torch.no_grad()
    def step(self, tokens_R: Tensor, state: State) -> Tensor:
        """See `SequenceModel.step`. The newest token attends to all before it, so no mask is needed."""
        x_R1D = self.embed(tokens_R[:, None], start=state.length)
        for block, cache, memory_kv in zip(self.blocks, state.caches, state.memory_kv, strict=True):
            x_R1D = block(x_R1D, AttentionContext(cache=cache, memory_kv=memory_kv, attend_BM=state.attend_BM))
        state.length += 1
        return self.logits(x_R1D)[:, 0]

    def capture_names(self) -> list[str]:
        """Every name that `capture` takes."""
        ends = ("", *(f".{layer}.{part}" for layer in ("attn", "cross_attn") for part in ("q", "k", "map")))
        return [f"decoder.blocks.{i}{end}" for i in range(len(self.blocks)) for end in ends]


def init_stack(embed: TokenEmbedding, blocks: nn.ModuleList, norm: nn.Module) -> None:
    """Sets every parameter of a stack of blocks, its embeddings and its final norm."""
    embed.init_weights()
    for block in blocks:
        assert isinstance(block, SequenceBlock)
        block.init_weights()
    if isinstance(norm, nn.LayerNorm):
        norm.reset_parameters()
