"""Keys of a training run that learns to write text. Nothing here imports torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.config import Count, Pair, changed_keys, nullable
from vitral.data.config import AugmentConfig, CheckConfig, DataConfig
from vitral.data.text.config import TextConfig, TextSource, TokenizerConfig
from vitral.evaluate.config import Evaluators
from vitral.models.registry import families_of
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_config import SequenceConfig
from vitral.objectives.sequence_config import SequenceLossConfig
from vitral.run.run_keys import RunKeys

_FROM_DATA = ("family", "vocabulary", "source_vocabulary", "pad_id", "max_length", "encoder", "decoder")

IMAGE_KEYS = ("image_size", "resize_mode", "channels", "workers", "cache_mb")


class TextData(TextSource, TextConfig):
    """Texts, how they become ids, and how images are read where these are the sources."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    source_tokenizer: TokenizerConfig | None = Field(
        default=None, description="how source texts become ids; null: as data.tokenizer says"
    )
    image_size: Count | Pair | Literal["auto"] = Field(
        default="auto", description="height,width of images in pixels; auto: that of the preset"
    )
    resize_mode: Literal["crop", "squash"] = Field(
        default="squash",
        description="resizing of images to the model's shape; squash: without keeping the aspect ratio; crop: resize "
        "and center-crop",
    )
    channels: Literal["auto"] | Count = Field(
        default="auto", description="number of channels of images: 1 gray, 3 RGB; auto: detect from the data"
    )
    workers: Count | Literal[0, "auto"] = Field(
        default="auto", description="number of threads that decode images; auto: one per core"
    )
    cache_mb: int = Field(default=2048, ge=0, description="memory for decoded images, in MB per split")

    def images(self) -> DataConfig:
        """Return how images are read."""
        return DataConfig(path=self.path, **{key: getattr(self, key) for key in IMAGE_KEYS})


class SequenceOptions(nullable(*families_of(SequenceConfig).values(), exclude=_FROM_DATA)):  # pyright: ignore[reportUntypedBaseClass]
    """A preset and changes of it; null leaves the preset's value."""

    name: str = Field(
        default="transformer_tiny", description="model preset (see `vitral models`); auto: the architecture of init"
    )

    def options(self) -> dict[str, Any]:
        """Return the options that are set."""
        return {key: value for key, value in self.model_dump(exclude={"name"}).items() if value is not None}


class TextRunConfig(RunKeys):
    """Keys of a run that learns to write text, of text or of images."""

    assembly: ClassVar[str] = "vitral.run.text_run:TextRun"

    task: Literal["text"] = Field(default="text", description="text: the model reads a text or an image, writes a text")
    data: TextData = TextData()
    check: CheckConfig = CheckConfig()
    augment: AugmentConfig = AugmentConfig()
    model: SequenceOptions = SequenceOptions()
    objective: SequenceLossConfig = SequenceLossConfig()
    search: SearchConfig = Field(
        default=SearchConfig(), description="how texts are written at the end; validation during a run is greedy"
    )
    eval: Evaluators = Field(
        default_factory=dict,
        description="evaluators by name, each with its keys, as {clean: {}}; the first one's metric chooses the best "
        "checkpoint; none: the default of the task",
    )
    eval_samples: Count = Field(
        default=2000, description="most samples of a validation during the run, evenly spaced; at the end all are used"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TextRunConfig:
        if self.train.parallel == "fsdp":
            raise ValueError("train.parallel=fsdp does not work for task=text; use ddp")
        if self.train.freeze != "none":
            raise ValueError("train.freeze has no effect with task=text: set train.freeze=none")
        if self.optim.layer_decay != 1:
            raise ValueError("optim.layer_decay has no effect with task=text: set optim.layer_decay=1")
        if changed_keys(self.augment, ("mixup", "cutmix", "mix_prob")):
            raise ValueError("texts are not mixed: set augment.mixup=0 augment.cutmix=0 augment.mix_prob=1")
        if self.augment.mosaic or self.augment.copy_paste:
            raise ValueError("texts have no boxes: set augment.mosaic=0 augment.copy_paste=0")
        return self
