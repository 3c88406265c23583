"""Attribution of a class by gradients: integrated gradients, and gradient-weighted attention.

Shape letters: B batch, C channels, H W image height and width, N patches, T tokens, h heads, D width, S classes,
K steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.interpret.attention import in_groups, map_name
from vitral.interpret.tokens import token_rows
from vitral.models.model import ImageModel
from vitral.models.vit import VisionTransformer


class Attribution(NamedTuple):
    """What every value of the images adds to a class's logit, [B, C, H, W]; how far that logit is above the baseline's,
    [B]; and the sum of the former less the latter, [B], which many steps bring to 0 (completeness)."""

    attributions_BCHW: Tensor
    difference_B: Tensor
    gap_B: Tensor


def integrated_gradients(
    model: ImageModel,
    images_BCHW: Tensor,
    target_B: Tensor | int,
    baseline: float | Tensor = 0.0,
    steps: int = 64,
    batch_size: int = 32,
) -> Attribution:
    """(x - x') times the mean gradient of the class's logit on the straight way from x' to x (arXiv 1703.01365, eq. 1).

    images_BCHW: [0,1] or uint8, of the model's own size. target_B: class indices. baseline x': a gray level in [0,1],
    or images. steps: equal ones, each seen at its middle (the paper sees each at its end, eq. 3; the gap is then
    larger). batch_size: steps at once. Logits are before softmax and temperature. Values that equal the baseline's get
    nothing, whatever they say. Sums are float64. Raises UserError for a model without a head and a class that is not
    there.
    """
    x_BCHW = _in_range(images_BCHW)
    target_B = _targets(model, x_BCHW, target_B)
    start_BCHW = torch.as_tensor(baseline, dtype=x_BCHW.dtype, device=x_BCHW.device).expand_as(x_BCHW)
    shares_K = (torch.arange(steps, dtype=torch.float64, device=x_BCHW.device) + 0.5) / steps
    total_BCHW = torch.zeros(x_BCHW.shape, dtype=torch.float64, device=x_BCHW.device)
    for place in range(len(x_BCHW)):
        one_CHW, from_CHW, target = x_BCHW[place], start_BCHW[place], int(target_B[place])
        for some_K in shares_K.to(one_CHW.dtype).split(batch_size):
            with torch.enable_grad():
                way_KCHW = (from_CHW + some_K[:, None, None, None] * (one_CHW - from_CHW)).requires_grad_()
                score = model(way_KCHW)[:, target].sum()
            total_BCHW[place] += torch.autograd.grad(score, way_KCHW)[0].double().sum(0)
    attributions_BCHW = total_BCHW / steps * (x_BCHW - start_BCHW).double()
    with torch.no_grad():
        above_BS, below_BS = model(x_BCHW).double(), model(start_BCHW).double()
    difference_B = (above_BS - below_BS).gather(1, target_B[:, None])[:, 0]
    return Attribution(attributions_BCHW, difference_B, attributions_BCHW.sum((1, 2, 3)) - difference_B)


def gradient_attention(
    model: VisionTransformer, images_BCHW: Tensor, target_B: Tensor | int, token: str | None = None
) -> Tensor:
    """Attention that raises a class's logit, followed through all layers: [B, T], not negative.

    In every layer, the mean over the heads of the positive part of attention times its gradient; R grows from the
    identity by R += mean R (arXiv 2103.15679, eq. 5 and 6, self-attention). Given is R's row of `token` (the mean of
    several: see `token_rows`) without the identity, which would only say that a patch is itself.
    """
    with torch.no_grad():
        patches_BND, grid = model.embed(images_BCHW)
    target_B = _targets(model, images_BCHW, target_B)
    rows = token_rows(model.config, token, grid)
    relevance_BTT = identity_TT = torch.eye(
        model.prefix_tokens + patches_BND.shape[1], dtype=torch.promote_types(model.dtype, torch.float32),
        device=patches_BND.device,
    )  # fmt: skip
    for group in in_groups(model, patches_BND, range(model.config.depth)):
        names = [map_name(layer) for layer in group]
        with torch.enable_grad():  # of the patches, so that maps have gradients where parameters are frozen too
            out = model.encode_tokens(patches_BND.clone().requires_grad_(), grid, capture=names)
            logits_BS = model.classify(model.pool(out))
            score = logits_BS.gather(1, target_B[:, None]).sum()
        maps = [out.captured[name] for name in names]
        for map_BhTT, gradient_BhTT in zip(maps, torch.autograd.grad(score, maps), strict=True):
            raised_BTT = (map_BhTT.detach() * gradient_BhTT).clamp_min(0).mean(1).to(identity_TT.dtype)
            relevance_BTT = relevance_BTT + raised_BTT @ relevance_BTT
    return (relevance_BTT - identity_TT)[:, rows].mean(1)


def _in_range(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW.detach()


def _targets(model: ImageModel, images_BCHW: Tensor, target_B: Tensor | int) -> Tensor:
    """One class index an image. Raises UserError for one that the model does not have."""
    classes = model.config.num_classes
    if not classes:
        raise UserError("this model has no head, so there is no class to explain", where="class")
    found_B = torch.as_tensor(target_B, device=images_BCHW.device).expand(len(images_BCHW))
    if int(found_B.min()) < 0 or int(found_B.max()) >= classes:
        raise UserError("no such class", where="class", got=found_B.tolist(), expected=f"0 to {classes - 1}")
    return found_B
