"""Keys of the attacks: one configuration class per kind. Nothing here imports torch."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from vitral.config import Config, Count, Share
from vitral.errors import UserError

_FRACTION = re.compile(r"\s*(-?[0-9.]+)\s*/\s*([0-9.]+)\s*")


def fraction(value: Any) -> Any:
    """Return "8/255" as a number; every other value as it is."""
    found = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    try:
        return float(found[1]) / float(found[2]) if found else value
    except (ValueError, ZeroDivisionError):
        return value


Eps = Annotated[float, BeforeValidator(fraction), Field(gt=0)]
Norm = Literal["linf", "l2"]
_NORM: Any = Field(
    default="linf", description="norm that eps limits; linf: the change of each pixel; l2: the length of all changes"
)
_RESTARTS = "number of random starts; an image keeps the first that changes the answer, else the one with most loss"


class AttackConfig(Config):
    """Keys of every attack.

    `black_box`: it needs outputs only, no gradients. `bounded`: the result is inside the ball of radius eps.
    `stops_early`: an image is not changed further once its answer is wrong.
    """

    black_box: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    stops_early: ClassVar[bool] = False

    if TYPE_CHECKING:
        kind: Any  # of each class a Literal: its name
        norm: Any  # likewise where an attack has one norm
    else:
        norm: Norm = _NORM

    eps: Eps | None = Field(
        default=None,
        description="largest change in units of [0,1], in the norm; fractions such as 8/255 are numbers; null: 8/255, "
        "or 128/255 in l2",
    )

    @property
    def radius(self) -> float:
        """The radius of the ball: eps or its default."""
        return self.eps if self.eps is not None else (8 if self.norm == "linf" else 128) / 255

    @property
    def gradients(self) -> int:
        """Number of forward and backward passes per image; 0: forward passes only."""
        if self.black_box:
            return 0
        counts = (getattr(self, key, 1) for key in ("steps", "restarts", "targets"))
        return math.prod(max(count, 1) for count in counts)

    @model_validator(mode="after")
    def _in_range(self) -> AttackConfig:
        if self.norm == "linf" and self.radius > 1:
            raise ValueError(
                f"eps={self.radius:g} is more than the whole range: eps is in units of [0,1]. Is "
                f"eps={self.radius:g}/255 meant?"
            )
        return self


class FgsmConfig(AttackConfig):
    """FGSM (arXiv 1412.6572): one step along the sign of the gradient."""

    kind: Literal["fgsm"] = Field(default="fgsm", description="FGSM: one step of eps along the sign of the gradient")
    norm: Literal["linf"] = Field(default="linf", description="norm that eps limits: the change of each pixel")


class FgmConfig(AttackConfig):
    """FGM (arXiv 1605.07725, section 3): one step along the gradient."""

    kind: Literal["fgm"] = Field(description="FGM: one step of L2 length eps along the gradient")
    norm: Literal["l2"] = Field(default="l2", description="norm that eps limits: the length of all changes")


class RfgsmConfig(AttackConfig):
    """R+FGSM (arXiv 1705.07204)."""

    kind: Literal["rfgsm"] = Field(description="R+FGSM: a random step of eps/2, then FGSM with the rest")
    norm: Literal["linf"] = Field(default="linf", description="norm that eps limits: the change of each pixel")


class FgsmRsConfig(AttackConfig):
    """Fast adversarial training's attack (arXiv 2001.03994)."""

    kind: Literal["fgsm_rs"] = Field(description="FGSM-RS: a uniform random start, then a step of 1.25 eps, projected")
    norm: Literal["linf"] = Field(default="linf", description="norm that eps limits: the change of each pixel")
    step: Eps | None = Field(default=None, description="length of the step; null: 1.25 eps")


class NfgsmConfig(AttackConfig):
    """N-FGSM (arXiv 2202.01181)."""

    bounded: ClassVar[bool] = False

    kind: Literal["nfgsm"] = Field(
        description="N-FGSM: FGSM from noise of noise * eps, not projected (changes may reach (noise + 1) eps); for "
        "training only"
    )
    norm: Literal["linf"] = Field(default="linf", description="norm that eps limits: the change of each pixel")
    noise: float = Field(default=2.0, ge=0, description="half width of the uniform noise, in multiples of eps")


class PgdConfig(AttackConfig):
    """PGD (arXiv 1706.06083); without a random start BIM (1607.02533)."""

    kind: Literal["pgd"] = Field(default="pgd", description="PGD: projected gradient steps from a random start")
    norm: Norm = _NORM
    steps: Count = Field(default=10, description="number of steps")
    step: Eps | None = Field(default=None, description="length of a step; null: 2.5 eps / steps")
    random_start: bool = Field(default=True, description="start at a random point of the ball; false: at the image")
    restarts: Count = Field(default=1, description=_RESTARTS)

    @model_validator(mode="after")
    def _restarts_differ(self) -> PgdConfig:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts are all equal with random_start=false")
        return self


class MifgsmConfig(AttackConfig):
    """MI-FGSM (arXiv 1710.06081)."""

    kind: Literal["mifgsm"] = Field(description="MI-FGSM: steps of eps / steps along the sign of a moving sum")
    norm: Literal["linf"] = Field(default="linf", description="norm that eps limits: the change of each pixel")
    steps: Count = Field(default=10, description="number of steps")
    momentum: float = Field(default=1.0, ge=0, description="share of the sum of gradients that a step keeps")


class ApgdConfig(AttackConfig):
    """APGD (arXiv 2003.01690)."""

    stops_early: ClassVar[bool] = True

    kind: Literal["apgd"] = Field(description="APGD: PGD with momentum that chooses its step lengths")
    norm: Norm = _NORM
    steps: Count = Field(default=100, description="number of steps")
    loss: Literal["ce", "dlr"] = Field(
        default="ce", description="loss that is maximized; ce: cross-entropy; dlr: difference of logits ratio"
    )
    targets: int = Field(
        default=0,
        ge=0,
        description="number of wrong classes that are aimed at, the most probable first, one run each; 0: none, any "
        "wrong answer counts; needs loss=dlr",
    )
    restarts: Count = Field(default=1, description=_RESTARTS)

    @model_validator(mode="after")
    def _targets_by_dlr(self) -> ApgdConfig:
        if self.targets and self.loss != "dlr":
            raise ValueError(f"targets={self.targets} needs loss=dlr")
        return self


class SquareConfig(AttackConfig):
    """Square attack (arXiv 1912.00049)."""

    black_box: ClassVar[bool] = True
    stops_early: ClassVar[bool] = True

    kind: Literal["square"] = Field(description="Square: random squares, kept where they help; uses outputs only")
    norm: Norm = _NORM
    queries: Count = Field(
        default=500, description="number of evaluations per image (the paper: 5,000); more find more"
    )
    first_share: Share = Field(default=0.8, description="share of the image that the first squares cover (p_init)")


class EnsembleConfig(AttackConfig):
    """AutoAttack (arXiv 2003.01690) without FAB: APGD on cross-entropy, targeted APGD on DLR, Square."""

    stops_early: ClassVar[bool] = True

    kind: Literal["ensemble"] = Field(
        description="AutoAttack without FAB: APGD-CE, targeted APGD-DLR and Square, each on the images that are left"
    )
    norm: Norm = _NORM
    steps: Count = Field(default=100, description="number of steps of APGD")
    targets: Count = Field(default=9, description="number of wrong classes that APGD-DLR aims at")
    queries: Count = Field(
        default=500, description="number of evaluations per image by Square (AutoAttack: 5,000); more find more"
    )

    @property
    def gradients(self) -> int:
        """Those of both APGDs."""
        return self.steps * (1 + self.targets)


class EmbeddingFgmConfig(AttackConfig):
    """FGM on patch embeddings (arXiv 1605.07725)."""

    kind: Literal["embedding_fgm"] = Field(description="FGM on the normalized patch embeddings; for training only")
    norm: Literal["l2"] = Field(default="l2", description="norm that eps limits: the length of all changes of an image")
    bounded: ClassVar[bool] = False
    eps: Eps | None = Field(
        default=None,
        description="length of the change, in multiples of the norm of an image's normalized embeddings; null: 0.03",
    )

    @property
    def radius(self) -> float:
        """The length of the change in multiples of the embeddings' norm."""
        return 0.03 if self.eps is None else self.eps


PixelAttack = (
    FgsmConfig
    | FgmConfig
    | RfgsmConfig
    | FgsmRsConfig
    | NfgsmConfig
    | PgdConfig
    | MifgsmConfig
    | ApgdConfig
    | SquareConfig
    | EnsembleConfig
)


def _pgd(tree: Any) -> Any:
    """Set the default kind, pgd."""
    return {"kind": "pgd", **tree} if isinstance(tree, dict) else tree


if TYPE_CHECKING:
    AnyAttack = AttackConfig
    TrainingAttack = AttackConfig
else:
    AnyAttack = Annotated[Annotated[PixelAttack, Field(discriminator="kind")], BeforeValidator(_pgd)]
    TrainingAttack = Annotated[
        Annotated[PixelAttack | EmbeddingFgmConfig, Field(discriminator="kind")], BeforeValidator(_pgd)
    ]


def check_classes(attack: AttackConfig, classes: int, where: str) -> None:
    """Raise UserError if the loss of an attack, or its wrong classes to aim at, need more classes than there are."""
    if getattr(attack, "loss", "ce") != "dlr":
        return
    targets = getattr(attack, "targets", 0)
    least = 4 if targets else 3
    if least <= classes <= targets:
        raise UserError(
            f"of {classes} classes {classes - 1} are wrong", where=f"{where}.targets", got=targets,
            expected=f"at most {classes - 1}",
        )  # fmt: skip
    if classes < least:
        raise UserError(
            "the DLR loss compares the largest logits", where=f"{where}.loss", got=f"{classes} classes",
            expected=f"at least {least} classes", hint=f"{where}.loss=ce works with any number of classes.",
        )  # fmt: skip


def check_length(attack: AttackConfig, size: tuple[int, int], channels: int, where: str) -> None:
    """Raise UserError for an L2 length that no change of an image of this size in [0,1] has."""
    most = math.sqrt(size[0] * size[1] * channels)
    if attack.norm == "l2" and attack.bounded and attack.radius > most:
        raise UserError("eps is longer than any change of an image", where=f"{where}.eps", got=attack.radius,
                        expected=f"at most {most:.4g}")  # fmt: skip


def step_warnings(attack: AttackConfig, where: str) -> list[str]:
    """Return a warning, in a list, for steps that are longer than the ball is wide."""
    step = getattr(attack, "step", None)
    if step is None or step <= 2 * attack.radius:
        return []
    return [
        f"{where}.step={step:.4g} is more than 2 eps, the width of the ball (eps {attack.radius:.4g}): every step ends "
        f"at its edge. {where}.step=null sets a length that fits"
    ]
