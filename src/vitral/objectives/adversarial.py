"""Adversarial training: a loss of images that an attack has changed.

Min-max (Madry et al. 2018, arXiv 1706.06083), FGSM's mixed loss (Goodfellow et al. 2015, 1412.6572), free training
(Shafahi et al. 2019, 1904.12843), fast training (Wong et al. 2020, 2001.03994), TRADES (Zhang et al. 2019, 1901.08573),
GradAlign (Andriushchenko and Flammarion 2020, 2007.02617), FGM on embeddings (Miyato et al. 2017, 1605.07725). Shape
letters: B batch, C H W of an image, K classes, N patches, D width, P numbers of an image, M what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity

from vitral import distributed
from vitral.attacks import losses
from vitral.attacks.attack import Attack
from vitral.attacks.ball import Ball, Noise, as_eps
from vitral.attacks.config import check_length
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
_MONITORED = 20  # measurements per run, about
_ALIGNED = 0.2  # mean cosine below which a one-step attack is no longer one of the loss
_LEARNING_STEPS = 100  # in which every classifier may be a constant one


def overfits(fgsm_top1: float, pgd_top1: float) -> bool:
    """Return whether top-1 of train images under one step and under several shows catastrophic overfitting."""
    return fgsm_top1 > 0.3 and pgd_top1 < 0.5 * fgsm_top1


class Adversarial(Objective):
    """Cross-entropy of adversarial images, mixed with that of clean ones, or TRADES.

    The attack sees the model in evaluation mode and float32 and maximizes the cross-entropy of the labels without
    smoothing, mixed where mixup or CutMix mixed the images; the losses are those of training mode. Radii grow over the
    first `eps_warmup` share of the run. Random starts are a function of seed, step and sample.

    Where ours differs from the papers: TRADES starts from a random point of the ball, not from normal noise of 0.001;
    GradAlign keeps the graph of both gradients, takes them in evaluation mode, draws the random point from the ball of
    the attack's norm, and leaves out images whose gradient is exactly 0: they have no direction.

    With `replays` (free training, algorithm 1) there is no attack besides the step: `rows["delta_BCHW"]` is the change
    of each place of the batch, and the backward pass that gives the gradient of the weights, in training mode and the
    precision of the run, gives its gradient too. As in the paper the change is never reset: the image that takes a
    place starts from the change of the one before. Images with their change are clipped to [0,1].
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
        check_length(config.attack, self.model.config.image_size, self.model.config.in_channels, "objective.attack")

    def eps(self, step: int) -> float:
        """Return the radius at a step: it reaches attack.eps linearly."""
        warmup = self.config.eps_warmup * self.context.steps
        return self.config.attack.radius * min((step + 1) / max(warmup, 1), 1.0)

    def prepare_batches(self, batches: Mapping[str, Batch], step: int) -> Mapping[str, Batch]:
        """With replays: the images with their change, as a leaf that collects the gradient of all micro-batches."""
        if self.config.replays == 1:
            return batches
        batch = batches["train"]
        view = batch.views[0]
        changed_BCHW = unit_images(view.images_BCHW).detach()
        if "delta_BCHW" in self.rows:
            changed_BCHW = (changed_BCHW + self.rows["delta_BCHW"]).clamp(0, 1)
        view = view._replace(images_BCHW=changed_BCHW.clone().requires_grad_(True))
        return {**batches, "train": batch._replace(views=(view, *batch.views[1:]))}

    @torch.no_grad()
    def after_batch(self, batches: Mapping[str, Batch], step: int, found_inf: Tensor) -> None:
        """With replays: move the change by a step of the radius, and limit it to the radius."""
        if self.config.replays == 1:
            return
        images_BCHW = batches["train"].views[0].images_BCHW
        assert images_BCHW.grad is not None
        delta_BCHW = self.rows.get("delta_BCHW", torch.zeros_like(images_BCHW))
        ball = Ball(images_BCHW, as_eps(self.eps(step), images_BCHW), self.config.attack.norm)
        moved_BCHW = ball.limit(delta_BCHW + ball.eps_B111 * ball.direction(images_BCHW.grad))
        self.rows["delta_BCHW"] = torch.where(found_inf > 0, delta_BCHW, moved_BCHW)

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
        elif self.config.replays > 1:  # they are changed already
            adversarial_BK = self.model(images_BCHW)
        else:
            adversarial_BK = self.model(self._attacked(images_BCHW, batch, step, noise))
        target_BK = soft_targets(batch.targets, adversarial_BK.shape[-1], self.config.label_smoothing)
        label_B = batch.targets["label"]
        metrics = {"adversarial_top1": (adversarial_BK.detach().argmax(-1) == label_B).float().mean()}
        if clean_BK is not None:
            metrics["train_top1"] = (clean_BK.detach().argmax(-1) == label_B).float().mean()
        loss = self._loss(clean_BK, adversarial_BK, target_BK)
        if self.config.align:
            cosine_B, known_B = self._alignment(images_BCHW, self._labels(batch), self.eps(step), noise)
            align_loss = torch.where(known_B, 1 - cosine_B, 0.0).mean()
            metrics["align_loss"] = align_loss.detach()
            loss = loss + self.config.align * align_loss
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

    def _alignment(
        self, images_BCHW: Tensor, labels: Tensor, eps: float, noise: Noise, *, graph: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Cosine [B] of the loss's gradients at the image and at a random point of its ball, and whether there is one:
        both gradients are not 0. graph: with the graph of both."""
        ball = Ball(images_BCHW, as_eps(eps, images_BCHW), self.config.attack.norm)
        points = images_BCHW, ball.random_point(noise, 1)
        # Fused attention has no second derivative.
        kernels = sdpa_kernel(SDPBackend.MATH) if graph else nullcontext()
        with torch.enable_grad(), quiet(self.model, images_BCHW.device), kernels:
            one_BP, other_BP = (self._gradient(x_BCHW, labels, graph).flatten(1) for x_BCHW in points)
        known_B = (one_BP != 0).any(1) & (other_BP != 0).any(1)
        return cosine_similarity(one_BP, other_BP, dim=1, eps=1e-12), known_B

    def _gradient(self, images_BCHW: Tensor, labels: Tensor, graph: bool) -> Tensor:
        images_BCHW = images_BCHW.detach().requires_grad_(True)
        loss_B = losses.cross_entropy(self.model(images_BCHW), labels)
        return torch.autograd.grad(loss_B.sum(), images_BCHW, create_graph=graph)[0]

    def _is_monitored(self, step: int) -> bool:
        """Whether the row of the log after this step has measurements: a function of the step, so that a run that was
        resumed has them in the same rows."""
        every, rows = self.config.monitor_every, math.ceil(self.context.steps / self.context.log_every)
        period = math.ceil(rows / _MONITORED) if every == "auto" else every
        return step + 1 == self.context.steps or ((step + 1) // self.context.log_every - 1) % period == 0

    def monitor(self, step: int) -> dict[str, Tensor]:
        """`clean_top1`, `fgsm_top1` and `pgd_top1`: accuracy on the same train images, unaugmented, without attack and
        under one step and seven of the current radius; `grad_align`: mean cosine of gradients at an image and at a
        random point of its ball. All are of the images of all processes; a mean of no number is NaN. Not in every row:
        see `monitor_every`.

        A one-step attack that the model has learned to defeat without being robust shows as a gap (Wong et al. 2020).
        """
        given = self.context.train_images
        if self.config.on_embeddings or not self.config.monitor_images or given is None or not self._is_monitored(step):
            return {}
        own = [(unit_images(x_BCHW), y_B) for x_BCHW, y_B in given(self.config.monitor_images) if len(y_B)]
        first = sum(distributed.gather(sum(len(labels_B) for _, labels_B in own))[: distributed.rank()])
        total_2M = torch.zeros(2, 4, device=next(self.model.parameters()).device)
        for images_BCHW, labels_B in own:
            ids_B = torch.arange(first, first + len(labels_B), device=labels_B.device)
            first += len(labels_B)
            total_2M += self._measured(images_BCHW, labels_B, self.eps(step), Noise(ids_B, self.context.seed))
        sum_M, count_M = distributed.mean([total_2M])[0]
        return dict(zip(("clean_top1", "fgsm_top1", "pgd_top1", "grad_align"), sum_M / count_M, strict=True))

    def _measured(self, images_BCHW: Tensor, labels_B: Tensor, eps: float, noise: Noise) -> Tensor:
        """Sums over a batch of what `monitor` returns, and the numbers of images that they are of, [2, M]."""
        norm: Any = self.config.attack.norm
        attacks = (
            create_attack("fgsm" if norm == "linf" else "fgm"),
            create_attack("pgd", norm=norm, steps=_MONITOR_STEPS),
        )
        changed = (
            attack.perturb(self.model, images_BCHW, labels_B, eps, losses.cross_entropy, noise) for attack in attacks
        )
        found: list[tuple[Tensor, Tensor]] = []
        for input_BCHW in (images_BCHW, *changed):
            with torch.no_grad(), quiet(self.model, images_BCHW.device):
                right_B = self.model(input_BCHW).argmax(-1) == labels_B
            found.append((right_B.sum(), torch.ones_like(right_B).sum()))
        cosine_B, known_B = self._alignment(images_BCHW, labels_B, eps, noise, graph=False)
        found.append((torch.where(known_B, cosine_B, 0.0).sum(), known_B.sum()))
        return torch.stack([torch.stack([value.float() for value in column]) for column in zip(*found, strict=True)])

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Catastrophic overfitting of a one-step attack, and the constant classifier of a radius that is too large."""
        fgsm, pgd, aligned = (metrics.get(name) for name in ("fgsm_top1", "pgd_top1", "grad_align"))
        found = list[str]()
        if fgsm is not None and pgd is not None and overfits(fgsm, pgd):
            found.append(f"top-1 of train images is {100 * fgsm:.1f} % under FGSM and {100 * pgd:.1f} % under PGD")
        if aligned is not None and aligned < _ALIGNED:
            found.append(f"gradients in the balls of train images differ (grad_align {aligned:.2f}, below {_ALIGNED})")
        if found:
            return (
                f"catastrophic overfitting: {', '.join(found)}. objective.attack.kind=nfgsm, objective.align=0.2, more "
                "steps (objective.attack.kind=pgd) or a smaller eps help"
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
