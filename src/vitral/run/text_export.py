"""`vitral export` for a model that writes text: what is compared, and where the folder goes."""

from __future__ import annotations

from pathlib import Path

from vitral.data.dataset import spaced
from vitral.errors import UserError
from vitral.export.text_exporter import Sources, TextParity, export_text, random_sources
from vitral.files import read_text
from vitral.run.text_eval import open_data, split_name
from vitral.run.text_options import TextEvalOptions, TextExportOptions
from vitral.text_predictor import TextPredictor, load_text
from vitral.training.metrics_log import console_logging, log
from vitral.weights.find_model import find_model
from vitral.weights.folder import CARD, free_place
from vitral.weights.text_kind import find_text_export


def export_text_model(model: str, options: TextExportOptions) -> tuple[Path, list[str], TextParity]:
    """The folder of the export, its files, and how it compares with the model. Raises UserError for an export in place
    of a model, BeyondLimit where the texts differ; nothing is written then."""
    console_logging()
    if find_text_export(model) is not None:
        raise UserError("this is an export already", where=model, hint="Take the model folder that it was made from.")
    out = free_place(options.out, options.overwrite)
    predictor = load_text(model, "cpu")
    card = find_model(model) / CARD
    text = read_text(card) if card.is_file() else f"# {predictor.config.name}\n"
    sources = _sources(predictor, options)
    files, parity = export_text(predictor, out, text, sources, options.max_difference, options.min_agreement)
    return out, files, parity


def _sources(predictor: TextPredictor, options: TextExportOptions) -> Sources:
    """Evenly spaced samples of the configured split, or of the training run's; random ones where these are gone."""
    try:
        _, dataset = open_data(predictor, TextEvalOptions(data=options.data))
    except UserError as error:
        if options.data is not None:
            raise
        log.info("comparing on random sources: %s", error.what)
        return random_sources(predictor, options.samples)
    name = split_name(dataset, options.split)
    split = dataset.splits[name]
    if split.images is not None:
        images = [split.images.read(place).permute(1, 2, 0).numpy() for place in spaced(len(split), options.samples)]
        shaped = [each[..., 0] if each.shape[2] == 1 else each for each in images]
        return Sources(f"{name} images of {dataset.name}", shaped)
    assert split.sources is not None
    texts = [text for text in split.sources if predictor.reads(text)]
    if not texts:
        raise UserError("the model reads none of these texts", where=dataset.name, got=f"{len(split)} texts")
    return Sources(f"{name} texts of {dataset.name}", [texts[place] for place in spaced(len(texts), options.samples)])
