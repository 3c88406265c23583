"""What to read, how to shape it, and how to vary it in training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vitral.config import Config, Count, Pair, Shares

Channels = Annotated[int, Field(ge=1, le=4)]


class DataConfig(Config):
    """Where the images come from and what the model sees of them."""

    path: str | None = Field(default=None, description="folder of the images or CIFAR files; `data=X` is short for it")
    source: Literal["auto", "digits", "folder", "cifar"] = Field(
        default="auto", description="kind of data; auto looks at the path"
    )
    image_size: Count | Pair | Literal["auto"] = Field(
        default="auto",
        description="side or [height, width], pixels; auto: of init or preset; of the data if patch_size=auto",
    )
    channels: Channels | Literal["auto"] = Field(
        default="auto", description="1 grey, 3 RGB, 4 RGBA; auto: from the data"
    )
    fit: Literal["crop", "squash"] = Field(
        default="crop", description="to the model's shape by centre crop, or by changing the aspect"
    )
    mean: Shares | Literal["auto"] = Field(
        default="auto", description="per channel, in [0,1]; auto: of the train split, or of init"
    )
    std: Shares | Literal["auto"] = Field(
        default="auto", description="per channel, in [0,1]; auto: of the train split, or of init"
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of train held out where there is no validation split"
    )
    verify: bool = Field(default=True, description="compare CIFAR files with the published md5 sums")
    workers: Count | Literal["auto"] = Field(default="auto", description="threads that decode files; auto: one a core")
    cache_mb: int = Field(default=2048, ge=0, description="decoded images kept in memory up to this many MB a split")


class AugmentConfig(Config):
    """How training images are varied. Evaluation never is."""

    pad_crop: int = Field(default=0, ge=0, description="whole-pixel shift up to this many pixels (pad, then crop)")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a left-right flip")
    rotate: float = Field(default=0.0, ge=0, le=180, description="largest angle, degrees either way")
    scale: float = Field(
        default=0.0, ge=0, lt=10, description="largest zoom: 0.1 is a factor of 1/1.1 to 1.1, log-uniform"
    )
    shear: float = Field(default=0.0, ge=0, lt=60, description="largest horizontal shear, degrees either way")
    translate: float = Field(default=0.0, ge=0, le=1, description="largest shift, as a share of the side, subpixel")
    fill: Literal["zeros", "border", "reflection"] = Field(
        default="zeros", description="what lies outside the image: black, its edge, its mirror"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution of mixup's weight; 0: off")
    cutmix: float = Field(
        default=0.0, ge=0, description="alpha of CutMix; 0: off; with mixup on too, each group of 8 draws one"
    )
    mix_prob: float = Field(
        default=1.0, ge=0, le=1, description="share of the groups of 8 images that are mixed at all"
    )

    @property
    def moves(self) -> bool:
        """Whether any geometric change is asked for."""
        return bool(self.pad_crop or self.flip or self.rotate or self.scale or self.shear or self.translate)
