"""Keys of `vitral reproduce`. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import Field, Strict

from vitral.attacks.config import Eps
from vitral.config import Config, Count, Share

Fractions = Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], Strict(False), Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]
Outside = Literal["photos", "rotated", "inverted"]
Variant = Literal["fgsm", "fgsm_rs", "nfgsm", "grad_align", "pgd"]
Variants = Annotated[tuple[Variant, ...], Strict(False), Field(min_length=1)]
Outsides = Annotated[tuple[Outside, ...], Strict(False), Field(min_length=1)]


class ReproduceOptions(Config):
    """Options of every comparison; all other keys are those of `vitral train` and apply to every run."""

    data: str = Field(default="digits", description="images with classes, as for `vitral train`")
    seeds: int = Field(default=3, ge=2, description="number of runs per variant, with seeds 0, 1, 2, ...")
    steps: int = Field(default=600, ge=1, description="weight updates per run")
    out: str | None = Field(default=None, description="folder of the runs and the table; null: runs/NAME-TIME")
    resume: bool = Field(default=False, description="continue the comparison in out; finished runs are not repeated")


class BiasOptions(ReproduceOptions):
    """Options of `vitral reproduce inductive-bias`."""

    fractions: Fractions = Field(
        default=(0.05, 0.1, 0.25, 0.5, 1.0), description="shares of the train images; one table row per share"
    )
    vit: str = Field(default="auto", description="preset of the Vision Transformer; auto: that of the recipe")
    cnn: str = Field(default="resnet20_cifar", description="preset of the convolutional network")
    shift: int = Field(default=1, ge=1, description="shift of the test images in pixels, in 8 directions")


class FgsmOptions(ReproduceOptions):
    """Options of `vitral reproduce fgsm`."""

    steps: int = Field(default=1200, ge=1, description="weight updates per run; in short runs the collapse is not seen")
    variants: Variants = Field(
        default=("fgsm", "fgsm_rs", "nfgsm", "grad_align", "pgd"),
        description="training attacks; fgsm_rs: from a random start; nfgsm: from larger noise, without projection; "
        "grad_align: FGSM with GradAlign",
    )
    eps: Eps = Field(
        default=0.3, le=1, description="radius of all attacks in linf, in units of [0,1]; 8/255 is common for photos"
    )
    eps_warmup: Share = Field(
        default=0.5, description="share of the run in which eps rises linearly from 0; 0: full size from the first step"
    )
    align: float = Field(default=0.2, gt=0, description="weight of GradAlign's term in the variant FGSM + GradAlign")
    attack_steps: Count = Field(default=5, description="steps of PGD in the variant PGD")
    samples: Count = Field(default=256, description="most test images that are attacked, by PGD with 20 steps")


class VatOptions(ReproduceOptions):
    """Options of `vitral reproduce vat`."""

    labels: Counts = Field(default=(1, 4, 10), description="labels per class; one table row per number and method")
    supervised_lr: float | None = Field(
        default=None, gt=0, description="learning rate with the labels alone; null: optim.lr, as for VAT"
    )
    eps: float = Field(
        default=1.0,
        gt=0,
        description="L2 norm of VAT's change of an image; 1 for 8x8 gray images, 2 to 4 for 32x32 RGB, 10 for 224x224",
    )
    unlabeled_ratio: Count = Field(default=2, description="unlabeled images per labeled image in a step of VAT")


class ConfidenceOptions(ReproduceOptions):
    """Options of `vitral reproduce confidence`."""

    eps: Eps = Field(default=0.1, le=1, description="radius of FGSM on pixels in linf, in units of [0,1]")
    embedding_eps: Eps = Field(
        default=0.03, description="length of FGM's change, in multiples of the norm of an image's normalized embeddings"
    )
    outside: Outsides = Field(
        default=("photos", "rotated", "inverted"),
        description="images of no known class: pieces of scikit-learn's two photographs (photos), test images by 90 "
        "degrees (rotated), test images with black and white exchanged (inverted)",
    )
