"""Images to texts: a Vision Transformer, read by a text decoder (TrOCR, arXiv 2109.10282) or by CTC.

Shape letters: B batch, C channels, H W image height and width, N patches, M tokens of the memory, D width, T positions
of the output, V vocabulary, R rows of a search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models.decoder import TextDecoder
from vitral.models.layers import Linear, xavier
from vitral.models.model import check_capture
from vitral.models.sequence_config import ImageToTextConfig
from vitral.models.sequence_model import Memory, SequenceModel, SequenceOutput, State
from vitral.models.vit import VisionTransformer
from vitral.structs import EncoderOutput


class ImageToText(SequenceModel):
    """Images in [0,1] or uint8 in, logits of tokens out; normalization happens inside the encoder.

    With `decoder=ctc`, `model(images)` is [B, T, V + 1], where T are columns of patches, and the last output stands for
    no token (`config.blank_id`).
    """

    config: ImageToTextConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    def __init__(self, config: ImageToTextConfig) -> None:
        super().__init__(config)
        c, width = config, config.encoder.width
        self.encoder = VisionTransformer(c.encoder)
        self.project, self.decoder, self.ctc = None, None, None
        if c.decoder == "ctc":
            self.ctc = Linear(width, c.vocabulary + 1)
        else:
            self.project = Linear(width, c.width) if c.project_memory and width != c.width else None
            self.decoder = TextDecoder(c, width if self.project is None else c.width)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Xavier uniform with zero biases; embeddings N(0, 1 / D); the encoder's own rules."""
        self.encoder.init_weights()
        for layer in (self.project, self.ctc):
            if layer is not None:
                xavier(layer)
        if self.decoder is not None:
            self.decoder.init_weights()

    def encode(self, source: Tensor) -> Memory:
        """Images [B, C, H, W], of any size that the patch size divides, to class token and patches, [B, M, D]."""
        out = self._read(source)
        tokens = [out.patches_BND] if out.cls_BD is None else [out.cls_BD[:, None], out.patches_BND]
        memory_BMD = torch.cat(tokens, dim=1)
        return Memory(memory_BMD if self.project is None else self.project(memory_BMD))

    def decode(self, memory: Memory, target_in_BT: Tensor, capture: Sequence[str] = ()) -> SequenceOutput:
        """See `SequenceModel`. Raises UserError with `decoder=ctc`."""
        writer = self._writer()
        check_capture(capture, self.capture_names())
        recompute = [self.recomputes(i) for i in range(self.config.encoder.depth, self.config.block_count)]
        return writer(target_in_BT, memory, capture, recompute)

    def forward(self, source: Tensor, target_in_BT: Tensor | None = None) -> Tensor:
        """Images of the model's own size and, but for CTC, the target to logits [B, T, V], or [B, T, V + 1] with CTC.

        Raises UserError for images of another size, channel count or kind of number.
        """
        self.encoder.check_size(source)
        if self.ctc is not None:
            return self.ctc_logits(self._read(source))
        assert target_in_BT is not None
        return self.decode(self.encode(source), target_in_BT).logits_BTV

    def ctc_logits(self, out: EncoderOutput) -> Tensor:
        """Encoded patches to logits [B, T, V + 1]: T columns, or with `ctc_rows=all` all patches column by column."""
        assert self.ctc is not None
        patches_BhwD = out.patches_BND.unflatten(1, out.grid)
        mean = self.config.ctc_rows == "mean"
        return self.ctc(patches_BhwD.mean(1) if mean else patches_BhwD.transpose(1, 2).flatten(1, 2))

    def start(self, memory: Memory, copies: int = 1, max_length: int | None = None) -> State:
        """See `SequenceModel`. Raises UserError with `decoder=ctc`."""
        return self._writer().start(memory, copies, self.room(max_length))

    def step(self, tokens_R: Tensor, state: State) -> Tensor:
        """See `SequenceModel`."""
        return self._writer().step(tokens_R, state)

    def example_inputs(self, samples: int) -> tuple[Tensor, ...]:
        """Images, and targets where there is a decoder."""
        images = self.encoder.example_inputs(samples)
        return images if self.ctc is not None else (*images, super().example_inputs(samples)[1])

    def example_labels(self, samples: int) -> Tensor | None:
        """A token for each position."""
        if self.ctc is None:
            return super().example_labels(samples)
        rows, columns = self.encoder.grid
        count = columns * (1 if self.config.ctc_rows == "mean" else rows)
        return torch.zeros(samples, count, dtype=torch.long, device=self.device)

    @property
    def checkpointable(self) -> list[nn.Module]:
        """Blocks of encoder and decoder."""
        return [*self.encoder.blocks, *(self.decoder.blocks if self.decoder is not None else ())]

    def capture_names(self) -> list[str]:
        """Of the decoder's blocks."""
        return [] if self.decoder is None else self.decoder.capture_names()

    def _read(self, images_BCHW: Tensor) -> EncoderOutput:
        self.encoder.checkpointed = self.checkpointed
        return self.encoder.encode(images_BCHW)

    def _writer(self) -> TextDecoder:
        if self.decoder is None:
            hint = "model(images) gives the logits of all positions."
            raise UserError("this model does not write token by token", got="decoder=ctc", hint=hint)
        return self.decoder
