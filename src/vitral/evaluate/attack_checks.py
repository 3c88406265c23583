"""Tests for weak attacks and masked gradients, by which a robust accuracy is too high (Athalye et al. 2018, arXiv
1802.00420, section 3; Carlini et al. 2019, arXiv 1902.06705).

Shape letters: N images, K classes, C H W channels, height and width of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.attacks.attack import Attack, Classifier
from vitral.attacks.config import ApgdConfig, AttackConfig, FgmConfig, FgsmConfig, PgdConfig, SquareConfig
from vitral.attacks.losses import cross_entropy
from vitral.attacks.quiet import quiet
from vitral.attacks.registry import attack_of
from vitral.evaluate.metric import eps_text, percent
from vitral.evaluate.robustness import attack_batch, portions

_STEPS, _QUERIES = 20, 200  # of the attacks that the configured one is compared with
_STEPS_OF_NOTHING = 10  # of the attack of size 0
_CONVERGED = 0.01  # of the images
_SAME_LOSS = 0.99
_FEW = 0.01  # of the images that may stay robust although every image is allowed


class Check(NamedTuple):
    """A test: its name in JSON, what it expects, whether that is so (None: not tested), and numbers."""

    name: str
    expects: str
    passed: bool | None
    text: str

    def row(self) -> dict[str, object]:
        """Return the test for JSON."""
        return {"name": self.name, "expects": self.expects, "passed": self.passed, "text": self.text}


@dataclass(frozen=True)
class CheckImages:
    """Images that the model answers correctly: in [0,1], with labels and places in the split. robust_N: whether the
    configured attack left them so. has_gradients: of the model."""

    model: Classifier
    images_NCHW: Tensor
    labels_N: Tensor
    ids_N: Tensor
    robust_N: Tensor
    seed: int
    has_gradients: bool

    def robust_to(self, config: AttackConfig, eps: float, among_N: Tensor | None = None) -> Tensor:
        """Return which images (of `among_N`: others are False) are robust to an attack."""
        among_N = torch.ones_like(self.robust_N) if among_N is None else among_N
        result_N = torch.zeros_like(among_N)
        attacks: list[Attack] = [attack_of(config)]
        for part in portions(among_N):
            found = attack_batch(
                attacks, self.model, self.images_NCHW[part], self.labels_N[part], self.ids_N[part], eps=eps,
                seed=self.seed,
            )  # fmt: skip
            result_N[part] = found.robust_B
        return result_N

    def losses(self, steps: int, config: AttackConfig) -> float:
        """Return the mean cross-entropy after so many steps of PGD without a random start, in nats."""
        attack = attack_of(PgdConfig(eps=config.eps, norm=config.norm, steps=steps or 1, random_start=False))
        total = 0.0
        for part in portions(torch.ones_like(self.robust_N)):
            x_BCHW, labels_B = self.images_NCHW[part], self.labels_N[part]
            if steps:
                x_BCHW = attack(self.model, x_BCHW, labels_B, seed=self.seed)
            with quiet(self.model, x_BCHW.device), torch.no_grad():
                total += float(cross_entropy(self.model(x_BCHW).float(), labels_B).sum())
        return total / len(self.labels_N)

    def without_gradient(self) -> float:
        """Return the share of images at which all derivatives of the loss are 0."""
        zero = 0
        for part in portions(torch.ones_like(self.robust_N)):
            x_BCHW = self.images_NCHW[part].detach().clone().requires_grad_(True)
            with quiet(self.model, x_BCHW.device):
                loss = cross_entropy(self.model(x_BCHW).float(), self.labels_N[part]).sum()
            (gradient_BCHW,) = torch.autograd.grad(loss, x_BCHW)
            zero += int((gradient_BCHW.flatten(1).abs().amax(1) == 0).sum())
        return zero / len(self.labels_N)


def attack_checks(images: CheckImages, config: AttackConfig, curve: Sequence[tuple[float, float, int]]) -> list[Check]:
    """Test an attack. curve: of each size of change, ascending: eps, the share of images that are robust to an attack
    of this size alone, and the number of images."""
    checks = [_nothing_changes(images, config), _falls(curve)]
    if not images.has_gradients:
        names = {
            "one_step": "several steps",
            "black_box": "gradients",
            "loss_rises": "gradients",
            "zero_gradient": "gradients",
        }
        checks += [Check(name, f"a test of {of}", None, "not possible: no gradients") for name, of in names.items()]
    else:
        checks += _by_gradients(images, config)
    return [*checks, _reaches_zero(images, config), _has_converged(images, config)]


def iterative(config: AttackConfig) -> AttackConfig:
    """Return the attack itself if it takes several gradient steps, of an ensemble APGD alone, whose gradients Square
    does not replace, else PGD with the same eps."""
    if config.kind == "ensemble":
        return ApgdConfig(kind="apgd", eps=config.eps, norm=config.norm, steps=getattr(config, "steps", _STEPS))
    if config.black_box or not hasattr(config, "steps"):
        return PgdConfig(eps=config.eps, norm=config.norm, steps=_STEPS)
    return config


def _nothing_changes(images: CheckImages, config: AttackConfig) -> Check:
    """Run the attack with fewer steps: within a ball of one point more of them reach nothing else."""
    most = {"steps": _STEPS_OF_NOTHING, "queries": _STEPS_OF_NOTHING, "restarts": 1, "targets": 1}
    short = {key: min(getattr(config, key), value) for key, value in most.items() if hasattr(config, key)}
    right = int(images.robust_to(config.model_copy(update=short), 0.0).sum())
    count = len(images.labels_N)
    return Check("eps_0", "at eps 0 all answers stay as they are", right == count, f"{right} of {count} stay correct")


def _falls(curve: Sequence[tuple[float, float, int]]) -> Check:
    worst, text = (
        0.0,
        "each attack alone: " + ", ".join(f"{_p(share)} at {eps_text(eps)}" for eps, share, _ in curve),
    )
    for (_, before, count), (_, after, _) in pairwise(curve):
        worst = max(worst, after - before - _standard_error(before, count))
    return Check("falls_with_eps", "accuracy does not rise with eps by more than one standard error", worst <= 0, text)


def _by_gradients(images: CheckImages, config: AttackConfig) -> Iterator[Check]:
    count, several = len(images.labels_N), iterative(config)
    robust_N = images.robust_N if several is config else images.robust_to(several, config.radius)
    share, name = _share(robust_N), several.kind
    single = FgsmConfig(eps=config.eps) if config.norm == "linf" else FgmConfig(kind="fgm", eps=config.eps)
    if config.kind == single.kind:
        one = _share(images.robust_N)
    else:
        one = _share(images.robust_to(single, config.radius))
    text = f"robust to {name} {_p(share)}, to {single.kind} {_p(one)} of {count}"
    passed = share <= one + _standard_error(one, count)
    yield Check("one_step", "several steps are as strong as one", passed, text)
    square = SquareConfig(kind="square", eps=config.eps, norm=config.norm, queries=_QUERIES)
    black = _share(images.robust_N if config.black_box else images.robust_to(square, config.radius))
    passed = share <= black + _standard_error(black, count)
    text = f"robust to {name} {_p(share)}, to square {_p(black)} of {count}"
    yield Check("black_box", "gradients are as strong as random squares", passed, text)
    losses = [images.losses(steps, config) for steps in (0, 5, 10)]
    passed = losses[1] > losses[0] and losses[2] >= _SAME_LOSS * losses[1]
    text = "mean loss {:.3g}, after 5 steps {:.3g}, after 10 steps {:.3g}".format(*losses)
    yield Check("loss_rises", "the loss rises with the number of steps", passed, text)
    zero = images.without_gradient()
    yield Check("zero_gradient", "the loss has a gradient by the image", zero <= _FEW, f"zero at {_p(zero)} of {count}")


def _reaches_zero(images: CheckImages, config: AttackConfig) -> Check:
    """Allow every change: only a model that answers one class for all images is robust then."""
    config = iterative(config) if images.has_gradients else config
    most = 1.0 if config.norm == "linf" else math.sqrt(images.images_NCHW[0].numel())
    left, count = int(images.robust_to(config, most, images.robust_N).sum()), len(images.labels_N)
    text = f"{left} of {count} robust at eps {most:.4g}"
    return Check("unbounded", "with no limit on the change no image is robust", left <= max(1, _FEW * count), text)


def _has_converged(images: CheckImages, config: AttackConfig) -> Check:
    """Compare with twice the steps or queries, or of an attack without either with PGD."""
    doubled = {key: 2 * getattr(config, key) for key in ("steps", "queries") if hasattr(config, key)}
    if config.kind == "ensemble":
        del doubled["queries"]
    more = config.model_copy(update=doubled) if doubled else iterative(config)
    before, after = (
        _share(each_N) for each_N in (images.robust_N, images.robust_to(more, config.radius, images.robust_N))
    )
    what = " and ".join(f"{value} {key}" for key, value in doubled.items()) or f"{_STEPS} steps of pgd"
    text = f"robust {_p(before)}, to {what} {_p(after)} of {len(images.labels_N)}"
    return Check("converged", "a longer attack finds less than 1 point more", before - after <= _CONVERGED, text)


def _share(robust_N: Tensor) -> float:
    return float(robust_N.float().mean())


def _standard_error(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count)


def _p(share: float) -> str:
    return f"{percent(share, 1)} %"
