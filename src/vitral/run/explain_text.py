"""Explain a model that writes text: what it wrote, how sure it was at each step, and what it looked at.

Importing this file imports matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitral.data.text.tokenizer import END
from vitral.errors import UserError
from vitral.interpret.reading import Reading, read
from vitral.models.search_config import SearchConfig
from vitral.report.alignment_plots import visible
from vitral.report.sections import Bullets, Figure, Note, Part, Section, Table
from vitral.run.page_folder import page_folder
from vitral.run.text_alignment import CAUTION, layer_figure, overview, picture_of
from vitral.run.text_options import TextExplainOptions
from vitral.tasks.task import Array
from vitral.tasks.text_writing import Written
from vitral.text_predictor import TextPredictor, load_text
from vitral.training.metrics_log import console_logging, log

PAGE, RECORD = "explain.html", "explain.json"
_EMPTY = "(an empty text)"
_NO_STEPS = "No token was written, so there are no steps and there is no alignment."
_MOST = 50  # sources of one page
_BEST = 5  # texts of a search, and tokens of a step


def explain_text(model: str, images: Sequence[str], options: TextExplainOptions) -> dict[str, Any]:
    """Write figures and a page to `options.out`, for one text or for images. Returns the output of `vitral explain
    --json`: `model`, `page`, `files`, `sources` (the texts of each one with their scores, and its steps), `notes`.

    Nothing is written before everything is drawn. Raises UserError for a source of the other kind, or none, for one
    that cannot be read, and for a folder that another program wrote.
    """
    console_logging()
    if options.out is None:
        raise UserError("no folder for the figures given", where="out", hint="out=DIR")
    folder = page_folder(options.out, overwrite=options.overwrite, page=PAGE, record=RECORD, command="vitral explain")
    predictor = load_text(model, options.device)
    sources = _sources(predictor, images, options.text)
    search, notes = _search(predictor, options.search), list[str]()
    if predictor.config.architecture.decodes_steps and not predictor.model.alignment_names:
        notes.append("This model has no attention to its source: there are no alignments.")
    sections, rows = list[Section](), list[dict[str, Any]]()
    for number, source in enumerate(sources, 1):
        log.info("looking at %s", source)
        section, row = _explained(predictor, source, number, search)
        sections.append(section)
        rows.append(row)
    figures = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    names = [PAGE, RECORD, *(figure.name for figure in figures)]
    found = {"model": model, "page": str(folder.path / PAGE), "files": names, "sources": rows, "notes": notes}
    left_out = [Section("Left out", [Bullets(notes)])] if notes else []
    caution = [Section("", [Note(CAUTION)])] if predictor.config.architecture.decodes_steps else []
    folder.write(f"Inside {model}", [*caution, *sections, *left_out], figures, found)
    return found


def _sources(predictor: TextPredictor, images: Sequence[str], text: str | None) -> Sequence[str]:
    if predictor.reads_images:
        if text is not None:
            raise UserError("this model reads images, not texts", where="text", got=text)
        if not images:
            raise UserError("missing argument: an image", hint="vitral explain MODEL IMAGE out=DIR")
        if len(images) > _MOST:
            raise UserError("too many images for one page", got=len(images), expected=f"at most {_MOST}")
        return images
    if images:
        raise UserError("this model reads texts, not images", got=images[0], hint='vitral explain MODEL --text "TEXT"')
    if text is None:
        raise UserError("missing argument: a text", hint='vitral explain MODEL --text "TEXT" out=DIR')
    return [text]


def _search(predictor: TextPredictor, given: SearchConfig | None) -> SearchConfig:
    """The given search, or the best texts of beam search, all else of which is as in the folder."""
    kept = predictor.config.search
    beams = kept.beams if kept.search == "beam" else min(_BEST, predictor.config.architecture.vocabulary)
    return predictor.resolve_search(given or kept.as_beam(beams))


@torch.inference_mode()
def _explained(
    predictor: TextPredictor, source: str, number: int, search: SearchConfig
) -> tuple[Section, dict[str, Any]]:
    """The section of one source, and its numbers."""
    texts = predictor.write([source], search)[0]
    best = texts[0]
    tokens = [*best.tokens, *([END] if best.finished else [])]
    source_1 = predictor.preprocess([source])
    found = read(predictor.model, predictor.tokenizers, source_1, tokens)
    is_image = predictor.reads_images
    name = f"{number:02d}-" + (re.sub(r"[^\w.-]+", "_", Path(source).stem)[:40] if is_image else "text")
    shown = Path(source).name if is_image else source
    steps = found.steps(_BEST)
    row: dict[str, Any] = {
        "image" if is_image else "source": source, "text": best.text, "score": best.score,
        "n_best": [{"text": each.text, "score": each.score, "log_prob": each.log_prob} for each in texts],
        "steps": steps,
    }  # fmt: skip
    parts: list[Part] = [
        f"Written: {best.text or _EMPTY}",
        _text_table(texts),
        _step_table(steps) if steps else Note(_NO_STEPS),
    ]
    return Section(
        f"{number}: {shown}", [*parts, *_drawn(found, picture_of(predictor.model, source_1), name, shown)]
    ), row


def _text_table(texts: Sequence[Written]) -> Table:
    rows = [[place, each.text or _EMPTY, each.score, each.log_prob] for place, each in enumerate(texts, 1)]
    return Table(["Rank", "Text", "Score", "Log-probability"], rows, "The best texts of the search")


def _step_table(steps: Sequence[dict[str, Any]]) -> Table:
    has_frames = "frame" in steps[0]
    rows = [
        [
            place, visible(step["token"]), *([step["frame"]] if has_frames else []),
            *(f"{visible(each['token'])}\u00a0{100 * each['probability']:.1f}\u00a0%" for each in step["top"]),
        ]
        for place, step in enumerate(steps, 1)
    ]  # fmt: skip
    heads = ["Step", "Written", *(["Frame"] if has_frames else []), *(f"{n}." for n in range(1, len(rows[0])))]
    what = "The most probable tokens at each step, after the tokens written before"
    if has_frames:
        what = "The most probable outputs in the frame of each token"
    return Table(heads[: len(rows[0])], rows, what)


def _drawn(found: Reading, picture: Array | None, name: str, shown: str) -> list[Part]:
    """The overview, then each layer, unless one layer with one head is all there is."""
    if not len(found.map_LhT) or not found.written:
        return []
    kind = "svg" if picture is None else "png"
    caption = "A row per written token, from the top; a column per token of the source"
    if found.frames is not None:
        caption = "The frame of each token in the most probable alignment"
    elif picture is not None:
        caption = "Mean over layers and heads, and each layer: the largest patch is framed"
    parts: list[Part] = [
        Figure(overview(found, picture), f"attention of {shown}", caption, wide=True, name=f"{name}-attention.{kind}")
    ]
    if found.frames is not None or found.map_LhT.shape[:2] == (1, 1):
        return parts
    for layer in range(len(found.map_LhT)):
        title = f"Layer {layer + 1} of {len(found.map_LhT)}"
        file = f"{name}-layer{layer + 1}.{kind}"
        parts.append(Figure(layer_figure(found, picture, layer), f"{title}, of {shown}", title, wide=True, name=file))
    return parts
