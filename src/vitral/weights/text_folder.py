"""The folder of a model that writes text: config.json, model.safetensors, tokenizer.json and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from vitral.atomic_files import whole_folder, write_text
from vitral.config import Config, Count, build
from vitral.data.image_spec import ImageSpec
from vitral.data.text.tokenizer import PAD
from vitral.data.text.tokenizer_file import Tokenizers, load_tokenizers
from vitral.errors import UserError, plural
from vitral.files import JSON_BYTES, parse_json, read_text
from vitral.models.create import build_sequence_model
from vitral.models.registry import AnySequenceConfig
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_model import SequenceModel
from vitral.tasks.text import Text
from vitral.weights.digests import CONFIG, KEY, WEIGHTS, signed, take_digests, verify_text, verify_weights
from vitral.weights.find_model import find_model
from vitral.weights.folder import CARD, refuse_larger
from vitral.weights.tensors import check_finite, check_match, load_tensors, save_tensors, tensor_shapes
from vitral.weights.text_kind import TEXT_FORMAT


class TextFolderConfig(Config):
    """config.json. tokenizer: the digest of tokenizer.json's vocabularies. search: how texts are written unless a
    command says otherwise. preprocessing: of images, where these are read. max_source: ids, with the end, of the
    longest source text that it was trained for; null: as many as the model has positions. provenance: as in
    `FolderConfig`."""

    format: Literal["vitral-text-1"] = TEXT_FORMAT
    name: str
    architecture: AnySequenceConfig
    task: Literal["text"] = "text"
    tokenizer: str
    search: SearchConfig = SearchConfig()
    preprocessing: ImageSpec | None = None
    max_source: Count | None = None
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _fits_together(self) -> TextFolderConfig:
        architecture, shown = self.architecture, self.preprocessing
        if architecture.reads_images != (shown is not None):
            raise ValueError("preprocessing belongs to models that read images, and to these only")
        if shown is not None and (*shown.image_size, shown.channels) != tuple(architecture.input_shapes["image"]):
            raise ValueError("preprocessing gives other images than the architecture takes")
        if architecture.pad_id != PAD:
            raise ValueError(f"architecture.pad_id must be {PAD}, that of every tokenizer, got {architecture.pad_id}")
        if not isinstance(self.provenance.get("data") or {}, dict):
            raise ValueError("provenance.data must be keys of data")
        longest = 0 if architecture.reads_images else architecture.max_length
        if self.max_source is not None and self.max_source > longest:
            raise ValueError(f"max_source {self.max_source}: the model reads texts of at most {longest} ids")
        return self

    @property
    def longest_source(self) -> int:
        """Ids of the longest source text, with its end, that the model reads."""
        return self.max_source or self.architecture.max_length

    def require_tokenizers(self, tokenizers: Tokenizers, where: str) -> None:
        """Raise UserError unless these are the tokenizers of the training, and have an entry for each id."""
        tokenizers.require(self.tokenizer, where)
        architecture, source = self.architecture, tokenizers.source
        for side, got, expected in (
            ("vocabulary", len(tokenizers.target), architecture.vocabulary),
            ("source vocabulary", 0 if source is None else len(source), getattr(architecture, "source_vocabulary", 0)),
        ):
            if got != expected:
                raise UserError(
                    f"the {side} does not fit the model", where=where, got=plural(got, "token"),
                    expected=plural(expected, "token"),
                )  # fmt: skip

    def make_task(self) -> Text:
        """The task."""
        return Text(reads="image" if self.architecture.reads_images else "text")


def save_text_folder(
    path: Path, model: SequenceModel, config: TextFolderConfig, tokenizers: Tokenizers, card: str
) -> None:
    """Write the folder, whole or not at all, with digests that `load_text_folder` verifies."""
    config.require_tokenizers(tokenizers, str(path))
    with whole_folder(path) as temporary:
        save_tensors(temporary / WEIGHTS, model.state_dict(), {"format": "pt"})
        tokenizers.save(temporary)
        (temporary / CONFIG).write_text(signed(config.model_dump(mode="json"), temporary / WEIGHTS), encoding="utf-8")
        write_text(temporary / CARD, card)


def load_text_folder(model: str, *, verify: bool = True) -> tuple[SequenceModel, TextFolderConfig, Tokenizers]:
    """The model, in evaluation mode on the CPU, its config and its tokenizers. Raises UserError for damaged folders,
    and for the vocabulary of another model."""
    path = find_model(model)
    where = str(path / CONFIG)
    text = read_text(path / CONFIG, JSON_BYTES)
    tree = parse_json(text, where=where)
    if not isinstance(tree, dict) or tree.get("format") != TEXT_FORMAT:
        raise UserError("not a folder of a model that writes text", where=where, expected=f"format: {TEXT_FORMAT}")
    digests = take_digests(tree, where, WEIGHTS) if verify else tree.pop(KEY, None)
    if verify and digests is not None:
        verify_text(text, digests[CONFIG], path / CONFIG)
        verify_weights(path / WEIGHTS, digests[WEIGHTS])
    config = build(TextFolderConfig, tree, where=where)
    tokenizers = load_tokenizers(path)
    config.require_tokenizers(tokenizers, str(path))
    refuse_larger(config.architecture, tensor_shapes(path / WEIGHTS), where)
    network = build_sequence_model(config.architecture).eval()
    tensors, _ = load_tensors(path / WEIGHTS)
    check_match(network.state_dict(), tensors, str(path / WEIGHTS), hint=f"{CONFIG} says {config.name}")
    check_finite(tensors, str(path / WEIGHTS))
    network.load_state_dict(tensors)
    return network, config, tokenizers
