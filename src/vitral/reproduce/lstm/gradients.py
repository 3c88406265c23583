"""How far gradients reach back: of the last output of an encoder, with respect to the embedding of each token.

Hochreiter 1991 and Bengio et al. 1994: through a recurrence they fall exponentially with the distance. Shape letters: B
samples, T tokens, D width, X features of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitral.models.sequence_model import SequenceModel

Floats = NDArray[np.float64]


def gradient_norms(last: Callable[[Tensor], Tensor], x_BTD: Tensor, seed: int = 0) -> Floats:
    """Mean over samples of |d (v . y) / d x_t| for the distances 0 to T - 1 of x_t from the last token.

    last: embeddings [B, T, D] to the output y at the last token, [B, X]. v: a random direction per sample, of length 1.
    """
    x_BTD = x_BTD.detach().requires_grad_()
    y_BX = last(x_BTD)
    direction_BX = torch.randn(y_BX.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction_BX = (direction_BX / direction_BX.norm(dim=-1, keepdim=True)).to(y_BX)
    (grad_BTD,) = torch.autograd.grad((direction_BX * y_BX).sum(), x_BTD)
    return grad_BTD.norm(dim=-1).mean(0).flip(0).double().numpy()


def encoder_norms(model: SequenceModel, source_BT: Tensor, seed: int = 0) -> Floats:
    """`gradient_norms` of the encoder of a model of texts; texts of one length, without padding. The model is changed
    to float64, in which small gradients are no zeros."""
    model = model.double().eval()
    inside = dict(model.get_submodule("encoder").named_children())
    place = inside["embed" if "embed" in inside else "drop"]  # behind positions; of a recurrent encoder: what enters it
    seen: list[Tensor] = []

    def see(_: nn.Module, __: object, out: Tensor) -> None:
        seen.append(out)

    handle = place.register_forward_hook(see)
    try:
        with torch.no_grad():
            model.encode(source_BT)
    finally:
        handle.remove()

    def last(x_BTD: Tensor) -> Tensor:
        handle = place.register_forward_hook(lambda _, __, ___: x_BTD)
        try:
            return model.encode(source_BT).memory_BMD[:, -1]
        finally:
            handle.remove()

    return gradient_norms(last, seen[0], seed)


def factor_per_step(norms_T: Sequence[float] | Floats, first: int = 1) -> float:
    """By what the norm is multiplied per step back: exp of the slope of a line through its logarithm, from the distance
    `first` on. Norms of 0 take no part."""
    norms = np.asarray(norms_T, np.float64)
    distance = np.arange(len(norms))
    used = (distance >= first) & (norms > 0)
    assert used.sum() > 1
    return float(np.exp(np.polyfit(distance[used], np.log(norms[used]), 1)[0]))
