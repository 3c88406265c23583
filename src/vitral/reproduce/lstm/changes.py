"""Changes of a model by hooks, for experiments alone: what a Transformer becomes without one of its ideas.

Shape letters: B batch, T tokens, D width, N = h d features of all heads.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models.attention import AttentionContext
from vitral.models.decoder import SequenceBlock, TokenEmbedding
from vitral.models.layers import Attention, CrossAttention

Change = Literal["no causal mask", "no padding mask", "no scale", "no positions"]


def change(model: nn.Module, kind: Change) -> None:
    """Change a Transformer in place, for training and decoding alike.

    no causal mask: every token of the decoder attends to all, in teacher forcing; a search has no later tokens. no
    padding mask: all blocks attend to padding as to any token. no scale: scores are q k^T, without 1 / sqrt(d). no
    positions: learned ones (`positions=learned`) that are 0 and stay so. Raises UserError for a model without blocks
    of attention.
    """
    blocks = [module for module in model.modules() if isinstance(module, SequenceBlock)]
    if not blocks:
        raise UserError("this change is one of Transformers", got=type(model).__name__)
    if kind == "no positions":
        _freeze_positions(model)
    elif kind == "no scale":
        for block in blocks:
            _unscale(block)
    else:
        replaced = {"causal": False} if kind == "no causal mask" else {"attend_BN": None, "attend_BM": None}

        def with_context(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x_BTD, context = args
            assert isinstance(context, AttentionContext)
            return x_BTD, context._replace(**replaced)

        for block in blocks:
            block.register_forward_pre_hook(with_context)


@torch.no_grad()
def _freeze_positions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, TokenEmbedding):
            assert module.positions is not None, "positions=learned is expected"
            module.positions.zero_().requires_grad_(False)


def _unscale(block: SequenceBlock) -> None:
    """Queries grow by sqrt(d), which undoes the scale of the scores."""
    for module in block.modules():
        if isinstance(module, Attention | CrossAttention):
            layer = module.qkv if isinstance(module, Attention) else module.q
            features = layer.out_features // (3 if isinstance(module, Attention) else 1)
            factor = (features // module.heads) ** 0.5

            def grown(_: nn.Module, __: Any, out: Tensor, features: int = features, factor: float = factor) -> Tensor:
                q_BTN, kv_BTX = out[..., :features], out[..., features:]
                return torch.cat([q_BTN * factor, kv_BTX], dim=-1)

            layer.register_forward_hook(grown)
