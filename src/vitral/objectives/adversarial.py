"""Adversarial training: a loss of images that an attack has changed.

Min-max (Madry et al. 2018, arXiv 1706.06083), FGSM's mixed loss (Goodfellow et al. 2015, 1412.6572), fast training
(Wong et al. 2020, 2001.03994), TRADES (Zhang et al. 2019, 1901.08573), GradAlign (Andriushchenko and Flammarion 2020,
2007.02617), FGM on embeddings (Miyato et al. 2017, 1605.07725). Shape letters: B batch, C H W of an image, K classes, N
patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity

from vitral.attacks import losses
from vitral.attacks.attack import Attack
from vitral.attacks.ball import Ball, Noise, as_eps
from vitral.attacks.embeddings import embedding_fgm, token_scale
from vitral.attacks.quiet import quiet
from vitral.attacks.registry import attack_of, create_attack
from vitral.errors import UserError
from vitral.models.model import ImageModel, unit_images
from vitral.models.registry import token_encoder
from vitral.objectives.adversarial_config import AdversarialConfig
from vitral.objectives.losses import cross_entropy, soft_targets, wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.structs import Batch, StepOutput

_MONITOR_STEPS = 7  # of PGD
_LEARNING_STEPS = 100  # in which every classifier may be a constant one


class Adversarial(Objective):
    """Cross-entropy of adversarial images, mixed with that of clean ones, or TRADES.

    The attack sees the model in evaluation mode and float32 and maximizes the cross-entropy of the labels without
    smoothing, mixed where mixup or CutMix mixed the images; the losses are those of training mode. Radii grow over the
    first `eps_warmup` share of the run. Random starts are a function of seed, step and sample.

    Where ours differs from the papers: TRADES starts from a random point of the ball, not from normal noise of 0.001;
    GradAlign keeps the graph of both gradients, and takes them in evaluation mode.
    """

    def __init__(self, factory: Callable[[], ImageModel], config: AdversarialConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.model, self.config, self.context = factory(), config, context
        self.stops_on_collapse = config.stop_on_overfitting
        self.attack: Attack | None = None if config.on_embeddings else attack_of(config.attack)
        if config.on_embeddings and token_encoder(self.model) is None:
            raise UserError(
                "the model has no patch embeddings to attack", where="objective.attack.kind", got="embedding_fgm",
                expected="a Vision Transformer, or an attack on pixels",
            )  # fmt: skip

    def eps(self, step: int) -> float:
        """Return the radius at a step: it reaches attack.eps linearly."""
        warmup = self.config.eps_warmup * self.context.steps
        return self.config.attack.radius * min((step + 1) / max(warmup, 1), 1.0)

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss in nats, `train_top1` and `adversarial_top1`: shares of clean images (where they are computed) and
        of adversarial ones whose own label wins."""
        batch = batches["train"]
        images_BCHW = unit_images(batch.views[0].images_BCHW)
        noise = Noise(batch.sample_ids_B, self.context.seed, step)
        with_clean = self.config.loss == "trades" or self.config.clean_weight > 0
        clean_BK = self.model(images_BCHW) if with_clean else None
        if self.config.on_embeddings:
            adversarial_BK = self._on_embeddings(images_BCHW, batch, step)
        else:
            adversarial_BK = self.model(self._attacked(images_BCHW, batch, step, noise))
        target_BK = soft_targets(batch.targets, adversarial_BK.shape[-1], self.config.label_smoothing)
        label_B = batch.targets["label"]
        metrics = {"adversarial_top1": (adversarial_BK.detach().argmax(-1) == label_B).float().mean()}
        if clean_BK is not None:
            metrics["train_top1"] = (clean_BK.detach().argmax(-1) == label_B).float().mean()
        loss = self._loss(clean_BK, adversarial_BK, target_BK)
        if self.config.align:
            alignment = self._alignment(images_BCHW, self._labels(batch), self.eps(step), noise)
            metrics["align_loss"] = (1 - alignment).detach()
            loss = loss + self.config.align * (1 - alignment)
        return StepOutput.mean(loss, len(label_B), metrics)

    def _loss(self, clean_BK: Tensor | None, adversarial_BK: Tensor, target_BK: Tensor) -> Tensor:
        if clean_BK is None:
            return cross_entropy(adversarial_BK, target_BK)
        if self.config.loss == "trades":
            divergence_B = losses.kl_divergence(wide(adversarial_BK), wide(clean_BK).log_softmax(-1))
            return cross_entropy(clean_BK, target_BK) + self.config.beta * divergence_B.mean()
        weight = self.config.clean_weight
        return weight * cross_entropy(clean_BK, target_BK) + (1 - weight) * cross_entropy(adversarial_BK, target_BK)

    def _labels(self, batch: Batch) -> Tensor:
        """Labels to attack: classes [B], or mixed distributions [B, K], without smoothing."""
        if "partner" not in batch.targets:
            return batch.targets["label"]
        return soft_targets(batch.targets, self.model.config.num_classes, 0.0)

    def _attacked(self, images_BCHW: Tensor, batch: Batch, step: int, noise: Noise) -> Tensor:
        assert self.attack is not None
        if images_BCHW.is_meta:  # the memory estimate: attacks take less than the losses
            return images_BCHW
        labels, loss = self._labels(batch), losses.cross_entropy
        if self.config.loss == "trades":
            with torch.no_grad(), quiet(self.model, images_BCHW.device):
                labels, loss = self.model(images_BCHW).log_softmax(-1), losses.kl_divergence
        return self.attack.perturb(self.model, images_BCHW, labels, self.eps(step), loss, noise)

    def _on_embeddings(self, images_BCHW: Tensor, batch: Batch, step: int) -> Tensor:
        """Logits of the images with changed patch embeddings."""
        model = token_encoder(self.model)
        assert model is not None
        patches_BND, grid = model.embed(images_BCHW)

        def logits_of(some_BND: Tensor) -> Tensor:
            return model.classify(model.pool(model.encode_tokens(some_BND, grid)))

        if images_BCHW.is_meta:
            return logits_of(patches_BND)
        with quiet(model, images_BCHW.device):
            change_BND = embedding_fgm(logits_of, patches_BND.float(), self._labels(batch), self.eps(step))
        return logits_of(patches_BND + token_scale(patches_BND) * change_BND.to(patches_BND.dtype))

    def _alignment(self, images_BCHW: Tensor, labels: Tensor, eps: float, noise: Noise) -> Tensor:
        """Mean cosine of the loss's gradients at the images and at random points of the balls, with its graph."""
        point_BCHW = Ball(images_BCHW, as_eps(eps, images_BCHW), "linf").random_point(noise, 1)
        # Fused attention has no second derivative.
        with torch.enable_grad(), quiet(self.model, images_BCHW.device), sdpa_kernel(SDPBackend.MATH):
            rows = [self._gradient(x_BCHW, labels).flatten(1) for x_BCHW in (images_BCHW, point_BCHW)]
        return cosine_similarity(*rows, dim=1, eps=1e-12).mean()

    def _gradient(self, images_BCHW: Tensor, labels: Tensor) -> Tensor:
        images_BCHW = images_BCHW.detach().requires_grad_(True)
        loss_B = losses.cross_entropy(self.model(images_BCHW), labels)
        return torch.autograd.grad(loss_B.sum(), images_BCHW, create_graph=True)[0]

    def monitor(self, step: int) -> dict[str, Tensor]:
        """`fgsm_top1` and `pgd_top1`: accuracy on the same train images, unaugmented, under one step and under seven
        of the current radius; `grad_align`: mean cosine of gradients at an image and at a random point of its ball.

        A one-step attack that the model has learned to defeat without being robust shows as a gap (Wong et al. 2020).
        """
        if self.config.on_embeddings or not self.config.monitor_images or self.context.train_images is None:
            return {}
        config = self.config.attack
        eps, norm = self.eps(step), config.norm
        keys: dict[str, Any] = {"norm": norm, "steps": _MONITOR_STEPS}
        attacks = {"fgsm_top1": create_attack("fgsm" if norm == "linf" else "fgm"), "pgd_top1": create_attack(**keys)}
        sums, count, first = dict[str, Tensor](), 0, 0
        for images_BCHW, labels_B in self.context.train_images(self.config.monitor_images):
            ids_B = torch.arange(first, first + len(labels_B), device=labels_B.device)
            first += len(labels_B)
            noise = Noise(ids_B, self.context.seed)
            images_BCHW = unit_images(images_BCHW)
            found = {"grad_align": self._alignment(images_BCHW, labels_B, eps, noise).detach()}
            for name, attack in attacks.items():
                changed_BCHW = attack.perturb(self.model, images_BCHW, labels_B, eps, losses.cross_entropy, noise)
                with torch.no_grad(), quiet(self.model, images_BCHW.device):
                    found[name] = (self.model(changed_BCHW).argmax(-1) == labels_B).float().mean()
            count += len(labels_B)
            sums = {name: sums.get(name, 0) + value * len(labels_B) for name, value in found.items()}
        return {name: value / count for name, value in sums.items()}

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Catastrophic overfitting of a one-step attack, and the constant classifier of a radius that is too large."""
        fgsm, pgd = metrics.get("fgsm_top1"), metrics.get("pgd_top1")
        if fgsm is not None and pgd is not None and fgsm > 0.3 and pgd < 0.5 * fgsm:
            return (
                f"catastrophic overfitting: top-1 of train images is {100 * fgsm:.1f} % under FGSM and {100 * pgd:.1f} "
                "% under PGD. objective.attack.kind=nfgsm, objective.align=0.2, more steps (objective.attack.kind=pgd) "
                "or a smaller eps help"
            )
        early = max(0.1 * self.config.eps_warmup * self.context.steps, _LEARNING_STEPS)
        if metrics["step"] > early and self._is_constant(metrics):
            return (
                "the loss stays at that of a constant classifier: a smaller objective.attack.eps or a longer "
                "objective.eps_warmup helps"
            )
        return None

    def _is_constant(self, metrics: Mapping[str, float]) -> bool:
        top1, chance = metrics.get("adversarial_top1"), math.log(self.model.config.num_classes)
        return (
            self.config.loss == "adversarial"
            and top1 is not None
            and not self.config.align
            and abs(metrics.get("loss", 0.0) - chance) < 0.01 * chance
        )
