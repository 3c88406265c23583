"""Small Image GPTs for tests, and the search over codes without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitral.models.igpt import IGPT
from vitral.models.igpt_config import IGPTConfig
from vitral.models.palette import Palette

SMALL: dict[str, Any] = {
    "image_size": (3, 4), "in_channels": 1, "num_classes": 0, "colors": 5, "width": 16, "depth": 2, "heads": 2,
    "mlp_dim": 24,
}  # fmt: skip


def igpt(dtype: torch.dtype = torch.float32, std: float = 0.3, **options: Any) -> IGPT:
    """In evaluation mode, with weights large enough that every code matters."""
    torch.manual_seed(0)
    model = IGPT(IGPTConfig(**{**SMALL, **options}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.to(dtype).eval()


def colors_of(model: IGPT) -> Tensor:
    """The colors of its palette, [K, C]."""
    assert isinstance(model.tokenizer, Palette)
    return model.tokenizer.colors_KC


def codes_of(model: IGPT, count: int = 3) -> Tensor:
    """Random codes of so many images, [count, N]."""
    made = torch.Generator().manual_seed(count)
    return torch.randint(0, model.config.colors, (count, model.config.tokens), generator=made)


class Uncached:
    """What `CodeSteps` computes, from all codes so far at each step."""

    def __init__(self, model: IGPT) -> None:
        self.model = model

    def start(self, memory: Tensor, copies: int, max_length: int) -> dict[str, Tensor]:
        """The classes, and no codes yet."""
        labels = memory.repeat_interleave(copies)
        return {"labels": labels, "codes": labels.new_empty(len(labels), 0)}

    def step(self, tokens_R: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The last of all logits. The first call's token is the search's own start."""
        had = state.get("started") is not None
        state["started"] = tokens_R
        if had:
            state["codes"] = torch.cat([state["codes"], tokens_R[:, None]], dim=1)
        padded = torch.cat([state["codes"], tokens_R.new_zeros(len(tokens_R), 1)], dim=1)
        out = self.model.read(padded, state["labels"])
        return self.model.code_head(out.patches_BND[:, -1])

    def reorder(self, state: dict[str, Tensor], index_R: Tensor) -> None:
        """Samplers do not."""
        raise NotImplementedError
