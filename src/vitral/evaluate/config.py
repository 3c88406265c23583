"""Keys of each evaluator and of each kind of probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, SerializeAsAny, Strict, create_model, model_validator

from vitral.attacks.config import AttackConfig, PixelAttack, check_classes, check_length, step_warnings
from vitral.config import Config, Count, build
from vitral.errors import UserError, nearest

Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]
Positives = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False), Field(min_length=1)]


class EvaluatorConfig(Config):
    """Keys of an evaluator: none by default. `whole_model`: each process needs all weights (no FSDP2)."""

    whole_model: ClassVar[bool] = False

    def check(self, outputs: int) -> None:
        """Raise UserError if these keys do not fit a model with so many outputs."""

    def check_images(self, size: tuple[int, int], channels: int) -> None:
        """Raise UserError if these keys do not fit images of this height, width and number of channels."""

    def warnings(self) -> list[str]:
        """Return what is probably a mistake in these keys, one sentence each, to be logged."""
        return []

    def images(self, counts: Mapping[str, int]) -> int:
        """Return the number of images that one validation computes, given the image count of each split."""
        return counts.get("val", 0)


class ReconstructionConfig(EvaluatorConfig):
    """Keys of the evaluator `reconstruction` of image tokenizers."""

    baseline: bool = Field(
        default=True,
        description="also find as many mean patches of the train images by k-means, and measure them: what a tokenizer "
        "has to be better than; false: skip it, as it takes minutes with thousands of codes",
    )


class NeighborsConfig(EvaluatorConfig):
    """Keys of the evaluator `knn`, which classifies by the nearest train images."""

    k: Count = Field(default=20, description="train images that vote for the class of an image")
    samples: Count = Field(
        default=50_000, description="most train images that vote, and most that are evaluated, evenly spaced"
    )

    def images(self, counts: Mapping[str, int]) -> int:
        """Return the images of both splits."""
        return sum(min(counts.get(name, 0), self.samples) for name in ("train", "val"))


class PointingConfig(EvaluatorConfig):
    """Keys of the evaluator `pointing`: whether attention peaks on the character that is written."""

    samples: Count = Field(default=1000, description="most images that are evaluated, evenly spaced")

    def images(self, counts: Mapping[str, int]) -> int:
        """Return the images that are read."""
        return min(counts.get("val", 0), self.samples)


class ClassifyConfig(EvaluatorConfig):
    """Keys of the evaluator `classify`: the class whose token makes an image most probable."""

    samples: Count = Field(default=10_000, description="most images that are classified, evenly spaced")


class CompletionConfig(EvaluatorConfig):
    """Keys of the evaluator `completion`: whether images with a drawn lower half have their class."""

    samples: Count = Field(default=1000, description="most images that are completed, evenly spaced")
    draws: Count = Field(default=3, description="lower halves that are drawn per image")
    k: Count = Field(default=3, description="nearest train images, by pixels, that vote for the class")
    seed: int = Field(default=0, ge=0, description="seed of the draws")


class LayersConfig(EvaluatorConfig):
    """Keys of the evaluator `layers`: a linear classifier on the features of each layer."""

    samples: Count = Field(
        default=50_000, description="most train images, and most evaluated ones, that are used, evenly spaced"
    )


class AttackedConfig(EvaluatorConfig):
    """Keys of an evaluator that attacks images, beside those of its attack."""

    whole_model: ClassVar[bool] = True  # processes need different numbers of steps, and shards meet at each

    samples: Count = Field(default=256, description="most images that are attacked, evenly spaced")
    seed: int = Field(default=0, ge=0, description="seed of random starts and squares")

    def check(self, outputs: int) -> None:
        """Refuse DLR for too few classes."""
        assert isinstance(self, AttackConfig)
        check_classes(self, outputs, f"eval.{self.kind}")

    def check_images(self, size: tuple[int, int], channels: int) -> None:
        """Refuse an L2 length that no change of an image has."""
        assert isinstance(self, AttackConfig)
        check_length(self, size, channels, f"eval.{self.kind}")

    def warnings(self) -> list[str]:
        """Warn of steps that are too long."""
        assert isinstance(self, AttackConfig)
        return step_warnings(self, f"eval.{self.kind}")

    def images(self, counts: Mapping[str, int]) -> int:
        """Return the passes through the model for all images."""
        assert isinstance(self, AttackConfig)
        return min(counts.get("val", 0), self.samples) * (2 + self.gradients + getattr(self, "queries", 0))


def check_bounded(attack: AttackConfig, where: str) -> None:
    """Raise UserError for an attack whose changes may exceed eps."""
    if not attack.bounded:
        raise UserError(
            "this attack may change images by more than eps, so it is for training only", where=where, got=attack.kind,
            expected=", ".join(ATTACKED),
        )  # fmt: skip


def _attacked(attack: type[AttackConfig]) -> type[EvaluatorConfig]:
    """Return the keys of the evaluator by an attack."""
    (kind,) = get_args(attack.model_fields["kind"].annotation)
    named: Any = (Literal[kind], Field(default=kind))
    made: Any = create_model(f"{attack.__name__}Evaluator", __base__=(AttackedConfig, attack), kind=named)
    return made


_PIXEL_ATTACKS: dict[str, type[AttackConfig]] = {
    get_args(attack.model_fields["kind"].annotation)[0]: attack for attack in get_args(PixelAttack)
}
ATTACKED = {name: _attacked(attack) for name, attack in _PIXEL_ATTACKS.items() if attack.bounded}
EVALUATORS: dict[str, type[EvaluatorConfig]] = {
    "clean": EvaluatorConfig, "map": EvaluatorConfig, "bits": EvaluatorConfig, "reconstruction": ReconstructionConfig,
    "knn": NeighborsConfig, "classify": ClassifyConfig, "completion": CompletionConfig, "layers": LayersConfig,
    "translation": EvaluatorConfig, "pointing": PointingConfig,
    **ATTACKED,
}  # fmt: skip


def _evaluators(tree: Any) -> Any:
    """Build the configurations of evaluators by name. Raises UserError for an unknown name and unknown keys."""
    if not isinstance(tree, Mapping):
        return tree
    for name in tree:
        if name in _PIXEL_ATTACKS:
            check_bounded(build(_PIXEL_ATTACKS[name], {"kind": name}), "eval")
        if name not in EVALUATORS:
            raise UserError(
                "unknown evaluator", got=name, expected=", ".join(EVALUATORS), nearest=nearest(name, EVALUATORS)
            )
    return {
        name: keys if isinstance(keys, Config) else build(EVALUATORS[name], {} if keys is None else keys)
        for name, keys in tree.items()
    }


Evaluators = Annotated[dict[str, SerializeAsAny[EvaluatorConfig]], BeforeValidator(_evaluators)]


class KnnConfig(Config):
    """Keys of the weighted k-NN probe."""

    k: Counts = Field(default=(10, 20, 100, 200), description="numbers of neighbors that vote; each is evaluated")
    temperature: float = Field(
        default=0.07, gt=0, description="a neighbor votes with weight exp(cosine similarity / temperature)"
    )


class LinearConfig(Config):
    """Keys of the linear probe."""

    l2: Positives = Field(
        default=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        description="strengths of the penalty l2/2 |weights|^2 on the mean loss; the best one on held-out train images "
        "is used",
    )
    val_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the train images held out to choose l2; the final fit uses all"
    )
    batchnorm: bool = Field(
        default=True, description="standardize features with the train images' statistics, as MAE's BatchNorm does"
    )
    steps: Count = Field(default=500, description="largest number of L-BFGS steps per fit")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> LinearConfig:
        if len(self.l2) == 1 and "val_fraction" in self.model_fields_set:
            raise ValueError("linear.val_fraction has no effect with one linear.l2")
        return self


class FewshotConfig(Config):
    """Keys of the few-shot probe: least squares on few images per class."""

    shots: Counts = Field(
        default=(1, 5, 10, 25), description="numbers of train images per class; each is evaluated, the last gives top1"
    )
    seeds: Count = Field(default=3, description="number of random draws of the train images")
