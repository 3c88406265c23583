"""Views of the explorer for a model that writes text: the texts, each token's scores, and what was read for it.

All of it is for the one thread that computes with a model.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitral.data.text.tokenizer import END
from vitral.interpret.reading import Reading, read
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_model import SequenceModel
from vitral.serve.explore_views import as_png_url
from vitral.serve.model_worker import APIError
from vitral.serve.text_requests import SEARCH
from vitral.text_predictor import TextPredictor

MOST_NUMBERS = 2**22  # of attention in one answer: 16 MB
_BEST = 5  # beams that the page begins with, and outputs of a step


def describe(predictor: TextPredictor, max_beams: int) -> dict[str, Any]:
    """What a page has to know of a model: what it reads, how many texts it can compare, and what cannot be seen of it.

    kind: of alignment: "attention", "ctc" or null, then `why` says why. search: keys of a query that keep the model's
    own search, but for its kind and number of beams.
    """
    c, spec = predictor.config.architecture, predictor.config.preprocessing
    most, own = min(c.vocabulary, max_beams), predictor.config.search
    beams = min(own.beams if own.search == "beam" else _BEST, most)
    search = own.as_beam(beams).model_dump(mode="json", exclude={"search", "beams", "n_best"}, exclude_defaults=True)
    kind, why = _kind(predictor)
    return {
        "reads": "image" if c.reads_images else "text", "kind": kind, "why": why, "has_steps": _is_torch(predictor),
        "beams": beams, "most_beams": most, "search": {f"{SEARCH}{key}": value for key, value in search.items()},
        **({} if spec is None else {"image_size": spec.image_size, "channels": spec.channels}),
    }  # fmt: skip


@torch.inference_mode()
def look(predictor: TextPredictor, input_1: Tensor, search: SearchConfig, rank: int) -> dict[str, Any]:
    """Return the texts of one prepared source, best first, and of the one at `rank` (from 1) each step and its
    alignment: attention [layers, heads, tokens, source tokens], or over rows and columns of patches.

    Raises APIError: 422 for a rank that the search has not, 413 for more numbers than an answer may hold.
    """
    texts = predictor.write_prepared(input_1, search, [0])[0]
    if rank > len(texts):
        raise APIError(422, "no_such_rank", f"the search gave {len(texts)} texts; got: rank={rank}")
    found: dict[str, Any] = {
        "input": as_png_url(input_1[0]) if predictor.reads_images else None, "rank": rank,
        "texts": [{name: value for name, value in each._asdict().items() if name != "tokens"} for each in texts],
        "steps": [], "source": [], "attention": None, "columns": None,
    }  # fmt: skip
    if not _is_torch(predictor):
        return found
    chosen = texts[rank - 1]
    tokens = [*chosen.tokens, *([END] if chosen.finished else [])]
    reading = read(predictor.model, predictor.tokenizers, input_1.to(predictor.device), tokens)
    return found | {
        "steps": reading.steps(_BEST), "source": reading.source, "columns": reading.columns(),
        "attention": _packed(reading) if reading.map_LhT.size else None,
    }  # fmt: skip


def _kind(predictor: TextPredictor) -> tuple[str | None, str | None]:
    if not _is_torch(predictor):
        return None, (
            "This is an export, which writes texts and gives nothing else. The model folder that it was made from "
            "shows each token."
        )
    if not predictor.config.architecture.decodes_steps:
        return "ctc", None
    if not predictor.model.alignment_names:
        return None, "This model has no attention to its source: all it knows of it is one state (attention=none)."
    return "attention", None


def _is_torch(predictor: TextPredictor) -> bool:
    return isinstance(predictor.writer, SequenceModel)


def _packed(reading: Reading) -> dict[str, Any]:
    """Numbers as float32, little-endian, in base64."""
    if reading.map_LhT.size > MOST_NUMBERS:
        message = f"the attention of this text is {reading.map_LhT.size:,} numbers; at most {MOST_NUMBERS:,} are sent"
        raise APIError(413, "too_large_answer", f"{message}. Take a shorter text, or a smaller search.max_length")
    data = np.ascontiguousarray(reading.map_LhT, "<f4")
    return {"shape": data.shape, "data": base64.b64encode(data.tobytes()).decode()}
