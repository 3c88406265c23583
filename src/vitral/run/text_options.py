"""Keys of commands that use a model which writes text. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from vitral.config import Config, Count
from vitral.data.text.config import TextSource
from vitral.evaluate.config import Evaluators
from vitral.evaluate.metric import missed_limits
from vitral.models.search_config import SearchConfig


class TextUse(Config):
    """Keys that every use of a model that writes text takes."""

    search: SearchConfig | None = Field(default=None, description="how texts are written; null: as in config.json")
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")
    batch_size: int = Field(default=64, ge=1, description="number of samples per batch")


class TextPredictOptions(TextUse):
    """Keys of `vitral predict` with a model that writes text."""

    text: str | None = Field(default=None, description="a text to read; `--text TEXT` is the same")
    max_bad: int = Field(default=0, ge=0, description="number of sources that may be unreadable, else exit code 2")


class TextSummaryOptions(Config):
    """Keys of `vitral summary` with a model that writes text."""

    length: Count | None = Field(
        default=None, description="tokens of the text for which layers are compared; null: 32, or the longest text"
    )
    kernel: Count = Field(default=3, ge=2, description="width of the convolution that layers are compared with")


class TextExportOptions(Config):
    """Keys of `vitral export` with a model that writes text."""

    format: Literal["onnx", "pt2", "openvino", "hf", "timm"] = Field(
        description="onnx: encoder and decoder step for ONNX Runtime; models that write text have no other format"
    )
    out: str = Field(description="folder to write")
    overwrite: bool = Field(default=False, description="replace an existing folder")
    precision: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32", description="precision of the computation: float32"
    )
    data: TextSource | None = Field(
        default=None, description="texts or images to compare on; null: those of the training run, else random ones"
    )
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="samples to compare on; auto: test, else val, else train"
    )
    samples: Count = Field(default=32, description="number of sources in the comparison with the model")
    max_difference: float | None = Field(
        default=None, gt=0, description="largest allowed difference of a score, else exit code 3; null: 0.001"
    )
    min_agreement: float | None = Field(
        default=None, ge=0, le=1, description="smallest allowed share of equal texts, else exit code 3; null: 1"
    )

    @model_validator(mode="after")
    def _only_onnx(self) -> TextExportOptions:
        if self.format != "onnx" or self.precision != "float32":
            given = f"format={self.format}, precision={self.precision}"
            raise ValueError(f"models that write text are exported with format=onnx in float32 only, got {given}")
        return self


class TextEvalOptions(TextUse):
    """Keys of `vitral eval` with a model that writes text."""

    data: TextSource | None = Field(default=None, description="texts to measure on; null: those of the training run")
    split: Literal["auto", "train", "val", "test"] = Field(
        default="auto", description="texts to measure on; auto: test, else val, else train"
    )
    samples: Count | None = Field(default=None, description="most samples that are measured, evenly spaced; null: all")
    compare: str | None = Field(default=None, description="second model to compare on the same samples")
    eval: Evaluators = Field(
        default_factory=dict,
        description="evaluators by name: clean, translation, pointing (data with boxes); none: the default of the task",
    )
    max_cer: float | None = Field(default=None, ge=0, description="largest character error rate, else exit code 3")
    max_wer: float | None = Field(default=None, ge=0, description="largest word error rate, else exit code 3")
    min_exact_match: float | None = Field(
        default=None, ge=0, le=1, description="smallest share of exact matches, else exit code 3"
    )

    def missed(self, found: Mapping[str, Any]) -> list[str]:
        """Return one sentence per metric that is beyond its limit."""
        limits = {"max_cer": self.max_cer, "max_wer": self.max_wer, "min_exact_match": self.min_exact_match}
        return missed_limits({key: limit for key, limit in limits.items() if limit is not None}, found)


class TextExplainOptions(Config):
    """Keys of `vitral explain` with a model that writes text."""

    text: str | None = Field(default=None, description="a text to read; `--text TEXT` is the same")
    out: str | None = Field(default=None, description="folder to write; must be new or empty")
    overwrite: bool = Field(default=False, description="replace the earlier output of `vitral explain` in out")
    search: SearchConfig | None = Field(
        default=None, description="how texts are written; null: the five best of beam search, else as in config.json"
    )
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")
