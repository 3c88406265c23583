"""Accuracy under attack: which images of a batch a model still answers correctly.

Shape letters: N samples, B batch, K classes, C H W channels, height and width of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitral import distributed
from vitral.attacks.attack import Attack, Classifier
from vitral.attacks.quiet import quiet
from vitral.errors import UserError
from vitral.evaluate.classification import wilson_interval

_AT_ONCE = 64  # images whose activations are kept for a gradient


class Attacked(NamedTuple):
    """A batch before and after an attack: labels [B], logits float32 [B, K], adversarial images in [0,1], and the
    number of the attack that changed the answer, -1 if none did. An image that was answered wrongly before is
    unchanged."""

    labels_B: Tensor
    clean_BK: Tensor
    adversarial_BK: Tensor
    adversarial_BCHW: Tensor
    by_B: Tensor

    @property
    def right_B(self) -> Tensor:
        """Whether the unchanged image is answered correctly."""
        return self.clean_BK.argmax(1) == self.labels_B

    @property
    def robust_B(self) -> Tensor:
        """Whether the image is answered correctly before and after the attack."""
        return self.right_B & (self.by_B < 0)


def answers(model: Classifier, images_BCHW: Tensor) -> Tensor:
    """Return logits float32 [B, K] in evaluation mode, without gradients. Raises UserError where one is NaN or
    infinite."""
    with quiet(model, images_BCHW.device), torch.no_grad():
        logits_BK = model(images_BCHW).float()
    if not bool(torch.isfinite(logits_BK).all()):
        raise UserError("the model's scores aren't finite", got="NaN or infinity", hint="Did the training diverge?")
    return logits_BK


def portions(which_B: Tensor) -> list[Tensor]:
    """Return the places of the selected images, so many together as fit in memory with their activations."""
    places = which_B.nonzero()[:, 0]
    return list(places.split(_AT_ONCE)) if len(places) else []


def attack_batch(
    attacks: Sequence[Attack], model: Classifier, images_BCHW: Tensor, labels_B: Tensor, ids_B: Tensor, *,
    eps: float | None = None, seed: int = 0, source: Classifier | None = None,
) -> Attacked:  # fmt: skip
    """Attack the images that the model answers correctly, within `eps` (default: the configured one): each attack those
    that the ones before have left.

    ids_B: places of the images in their split, which random starts depend on. source: the model that is attacked, if
    its adversarial images are shown to `model` (transfer). Raises UserError for answers that are not finite, and as
    attacks do.
    """
    clean_BK = answers(model, images_BCHW)
    images_BCHW = images_BCHW.detach().to(torch.promote_types(images_BCHW.dtype, torch.float32), copy=True)
    found_BCHW, adversarial_BK, by_B = images_BCHW.clone(), clean_BK.clone(), torch.full_like(labels_B, -1)
    right_B = clean_BK.argmax(1) == labels_B
    for number, attack in enumerate(attacks):
        for part in portions(right_B & (by_B < 0)):
            part_BCHW = attack(
                source or model, images_BCHW[part], labels_B[part], eps=eps, sample_ids_B=ids_B[part], seed=seed
            )
            if not bool(torch.isfinite(part_BCHW).all()):
                raise UserError(
                    "the gradient by the image is not finite, so the attack is not possible", where=attack.config.kind
                )
            found_BCHW[part], adversarial_BK[part] = part_BCHW, answers(model, part_BCHW)
            by_B[part] = torch.where(adversarial_BK[part].argmax(1) == labels_B[part], -1, number)
    return Attacked(labels_B, clean_BK, adversarial_BK, found_BCHW, by_B)


class Robustness(NamedTuple):
    """Numbers of images: all, answered correctly, and answered correctly in spite of the attack."""

    images: int
    right: int
    robust: int

    @property
    def top1(self) -> float:
        """The share of robust images."""
        return self.robust / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.robust, self.images)


def robustness(
    attack: Attack, model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], places_N: list[int], seed: int = 0
) -> Robustness:
    """Attack all images of (images in [0,1], labels); of many processes each its share, and the result is of all.

    places_N: in the split, of this process's images. Raises UserError for no images at all, and as `attack_batch`.
    """
    count = right = robust = 0
    with distributed.error_barrier():
        for images_BCHW, labels_B in batches:
            if not len(labels_B):  # the last share of many processes
                continue
            ids_B = torch.tensor(places_N[count : count + len(labels_B)], device=labels_B.device, dtype=torch.int64)
            found = attack_batch([attack], model, images_BCHW, labels_B, ids_B, seed=seed)
            count += len(labels_B)
            right, robust = right + int(found.right_B.sum()), robust + int(found.robust_B.sum())
    count, right, robust = (sum(values) for values in zip(*distributed.gather((count, right, robust)), strict=True))
    if not count:
        raise UserError("no samples to evaluate")
    return Robustness(count, right, robust)
