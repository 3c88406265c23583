"""Export a model that writes text to ONNX, whole or not at all, and compare the texts of both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vitral.atomic_files import whole_folder, write_json, write_text
from vitral.config import Config
from vitral.cpu import instruction_sets
from vitral.errors import UserError
from vitral.export.parity import BeyondLimit, take_turns
from vitral.export.text_graphs import write_graphs
from vitral.models.search_config import SearchConfig
from vitral.tasks.text_writing import Written
from vitral.text_engines import OnnxWriter, TextExportMetadata, parts_of
from vitral.text_predictor import TextPredictor
from vitral.version import __version__
from vitral.weights.digests import CONFIG, signed
from vitral.weights.folder import CARD

PARITY = "parity.json"
MAX_DIFFERENCE, MIN_AGREEMENT = 1e-3, 1.0
_ROUNDS, _BATCH = 5, 8


class Sources(NamedTuple):
    """Texts or images to compare on, and what they are called."""

    name: str
    values: Sequence[Any]


class TextParity(Config):
    """How far an export is from its model. agreement: share of sources with the same text, by search; max_difference:
    of the scores of the same texts; speedup: of greedy search in batches of `batch` sources, median of rounds that take
    turns."""

    sources: int
    source: str
    agreement: dict[str, float]
    max_difference: float
    batch: int
    speedup: float


def export_text(
    predictor: TextPredictor, out: Path, card: str, sources: Sources, max_difference: float | None = None,
    min_agreement: float | None = None,
) -> tuple[list[str], TextParity]:  # fmt: skip
    """Write the folder of an export; its files and the comparison. Raises UserError where a package is missing,
    BeyondLimit where the texts differ: nothing is written then."""
    model = copy.deepcopy(predictor.model).cpu().eval().requires_grad_(False)
    versions = {"vitral": __version__, "torch": str(torch.__version__)}
    metadata = TextExportMetadata(model=predictor.config, versions=versions, instruction_sets=instruction_sets())
    with whole_folder(out) as folder:
        write_graphs(folder, model)
        predictor.tokenizers.save(folder)
        files = parts_of(folder)
        write_text(folder / CONFIG, signed(metadata.model_dump(mode="json"), *files))
        write_text(folder / CARD, card)
        writer = OnnxWriter(folder, predictor.config.architecture)
        theirs = TextPredictor(writer, predictor.config, predictor.tokenizers)
        mine = TextPredictor(model, predictor.config, predictor.tokenizers, "cpu")
        parity = compare_texts(mine, theirs, sources)
        _check(parity, max_difference or MAX_DIFFERENCE, MIN_AGREEMENT if min_agreement is None else min_agreement)
        write_json(folder / PARITY, parity.model_dump(mode="json"))
    return [file.name for file in files], parity


def compare_texts(mine: TextPredictor, theirs: TextPredictor, sources: Sources) -> TextParity:
    """Both on the same sources, by greedy search and by beam search with two beams."""
    searches = {"greedy": SearchConfig(), "beam 2": SearchConfig(search="beam", beams=2)}
    agreement, differences = dict[str, float](), [0.0]
    for name, search in searches.items():
        pairs = list(zip(_best(mine, sources, search), _best(theirs, sources, search), strict=True))
        same = [(one, other) for one, other in pairs if one.tokens == other.tokens]
        agreement[name] = len(same) / len(pairs)
        differences += [abs(one.score - other.score) for one, other in same]
    batch = list(sources.values[:_BATCH])
    own_s, their_s = take_turns(
        [lambda each=each: each.write(batch, searches["greedy"]) for each in (mine, theirs)], _ROUNDS
    )
    return TextParity(
        sources=len(sources.values), source=sources.name, agreement=agreement, max_difference=max(differences),
        batch=len(batch), speedup=round(float(np.median(np.divide(own_s, their_s))), 3),
    )  # fmt: skip


def _best(predictor: TextPredictor, sources: Sources, search: SearchConfig) -> list[Written]:
    return [outputs[0] for outputs in predictor.write(sources.values, search)]


def _check(parity: TextParity, max_difference: float, min_agreement: float) -> None:
    for name, share in parity.agreement.items():
        if share < min_agreement:
            raise BeyondLimit(
                f"the export's text is the model's for {100 * share:.1f} % of {parity.sources} sources by {name}, less "
                f"than {100 * min_agreement:g} %"
            )
    if not parity.max_difference <= max_difference:
        raise BeyondLimit(f"the export's scores differ by {parity.max_difference:.1e}, more than {max_difference:.2g}")


def random_sources(predictor: TextPredictor, count: int) -> Sources:
    """Noise: images of the model's size, or texts of random tokens. Raises UserError where no such text can be read."""
    spec, draw = predictor.config.preprocessing, np.random.default_rng(0)
    if spec is not None:
        shape = (*spec.image_size, spec.channels)
        images = [draw.integers(0, 256, shape, np.uint8) for _ in range(count)]
        return Sources("random images", [each[..., 0] if spec.channels == 1 else each for each in images])
    tokenizer, longest = predictor.tokenizers.source, predictor.config.longest_source
    assert tokenizer is not None
    texts: list[str] = []
    for _ in range(20 * count):
        size = int(draw.integers(1, min(longest - 1, 24) + 1))
        text = tokenizer.decode(draw.integers(4, max(len(tokenizer), 5), size).tolist())
        if predictor.reads(text):
            texts.append(text)
        if len(texts) == count:
            return Sources("random texts", texts)
    hint = "Name texts: data.source=pairs data.path=FILE"
    raise UserError("no random texts fit this vocabulary", where=predictor.config.name, hint=hint)
