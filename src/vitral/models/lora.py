"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): train small matrices instead of large ones.

Shape letters: N tokens, I inputs, O outputs of a part, p parts of a packed layer (3 for query, key, value), r rank.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models.parameters import freeze_encoder

_TARGETS = {"attn": ("attn.qkv", "attn.proj"), "mlp": ("mlp.fc1", "mlp.fc2")}


class LoRALinear(nn.Linear):
    """A dense layer W x + b with an adapter: W x + b + (alpha / r) B A x, where only A and B are trained.

    It takes over the layer's own parameters under their names. A starts uniform within +-1/sqrt(I), as a dense layer
    of torch does, and B at zero, so that nothing changes at first. A packed layer's `parts` (query, key, value) have an
    adapter of rank r each, as the paper adapts each matrix separately; one over all would make them share A.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, parts: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        bound = 1 / math.sqrt(layer.in_features)
        self.lora_a = nn.Parameter(torch.empty(parts, rank, layer.in_features).uniform_(-bound, bound))
        self.lora_b = nn.Parameter(torch.zeros(parts, layer.out_features // parts, rank))

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to [..., p O]."""
        low = F.linear(input, self.scale * self.lora_a.flatten(0, 1))
        return F.linear(input, self.weight, self.bias) + F.linear(low, torch.block_diag(*self.lora_b))

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same: W + (alpha / r) B A."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        added = torch.block_diag(*self.lora_b.double()) @ self.lora_a.double().flatten(0, 1)
        plain.weight = nn.Parameter((self.weight.double() + self.scale * added).detach().to(self.weight))
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Literal["attn", "mlp", "both"]) -> None:
    """Put adapters on the dense layers of every block and freeze all the rest but the head: norms, tokens and positions
    stay as they are. Raises UserError for a model without such layers."""
    freeze_encoder(model)
    ends = tuple(end for target, ends in _TARGETS.items() if targets in (target, "both") for end in ends)
    found = [name for name, _ in model.named_modules() if name.startswith("blocks.") and name.endswith(ends)]
    if not found:
        raise UserError("this model has no blocks with attention to adapt", where="lora.rank")
    for name in found:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), name
        adapted = LoRALinear(layer, rank, alpha, parts=3 if name.endswith("qkv") else 1)
        model.set_submodule(name, adapted.to(layer.weight.device))


def merge_lora(model: nn.Module) -> None:
    """Turn every adapted layer into the plain one that computes the same."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())
