"""Keys of BEiT: masked prediction of visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import Field

from vitral.errors import UserError
from vitral.objectives.base_config import SelfSupervisedConfig

KMEANS = "kmeans"

# What changes the colors of a view, and the values of `augment` that do not.
_COLORS: dict[str, Any] = {"policy": "none"} | dict.fromkeys(
    ("brightness", "contrast", "saturation", "hue", "gray", "solarize", "posterize", "equalize", "autocontrast",
     "invert", "sharpen", "blur", "random_erasing"), 0.0,
)  # fmt: skip


class BeitConfig(SelfSupervisedConfig):
    """BEiT (arXiv 2106.08254)."""

    kind: Literal["beit"] = Field(description="BEiT: predict the visual tokens of masked patches")
    tokenizer: str = Field(
        default=KMEANS,
        description="where visual tokens come from; kmeans: k-means of the patches of train images; FOLDER: an image "
        "tokenizer, or an encoder whose patch features are clustered (as BEiT v2's teacher)",
    )
    codes: int | None = Field(
        default=None, ge=2, le=2**20,
        description="number of visual tokens of kmeans and of an encoder; null: 512; an image tokenizer has its own",
    )  # fmt: skip
    mask_ratio: float = Field(default=0.4, gt=0, lt=1, description="share of the patches masked, in blocks (BEiT)")

    def check(self, run: Any) -> None:
        """Refuse what changes the colors of a view, whose tokens are to be those of the image."""
        super().check(run)
        changed = {key: same for key, same in _COLORS.items() if getattr(run.augment, key) != same}
        if changed:
            settings = " ".join(f"augment.{key}={same or 0}" for key, same in changed.items())
            raise ValueError(f"objective.kind=beit predicts tokens of images in their own colors. Set {settings}")

    def check_model(self, architecture: Any, dataset: Any) -> None:
        """Refuse a stem that looks from visible patches into masked ones, and ratios that mask none or all."""
        if architecture.has_convolutional_stem:
            raise UserError(
                "a convolutional stem looks from visible patches into masked ones", where="model.stem_blocks",
                got=list(architecture.stem_blocks), expected="patches of pixels, for objective.kind=beit",
            )  # fmt: skip
        count = architecture.grid[0] * architecture.grid[1]
        if round(count * self.mask_ratio) in (0, count):
            raise UserError(
                "masks no patch, or all", where="objective.mask_ratio", got=f"{self.mask_ratio} of {count} patches",
                expected=f"from {1 / count:.3g} to {1 - 1 / count:.3g}",
            )  # fmt: skip

    def located(self, find: Callable[[str], str | None]) -> Self:
        """Its tokenizer's, if not kmeans."""
        return self if self.tokenizer == KMEANS else self.model_copy(update={"tokenizer": find(self.tokenizer)})

    def without_files(self) -> Self:
        """Return the same objective with as many tokens of k-means."""
        if self.tokenizer == KMEANS:
            return self
        from vitral.weights.find_model import model_config

        count = getattr(model_config(self.tokenizer).architecture, "codes", self.codes)
        return self.model_copy(update={"tokenizer": KMEANS, "codes": count})
