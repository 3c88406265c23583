"""The Transformer encoder-decoder (arXiv 1706.03762).

Shape letters: B batch, S source tokens, T target tokens, D width, R rows of a search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitral.models.activation_checkpointing import checkpointed_call
from vitral.models.attention import AttentionContext
from vitral.models.decoder import SequenceBlock, TextDecoder, TokenEmbedding, init_stack
from vitral.models.model import check_capture
from vitral.models.sequence_config import Seq2SeqConfig
from vitral.models.sequence_model import Memory, SequenceModel, SequenceOutput, State, source_mask


class TextEncoder(nn.Module):
    """Embeddings, blocks of self-attention and, with norms first, a final norm (section 3.1)."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        c = config
        self.embed = TokenEmbedding(c, None if c.share_embeddings else c.source_vocabulary)
        self.blocks = nn.ModuleList(SequenceBlock(c) for _ in range(c.encoder_depth))
        self.norm = nn.LayerNorm(c.width, eps=c.norm_eps) if c.norm_first else nn.Identity()

    def forward(
        self, source_BS: Tensor, attend_BS: Tensor, weight_VD: Tensor | None, recompute: Sequence[bool]
    ) -> Tensor:
        """[B, S] to [B, S, D]. weight_VD: shared vectors of tokens. recompute: which blocks store their input alone."""
        x_BSD, context = self.embed(source_BS, weight_VD), AttentionContext(attend_BN=attend_BS)
        for block, again in zip(self.blocks, recompute, strict=True):
            x_BSD = checkpointed_call(block, x_BSD, context) if again else block(x_BSD, context)
        return self.norm(x_BSD)


class Seq2Seq(SequenceModel):
    """Text to text: an encoder, and a decoder that attends to it."""

    config: Seq2SeqConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = TextEncoder(config)
        self.decoder = TextDecoder(config, config.width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Xavier uniform with zero biases; embeddings N(0, 1 / D)."""
        init_stack(self.encoder.embed, self.encoder.blocks, self.encoder.norm)
        self.decoder.init_weights()

    def encode(self, source: Tensor) -> Memory:
        """Texts [B, S] to memory [B, S, D]. A text of padding alone attends to nothing."""
        attend_BS = source_mask(source, self.config)
        shared_VD = self.decoder.embed.weight if self.config.share_embeddings else None
        recompute = [self.recomputes(i) for i in range(self.config.encoder_depth)]
        return Memory(self.encoder(source, attend_BS, shared_VD, recompute), attend_BS)

    def decode(self, memory: Memory, target_in_BT: Tensor, capture: Sequence[str] = ()) -> SequenceOutput:
        """See `SequenceModel`."""
        check_capture(capture, self.capture_names())
        recompute = [self.recomputes(i) for i in range(self.config.encoder_depth, self.config.block_count)]
        return self.decoder(target_in_BT, memory, capture, recompute)

    def start(self, memory: Memory, copies: int = 1, max_length: int | None = None) -> State:
        """See `SequenceModel`."""
        return self.decoder.start(memory, copies, self.room(max_length))

    def step(self, tokens_R: Tensor, state: State) -> Tensor:
        """See `SequenceModel`."""
        return self.decoder.step(tokens_R, state)

    @property
    def checkpointable(self) -> list[nn.Module]:
        """Blocks of encoder and decoder."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def capture_names(self) -> list[str]:
        """Of the decoder's blocks."""
        return self.decoder.capture_names()
