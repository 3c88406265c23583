"""Keys of the objectives of Image GPT."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from vitral.config import Share
from vitral.errors import UserError
from vitral.objectives.base_config import LabeledConfig, StreamTraits, ViewedConfig, refuse_parts, refuse_useless


class IGPTObjectiveConfig(ViewedConfig):
    """Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"): predict the colors of pixels."""

    streams: ClassVar[dict[str, StreamTraits]] = {"train": StreamTraits(labeled=True)}
    task: ClassVar[str | None] = "pixels"
    needs_labels: ClassVar[bool] = False

    kind: Literal["igpt"] = Field(
        description="Image GPT: predict each pixel's color from the pixels before it, or, with model.mask_ratio, "
        "hidden pixels from all others"
    )
    label_dropout: Share = Field(
        default=0.1, description="with model.class_tokens: share of the images that are learned without their class"
    )

    def check(self, run: Any) -> None:
        """Refuse keys without effect or support."""
        refuse_useless(run, {
            "init_head": (run.init_head, False), "model.head_bias": (run.model.head_bias, 0.0),
            "train.freeze": (run.train.freeze, "none"), "lora.rank": (run.lora.rank, None),
        })  # fmt: skip
        refuse_parts(run)
        if "classify" in run.eval and not run.model.class_tokens and run.init is None:
            raise UserError("needs model.class_tokens, the number of classes", where="eval.classify")
        if "classify" in run.eval and run.model.mask_ratio:
            raise UserError("needs the probability of an image", where="eval.classify",
                            got=f"model.mask_ratio={run.model.mask_ratio}", expected="model.mask_ratio=0")  # fmt: skip
        if "completion" in run.eval and run.model.mask_ratio not in (None, 0, "cosine"):
            raise UserError("needs a model that draws images", where="eval.completion",
                            got=f"model.mask_ratio={run.model.mask_ratio}", expected="0 or cosine")  # fmt: skip

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require an Image GPT, with the classes of the data if with any."""
        _require_codes(self.kind, architecture)
        classes = len(dataset.classes) if dataset.task == "classification" else 0
        if architecture.class_tokens and architecture.class_tokens != classes:
            raise UserError(
                "not the number of classes in the data", where="model.class_tokens", got=architecture.class_tokens,
                expected=f"{classes}, or 0 for a model without classes" if classes else "0: these data have none",
            )  # fmt: skip
        if "label_dropout" in self.model_fields_set and not architecture.class_tokens:
            raise UserError("has no effect without model.class_tokens", where="objective.label_dropout")

    def warnings(self, run: Any) -> list[str]:
        """Warn of images whose colors are changed."""
        augment = run.augment
        changed = [key for key in ("brightness", "contrast", "saturation", "hue") if getattr(augment, key)]
        changed += ["policy"] if augment.policy != "none" else []
        if not changed:
            return []
        return [f"augment.{changed[0]} changes colors, and so the distribution that is learned"]


class IGPTFinetuneConfig(LabeledConfig):
    """Fine-tuning of Image GPT (section 2.3 of the paper): classes and pixels at once."""

    kind: Literal["igpt_finetune"] = Field(
        description="fine-tuning of Image GPT: the loss of the classes plus that of the pixels"
    )
    streams: ClassVar[dict[str, StreamTraits]] = {"train": StreamTraits(labeled=True)}

    generative_weight: float = Field(
        default=1.0, gt=0, description="weight of the loss of the pixels, in nats per pixel; that of the classes has 1"
    )

    def check(self, run: Any) -> None:
        """Refuse keys without effect or support."""
        refuse_useless(run, {"train.freeze": (run.train.freeze, "none"), "data.target": (run.data.target, None)})
        refuse_parts(run)

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require an Image GPT that predicts each pixel, and one class per image."""
        _require_codes(self.kind, architecture)
        if not architecture.causal:
            raise UserError(
                "a model that predicts hidden pixels is fine-tuned by its classes alone", where="objective.kind",
                got=self.kind, expected="supervised",
            )  # fmt: skip
        if dataset.task != "classification":
            raise UserError("learns one class per image", where="objective.kind", got=f"data for {dataset.task}",
                            expected="one class per image")  # fmt: skip


def _require_codes(kind: str, architecture: Any) -> None:
    if not architecture.has_codes:
        raise UserError(
            f"objective.kind={kind} learns from the colors of pixels", where="model.name", got=architecture.description,
            expected="an Image GPT, as igpt_micro_8 (vitral models)",
        )  # fmt: skip
