"""Keys of adversarial training."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.attacks.config import PgdConfig, TrainingAttack
from vitral.config import Share, reject_unused
from vitral.objectives.base_config import LabeledConfig, refuse_target


class AdversarialConfig(LabeledConfig):
    """Adversarial training: FGSM's mixed loss, PGD's min-max, TRADES, FGM on patch embeddings, GradAlign."""

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
        "measured for each row of the log; 0: none",
    )
    stop_on_overfitting: bool = Field(
        default=False,
        description="end the run when catastrophic overfitting is detected, and keep the best weights from before",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AdversarialConfig:
        reject_unused(self, {"beta": self.loss == "trades", "clean_weight": self.loss == "adversarial"})
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
        if self.on_embeddings and (self.align or self.stop_on_overfitting):
            raise ValueError("objective.align and objective.stop_on_overfitting need an attack on pixels")
        return self

    @property
    def on_embeddings(self) -> bool:
        """Whether patch embeddings are attacked, not pixels."""
        return self.attack.kind == "embedding_fgm"

    @property
    def passes(self) -> float:
        """Forward and backward passes per image and step: one per step of the attack, and those of the losses."""
        attack: Any = self.attack
        steps = getattr(attack, "steps", 1) * getattr(attack, "restarts", 1)
        if attack.black_box:
            steps = attack.queries / 3  # forward passes only
        return steps + (2 if self.loss == "trades" or self.clean_weight else 1) + 2 * (2 if self.align else 0)

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
