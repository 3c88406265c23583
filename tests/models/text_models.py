"""Predictors of random models that write text: a Transformer, LSTMs, and Vision Transformers."""

from __future__ import annotations

from typing import Any

import torch

from vitral.data.image_spec import ImageSpec
from vitral.data.text.config import TokenizerConfig
from vitral.data.text.tokenizer_file import Tokenizers, train_tokenizers
from vitral.models.create import build_sequence_model
from vitral.models.presets import resolve_sequence
from vitral.models.search_config import SearchConfig
from vitral.text_predictor import TextPredictor
from vitral.weights.text_folder import TextFolderConfig, save_text_folder

LONGEST = 16


def text_writer(name: str = "transformer_tiny", seed: int = 0, scale: float = 1.0, **options: Any) -> TextPredictor:
    """A random model from and to texts of a to e. scale: of all parameters, for more decided outputs."""
    tokenizers = train_tokenizers(TokenizerConfig(kind="characters"), ["abcde"], source_texts=["abcde"])
    return _predictor(name, tokenizers, None, seed, scale, source_vocabulary=9, max_length=LONGEST, **options)


def image_writer(decoder: str = "transformer", seed: int = 0) -> TextPredictor:
    """A random model from gray images of 8 x 40 pixels to texts of a to e."""
    tokenizers = train_tokenizers(TokenizerConfig(kind="characters"), ["abcde"])
    spec = ImageSpec(image_size=(8, 40), channels=1, resize_mode="squash")
    kind, options = ("ctc", {}) if decoder == "ctc" else ("text", {"max_length": LONGEST})
    return _predictor(f"vit_{kind}_micro_patch2_8x40", tokenizers, spec, seed, 1.0, **options)


def with_search(predictor: TextPredictor, search: SearchConfig) -> TextPredictor:
    """The same model with a search of its own."""
    config = predictor.config.model_copy(update={"search": search})
    return TextPredictor(predictor.model, config, predictor.tokenizers, "cpu")


def save(predictor: TextPredictor, path: Any) -> None:
    """Write its model folder."""
    save_text_folder(path, predictor.model, predictor.config, predictor.tokenizers, "# Random\n")


def _predictor(
    name: str, tokenizers: Tokenizers, spec: ImageSpec | None, seed: int, scale: float, **options: Any
) -> TextPredictor:
    architecture = resolve_sequence(name, vocabulary=9, **options)
    torch.manual_seed(seed)
    model = build_sequence_model(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    config = TextFolderConfig(
        name=name, architecture=architecture, tokenizer=tokenizers.digest, search=SearchConfig(max_length=10),
        preprocessing=spec, provenance={},
    )  # fmt: skip
    return TextPredictor(model, config, tokenizers, "cpu")
