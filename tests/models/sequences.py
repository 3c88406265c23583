"""Small random models of sequences in float64, and batches for them.

Shape letters: B batch, C channels, H W height and width, S source tokens, T target tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitral.models.create import create_sequence_model
from vitral.models.presets import resolve
from vitral.models.sequence_model import SequenceModel

VOCABULARY, PAD = 11, 0
_TEXT: dict[str, Any] = {
    "vocabulary": VOCABULARY, "source_vocabulary": 13, "width": 12, "max_length": 24, "dropout": 0.0,
}  # fmt: skip
_STACK: dict[str, Any] = {**_TEXT, "heads": 3, "mlp_dim": 20}
_ENCODER = resolve(
    "vit_micro_patch2_8", image_size=(4, 10), in_channels=1, width=8, depth=2, heads=2, mlp_dim=16, num_classes=0
).model_dump()
_IMAGE: dict[str, Any] = {key: value for key, value in _STACK.items() if key != "source_vocabulary"}

# name: preset and options. Every kind of decoder, embedding, norm and attention is in one of them.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pre": ("transformer_tiny", _STACK),
    "post": ("transformer_tiny", {
        **_STACK, "norm_first": False, "source_vocabulary": VOCABULARY, "share_embeddings": True,
        "positions": "learned", "activation": "gelu", "embedding_norm": True,
    }),
    "untied": ("transformer_tiny", {
        **_STACK, "tie_output": False, "output_bias": True, "positions": "sinusoidal_halves",
        "scale_embeddings": False, "encoder_depth": 1, "decoder_depth": 3,
    }),
    "lstm": ("lstm_tiny", {**_TEXT, "attention": "none", "layers": 2}),
    "lstm_dot": ("lstm_tiny", _TEXT),
    "lstm_additive": ("lstm_tiny", {**_TEXT, "attention": "additive", "layers": 2, "bidirectional": False}),
    "rnn": ("lstm_tiny", {**_TEXT, "cell": "rnn", "layers": 2}),
    "rnn_additive": ("lstm_tiny", {**_TEXT, "cell": "rnn", "attention": "additive", "bidirectional": False}),
    "image": ("vit_text_micro_patch2_8x40", {**_IMAGE, "encoder": _ENCODER}),
    "image_read": ("vit_text_micro_patch2_8x40", {
        **_IMAGE, "project_memory": False,
        "encoder": {**_ENCODER, "class_token": False, "pool": "avg", "fc_norm": False, "registers": 2},
    }),
}  # fmt: skip
TEXTS = [name for name in VARIANTS if "image" not in name]
RECURRENT = [name for name in VARIANTS if name.startswith(("lstm", "rnn"))]
ATTENDING = [name for name in VARIANTS if name not in ("lstm",)]


def build(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> SequenceModel:
    """A variant with every parameter drawn anew from N(0, 0.3), in eval mode."""
    preset, own = VARIANTS[name]
    torch.manual_seed(3)
    model = create_sequence_model(preset, **{**own, **options}).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def texts(lengths: list[int], size: int, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Random tokens, padded on the right to `size`: [B, size]."""
    generator = torch.Generator().manual_seed(seed)
    text_BS = torch.randint(1, vocabulary, (len(lengths), size), generator=generator)
    return text_BS.masked_fill(torch.arange(size) >= torch.tensor(lengths)[:, None], PAD)


def sources(model: SequenceModel, count: int, seed: int = 0) -> Tensor:
    """Images, or texts of odd lengths."""
    if model.config.reads_images:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, 1, 4, 10, generator=generator)
    return texts([7, 3, 5, 1, 6][:count], 7, seed=seed)
