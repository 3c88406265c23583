"""Similarity of layers of two models: centered kernel alignment (CKA), over any number of images.

Linear CKA: Kornblith et al. 2019 (arXiv 1905.00414). Its unbiased estimate from batches: Nguyen et al. 2021
(2010.15327, section 2), with the estimator of HSIC by Song et al. 2012. ViT and ResNet: Raghu et al. 2021 (2108.08810).
Shape letters: B batch, C channels, H W image height and width, P features of a layer, L M layers of the two models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.model import ImageModel

LEAST = 4  # images of a batch: the estimator divides by B - 3


def layer_names(model: ImageModel) -> list[str]:
    """Names of the layers that are compared, from the first to the last: the blocks."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in model.checkpointable]


@torch.no_grad()
def layer_features(model: ImageModel, images_BCHW: Tensor, names: Sequence[str] | None = None) -> list[Tensor]:
    """What each layer makes of images in [0,1] or uint8, all tokens or cells of it as one row: [B, P] each."""
    names = layer_names(model) if names is None else names
    captured = model.encode(images_BCHW, capture=names).captured
    return [captured.pop(name).flatten(1) for name in names]


def cka(batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
    """Linear CKA of every layer of one model with every layer of another, [L, M] float64: 1 for equal up to rotation
    and scale, about 0 for unrelated ones.

    batches: for the same images the features [B, P] of the layers of both; nothing is kept of a batch but L + M sums
    and their products. The estimate is unbiased for any size of the batches from 4 on (smaller ones are left out), so a
    value may leave [0, 1] by its noise; a layer that says the same of all images has none (NaN). Raises UserError where
    no batch is large enough.
    """
    cross_LM, own_L, own_M, images = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0
    for one, other in batches:
        size = len(one[0])
        if size < LEAST:
            continue
        mine_LX, theirs_MX = _centered(one), _centered(other)
        weight = size / (size * (size - 3))
        cross_LM = cross_LM + weight * (mine_LX @ theirs_MX.T)
        own_L, own_M = own_L + weight * mine_LX.square().sum(1), own_M + weight * theirs_MX.square().sum(1)
        images += size
    if not images:
        raise UserError(f"batches of at least {LEAST} images are expected", where="CKA")
    return cross_LM / (own_L[:, None] * own_M).sqrt()


def _centered(layers: Sequence[Tensor]) -> Tensor:
    """The layers' similarities of every two images, [L, B B] float64 on the CPU: U-centered (rows, columns and all of
    it sum to 0), the diagonal 0. The inner product of two rows over B (B - 3) is the unbiased HSIC."""
    rows: list[Tensor] = []
    for features_BP in layers:
        # Shifts of the features cancel; taken out first, they cost no precision.
        shifted_BP = features_BP.float() - features_BP.float().mean(0)
        gram_BB = (shifted_BP @ shifted_BP.T).double().cpu().fill_diagonal_(0)
        count, sum_B = len(gram_BB), gram_BB.sum(1)
        gram_BB -= (sum_B[:, None] + sum_B) / (count - 2)
        gram_BB += sum_B.sum() / ((count - 1) * (count - 2))
        rows.append(gram_BB.fill_diagonal_(0).flatten())
    return torch.stack(rows)


def compare_layers(batches: Iterable[tuple[Tensor, Tensor]], one: ImageModel, other: ImageModel) -> Tensor:
    """`cka` of two models by name order of `layer_names`. batches: the same images, as each of the two takes them."""

    def features() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        for mine_BCHW, theirs_BCHW in batches:
            yield layer_features(one, mine_BCHW), layer_features(other, theirs_BCHW)

    return cka(features())
