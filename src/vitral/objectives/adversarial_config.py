"""Keys of adversarial training."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.attacks.config import PgdConfig, TrainingAttack, check_classes, step_warnings
from vitral.config import Count, Share, reject_unused
from vitral.objectives.base_config import LabeledConfig, refuse_target, require_input_gradients


class AdversarialConfig(LabeledConfig):
    """Adversarial training: FGSM's mixed loss, PGD's min-max, TRADES, FGM on patch embeddings, GradAlign, free
    adversarial training."""

    task: ClassVar[str | None] = "classification"

    kind: Literal["adversarial"] = Field(
        description="adversarial training: classification of images that an attack has changed"
    )
    attack: TrainingAttack = PgdConfig(steps=7)
    loss: Literal["adversarial", "trades"] = Field(
        default="adversarial",
        description="adversarial: cross-entropy of adversarial images, mixed with that of clean ones by clean_weight; "
        "trades: cross-entropy of clean images plus beta times the KL divergence of the adversarial predictions from "
        "the clean ones (TRADES, arXiv 1901.08573)",
    )
    clean_weight: Share = Field(
        default=0.0,
        description="weight of the clean images' cross-entropy, the rest is that of adversarial ones; 0: Madry et al.; "
        "0.5: FGSM's and FGM's papers",
    )
    replays: Count = Field(
        default=1,
        description="free adversarial training (arXiv 1904.12843): consecutive steps on the same batch, 4 to 8; each "
        "step learns from the changed images and, by the same backward pass, moves the change by eps along the "
        "gradient; needs attack.kind=fgsm or fgm. Epochs count every replay, so a run costs what a plain one costs and "
        "reads the data epochs / replays times; 1: off",
    )
    beta: float = Field(default=6.0, gt=0, description="weight of the KL divergence in TRADES")
    eps_warmup: Share = Field(
        default=0.5,
        description="share of the run in which attack.eps rises linearly from 0; a large eps from the start can end in "
        "a constant classifier",
    )
    align: float = Field(
        default=0.0,
        ge=0,
        description="weight of GradAlign (arXiv 2007.02617), against catastrophic overfitting of one-step attacks: 1 - "
        "cosine of the gradients at the image and at a random point of the ball; doubles to triples the cost",
    )
    monitor_images: int = Field(
        default=128,
        ge=0,
        description="number of train images on which top-1 under FGSM and PGD, and the alignment of gradients, are "
        "measured; 0: none",
    )
    monitor_every: Literal["auto"] | Count = Field(
        default="auto",
        description="rows of the log (train.log_every) per measurement on monitor_images; the first and the last row "
        "always have one; auto: about 20 measurements per run. One, on 128 images, costs as much as 16 steps of 64 "
        "images without an attack",
    )
    stop_on_overfitting: bool = Field(
        default=False,
        description="end the run at the first warning of catastrophic overfitting (also one of low grad_align) or of a "
        "constant classifier, and keep the best validated weights",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AdversarialConfig:
        used = {"beta": self.loss == "trades", "clean_weight": self.loss == "adversarial"}
        reject_unused(self, {**used, "monitor_every": self.monitor_images > 0})
        if self.clean_weight == 1:
            raise ValueError(
                "objective.clean_weight=1 gives adversarial images the weight 0: expected less than 1, or "
                "objective.kind=supervised"
            )
        if self.stop_on_overfitting and not self.monitor_images:
            raise ValueError("objective.stop_on_overfitting needs objective.monitor_images")
        kind = self.attack.kind
        if kind == "ensemble":
            raise ValueError("objective.attack.kind=ensemble is for evaluation: use objective.attack.kind=pgd")
        if self.loss == "trades":
            # At the image itself the divergence has no gradient.
            if kind not in ("pgd", "apgd", "fgsm_rs", "rfgsm", "nfgsm") or not getattr(
                self.attack, "random_start", True
            ):
                raise ValueError("objective.loss=trades needs an attack with a random start on pixels, such as pgd")
            if getattr(self.attack, "loss", "ce") != "ce":
                raise ValueError("objective.loss=trades maximizes the KL divergence: objective.attack.loss=ce")
        if self.replays > 1:
            self._can_replay()
        if self.on_embeddings and (self.align or self.stop_on_overfitting):
            raise ValueError("objective.align and objective.stop_on_overfitting need an attack on pixels")
        return self

    def _can_replay(self) -> None:
        if self.attack.kind not in ("fgsm", "fgm"):
            raise ValueError(
                "objective.replays moves the change by one step of eps per replay: objective.attack.kind=fgsm (linf) "
                f"or fgm (l2), not {self.attack.kind}"
            )
        if self.loss == "trades" or self.clean_weight or self.align:
            raise ValueError(
                "objective.replays has one pass per step, of changed images: no objective.loss=trades, "
                "objective.clean_weight or objective.align"
            )

    @property
    def steps_per_batch(self) -> int:
        """See `replays`."""
        return self.replays

    @property
    def on_embeddings(self) -> bool:
        """Whether patch embeddings are attacked, not pixels."""
        return self.attack.kind == "embedding_fgm"

    @property
    def passes(self) -> float:
        """Forward and backward passes per image and step: those of the attack and of the losses.

        Without the measurements on `monitor_images`, whose time is no part of a step.
        """
        if self.replays > 1:
            return 1
        attack: Any = self.attack
        of_attack = attack.gradients or attack.queries / 3  # of queries forward passes only
        of_losses = 2 if self.loss == "trades" or self.clean_weight else 1
        answers = 1 / 3 if self.loss == "trades" else 0  # a forward pass gives what the attack leads away from
        return of_attack + answers + of_losses + (4 if self.align else 0)

    def warnings(self, run: Any) -> list[str]:
        """Warn of steps that are too long."""
        return step_warnings(self.attack, "objective.attack")

    def check_data(self, run: Any, dataset: Any) -> None:
        """Refuse DLR for too few classes."""
        check_classes(self.attack, len(dataset.classes), "objective.attack")

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require gradients by the images."""
        require_input_gradients(self.kind, architecture)

    def check(self, run: Any) -> None:
        """Refuse what attacks do not support."""
        refuse_target(run)
        if run.train.parallel == "fsdp" or run.precision == "bfloat16_params":
            raise ValueError(
                "objective.kind=adversarial attacks complete models in float32: no train.parallel=fsdp, no "
                "precision=bfloat16_params; use ddp and bfloat16"
            )
        if self.stop_on_overfitting and run.data.validation == "none":
            raise ValueError("objective.stop_on_overfitting keeps validated weights: no data.validation=none")
