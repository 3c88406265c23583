"""Models that write text in ONNX Runtime: an encoder, a decoder step with caches, and a loop in Python around them.

An export is a folder: config.json, tokenizer.json, encoder.onnx and, unless CTC reads the model, decoder_step.onnx.
The first axis of every tensor counts rows. Outputs of the encoder that are called memory_* are inputs of each step;
past_* of a step are the present_* of the one before it, at first the encoder's past_* or, of caches, no tokens.

Shape letters: B samples, R rows of a search (k copies of each sample, one behind the other), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vitral.config import Config, build
from vitral.data.text.tokenizer_file import NAME, Tokenizers, load_tokenizers
from vitral.engines import onnx_session
from vitral.errors import UserError
from vitral.files import JSON_BYTES, explained, parse_json, read_text, require_regular
from vitral.models.sequence_config import SequenceConfig, TransformerDecoderConfig
from vitral.weights.digests import CONFIG, take_digests, verify_text, verify_weights
from vitral.weights.text_folder import TextFolderConfig
from vitral.weights.text_kind import TEXT_EXPORT_FORMAT

ENCODER, STEP = "encoder.onnx", "decoder_step.onnx"
TOKEN, LOGITS, SOURCE = "token", "logits", "source"
MEMORY, PAST, PRESENT = "memory_", "past_", "present_"


class TextExportMetadata(Config):
    """config.json of an export. instruction_sets: of the processor where it was compared with the model."""

    format: Literal["vitral-text-export-1"] = TEXT_EXPORT_FORMAT
    kind: Literal["onnx"] = "onnx"
    model: TextFolderConfig
    versions: dict[str, str]
    instruction_sets: list[str] = Field(default_factory=list)


@dataclass
class OnnxState:
    """A search between two steps: what stays, and what a step replaces, by the names of the step's inputs."""

    copies: int
    memory: dict[str, Tensor]
    past: dict[str, Tensor]


class OnnxWriter:
    """The model of an export, as a search needs it (`generate.StepModel`)."""

    def __init__(self, folder: Path, config: SequenceConfig) -> None:
        self.config, self._encoder = config, onnx_session(folder / ENCODER)
        self._step = onnx_session(folder / STEP) if config.decodes_steps else None
        inputs = [] if self._step is None else self._step.get_inputs()
        self._inputs: set[str] = {each.name for each in inputs}
        self._check(str(folder))

    def _check(self, where: str) -> None:
        """Raise UserError unless the graphs take and give what a search needs."""
        encoded = {each.name for each in self._encoder.get_outputs()}
        given = {each.name for each in self._encoder.get_inputs()}
        lacking = {SOURCE} - given
        last = self._encoder if self._step is None else self._step
        outputs = {each.name: each.shape for each in last.get_outputs()}
        past = {name for name in self._inputs if name.startswith(PAST)}
        lacking |= {LOGITS, *(name.replace(PAST, PRESENT, 1) for name in past)} - outputs.keys()
        if self._step is not None:
            caches = past if isinstance(self.config, TransformerDecoderConfig) else set[str]()
            lacking |= ({TOKEN} - self._inputs) | (self._inputs - {TOKEN} - encoded - caches)
        if lacking:
            raise UserError(
                "the graphs of this export do not fit together", where=where, got=", ".join(sorted(lacking))
            )
        expected = self.config.vocabulary + (not self.config.decodes_steps)
        if outputs[LOGITS][-1:] != [expected]:
            raise UserError(
                "the vocabulary does not fit the graphs", where=where, got=outputs[LOGITS][-1:], expected=expected
            )

    def __call__(self, source: Tensor) -> Tensor:
        """Logits of CTC."""
        return _run(self._encoder, {SOURCE: source})[LOGITS]

    def encode(self, source: Tensor) -> dict[str, Tensor]:
        """Texts [B, S] or images [B, C, H, W] to the outputs of the encoder by name."""
        return _run(self._encoder, {SOURCE: source})

    def start(self, memory: dict[str, Tensor], copies: int, max_length: int) -> OnnxState:
        """The state before the first token, `copies` rows per sample."""
        rows = {name: value.repeat_interleave(copies, 0) if copies > 1 else value for name, value in memory.items()}
        past = {name: value for name, value in rows.items() if name.startswith(PAST)}
        if isinstance(self.config, TransformerDecoderConfig):
            heads, count = self.config.heads, len(next(iter(rows.values())))
            none_RhLd = torch.zeros(count, heads, 0, self.config.width // heads)
            past = {name: none_RhLd for name in self._inputs if name.startswith(PAST)}
        return OnnxState(copies, {name: rows[name] for name in rows.keys() & self._inputs - past.keys()}, past)

    def step(self, tokens_R: Tensor, state: OnnxState) -> Tensor:
        """Append one token to each row and return the logits of the next one, [R, V]."""
        found = _run(self._step, {TOKEN: tokens_R, **state.memory, **state.past})
        state.past = {name: found[name.replace(PAST, PRESENT, 1)] for name in state.past}
        return found[LOGITS]

    def reorder(self, state: OnnxState, index_R: Tensor) -> None:
        """Let row r continue what row `index_R`[r] held. Fewer rows leave out samples that are done."""
        state.past = {name: value.index_select(0, index_R) for name, value in state.past.items()}
        if any(len(value) != len(index_R) for value in state.memory.values()):
            state.memory = {name: value.index_select(0, index_R) for name, value in state.memory.items()}


def load_text_export(folder: Path, *, verify: bool = True) -> tuple[OnnxWriter, TextFolderConfig, Tokenizers]:
    """The writer of an export, its model's config and its tokenizers. Raises UserError for a damaged folder."""
    where = str(folder / CONFIG)
    text = read_text(folder / CONFIG, JSON_BYTES)
    tree = parse_json(text, where=where)
    assert isinstance(tree, dict)
    files = parts_of(folder)
    for file in files:
        require_regular(file)
    digests = take_digests(tree, where, *(file.name for file in files))
    if verify and digests is not None:
        verify_text(text, digests[CONFIG], folder / CONFIG)
        for file in files:
            verify_weights(file, digests[file.name])
    metadata = build(TextExportMetadata, tree, where=where)
    tokenizers = load_tokenizers(folder)
    metadata.model.require_tokenizers(tokenizers, str(folder))
    return OnnxWriter(folder, metadata.model.architecture), metadata.model, tokenizers


def parts_of(folder: Path) -> list[Path]:
    """The files of an export that its config.json has digests of."""
    graphs = (file for file in folder.iterdir() if file.name.startswith((f"{ENCODER}", f"{STEP}")))
    return sorted([folder / NAME, *graphs])


def _run(session: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [each.name for each in session.get_outputs()]
    with explained("the export cannot be computed", "model"):  # it is damaged, or memory is short
        found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}
