"""Keys of the objective of image tokenizers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from vitral.config import Count, Share
from vitral.errors import UserError
from vitral.models.presets import PRESETS
from vitral.objectives.base_config import StreamTraits, ViewedConfig, refuse_parts, refuse_useless


class TokenizerConfig(ViewedConfig):
    """A discrete autoencoder: images to codes and back (van den Oord et al. 2017)."""

    streams: ClassVar[dict[str, StreamTraits]] = {"train": StreamTraits(labeled=False)}
    task: ClassVar[str | None] = "image_tokenizer"
    needs_labels: ClassVar[bool] = False

    kind: Literal["tokenizer"] = Field(description="image tokenizer: reconstruct images from one code for each patch")
    loss: Literal["l2", "l1"] = Field(
        default="l2", description="reconstruction error of pixels, in units of the images' deviation; l2: mean square, "
        "as PSNR measures; l1: mean absolute value"
    )  # fmt: skip
    ssim_weight: float = Field(default=0.0, ge=0, description="weight of 1 - SSIM in the loss (Wang et al. 2004)")
    commitment: float = Field(
        default=0.25, ge=0,
        description="quantizer=vq: weight of the squared distance of the encoder's vectors to their codes",
    )  # fmt: skip
    codebook_decay: Share = Field(
        default=0.99, description="quantizer=vq: decay per step of the moving means that are the codebook"
    )
    restart_below: Share = Field(
        default=0.1, description="quantizer=vq: codes used less than this share of the mean use become a vector of the "
        "batch; 0: never"
    )  # fmt: skip
    restart_every: Count = Field(default=50, description="quantizer=vq: steps between restarts of unused codes")
    temperature: float = Field(
        default=1.0, gt=0, description="quantizer=gumbel: temperature at the first step (DALL-E: 1)"
    )
    temperature_final: float = Field(
        default=1 / 16, gt=0, description="quantizer=gumbel: temperature at the last step, along half a cosine"
    )
    kl_weight: float = Field(
        default=1e-3, ge=0, description="quantizer=gumbel: weight of the divergence from equally probable codes, nats"
    )

    def check(self, run: Any) -> None:
        """Refuse keys without effect or support."""
        refuse_useless(run, {
            "init_head": (run.init_head, False), "model.head_bias": (run.model.head_bias, 0.0),
            "train.freeze": (run.train.freeze, "none"), "lora.rank": (run.lora.rank, None),
            "data.shots": (run.data.shots, None), "augment.mixup": (run.augment.mixup, 0.0),
            "augment.cutmix": (run.augment.cutmix, 0.0),
        })  # fmt: skip
        refuse_parts(run)
        quantizer = run.model.options().get("quantizer") or PRESETS.get(run.model.name, {}).get("quantizer")
        if quantizer == "kmeans" and run.train.steps != 1:
            raise ValueError("quantizer=kmeans is found before the first step, and no other changes it: train.steps=1")

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Require an image tokenizer, and keys that its quantizer reads."""
        if not architecture.is_tokenizer:
            raise UserError(
                "objective.kind=tokenizer trains image tokenizers", where="model.name", got=architecture.description,
                expected="an image tokenizer, as vq_nano_patch4_32 (vitral models)",
            )  # fmt: skip
        for name in sorted(self.model_fields_set):
            quantizers = _READ_BY.get(name)
            if quantizers and architecture.quantizer not in quantizers and getattr(self, name) != _default(name):
                raise UserError("has no effect with this quantizer", where=f"objective.{name}",
                                got=f"model.quantizer={architecture.quantizer}", expected=quantizers[0])  # fmt: skip


_READ_BY = {
    **dict.fromkeys(("commitment", "codebook_decay", "restart_below", "restart_every"), ("vq",)),
    **dict.fromkeys(("temperature", "temperature_final", "kl_weight"), ("gumbel",)),
}


def _default(name: str) -> Any:
    return TokenizerConfig.model_fields[name].default
