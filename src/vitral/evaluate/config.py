"""How features are judged: the keys of each kind of probe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from vitral.config import Config, Count

Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]
Positives = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False), Field(min_length=1)]


class KnnConfig(Config):
    """Keys of the weighted nearest neighbours."""

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
    held_out: float = Field(
        default=0.1, gt=0, lt=1, description="share of the train images held out to choose l2; the final fit uses all"
    )
    batchnorm: bool = Field(
        default=True, description="standardize features with the train images' statistics, as MAE's BatchNorm does"
    )
    steps: Count = Field(default=500, description="largest number of L-BFGS steps per fit")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> LinearConfig:
        if len(self.l2) == 1 and "held_out" in self.model_fields_set:
            raise ValueError("linear.held_out has no effect with one linear.l2")
        return self


class FewshotConfig(Config):
    """Keys of few-shot regression."""

    shots: Counts = Field(
        default=(1, 5, 10, 25), description="numbers of train images per class; each is evaluated, the last gives top1"
    )
    seeds: Count = Field(default=3, description="number of random draws of the train images")
