"""Start a run of texts from a model: one that writes text, or an encoder of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.create import build_sequence_model
from vitral.models.parameters import is_pruner
from vitral.models.registry import token_config
from vitral.models.sequence_config import ImageToTextConfig, SequenceConfig
from vitral.run.text_config import TextRunConfig
from vitral.training.metrics_log import log
from vitral.weights.adapt import adapt, without_head
from vitral.weights.find_model import load_model
from vitral.weights.tensors import check_match, checksum
from vitral.weights.text_folder import load_text_folder
from vitral.weights.text_kind import is_text_model

_ENCODER = "encoder."


@dataclass(frozen=True)
class TextInit:
    """A model to start from. tokenizers: those that its weights were trained with; None for an encoder of images."""

    where: str
    name: str
    architecture: SequenceConfig | ModelConfig
    weights: dict[str, Tensor]
    tokenizers: Tokenizers | None

    @property
    def fingerprint(self) -> str:
        """Of the weights: a run resumes only from the same ones."""
        return checksum(self.weights, {})

    @property
    def encoder(self) -> ModelConfig | None:
        """The encoder of images; None for a model that reads texts."""
        found = self.architecture
        return (
            found.encoder if isinstance(found, ImageToTextConfig) else found if isinstance(found, ModelConfig) else None
        )

    def encoder_keys(self) -> dict[str, Any]:
        """The encoder of images without its head, as that of a model that writes text. Raises UserError for one that
        has no patches."""
        encoder = self.encoder and token_config(self.encoder)
        if encoder is None:
            raise UserError("texts are read from patches", where="init", got=self.name, expected="a Vision Transformer")
        return {**encoder.model_dump(), "num_classes": 0, "head": "linear", "fc_norm": False, "pruner_blocks": ()}

    def fitted(self, architecture: SequenceConfig) -> dict[str, Tensor]:
        """The weights for `architecture`: all of a model that writes text, those of the encoder else; positions,
        patches and channels are adapted to its images. Raises UserError where they do not fit."""
        mine, theirs = dict(build_sequence_model(architecture).state_dict()), dict(self.weights)
        if self.tokenizers is None:
            theirs = {_ENCODER + name: tensor for name, tensor in without_head(theirs).items() if not is_pruner(name)}
            mine = {name: tensor for name, tensor in mine.items() if name.startswith(_ENCODER)}
        if self.encoder is not None and isinstance(architecture, ImageToTextConfig):
            part = {name.removeprefix(_ENCODER): t for name, t in theirs.items() if name.startswith(_ENCODER)}
            rest = {name: tensor for name, tensor in theirs.items() if not name.startswith(_ENCODER)}
            part, notes = adapt(part, self.encoder, architecture.encoder)
            theirs = rest | {_ENCODER + name: tensor for name, tensor in part.items()}
            for note in notes:
                log.info("init: %s", note)
        hint = "With model.name=auto the run takes the architecture of init."
        check_match(mine, theirs, self.where, hint=None if self.tokenizers is None else hint)
        return theirs


def load_init(config: TextRunConfig) -> TextInit | None:
    """The model that `init` names; `make_tokenizers` refuses one that reads the other kind of source."""
    if config.init is None:
        return None
    if is_text_model(config.init):
        model, folder, tokenizers = load_text_folder(config.init)
        return TextInit(config.init, folder.name, folder.architecture, dict(model.state_dict()), tokenizers)
    model, folder = load_model(config.init)
    return TextInit(config.init, folder.name, folder.architecture, dict(model.state_dict()), None)
