"""Evaluate a model that writes text, alone or against another one on the same samples."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from vitral.config import build
from vitral.data.text.batches import split_ids
from vitral.data.text.check import check_text
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset
from vitral.data.text.sources import open_text
from vitral.errors import UserError
from vitral.run.check import finding_line
from vitral.run.evaluate import Measured
from vitral.run.text_config import TextData
from vitral.run.text_data import open_store, text_subject
from vitral.run.text_options import TextEvalOptions
from vitral.tasks.task import Subject
from vitral.tasks.text import compared
from vitral.text_predictor import TextPredictor, load_text
from vitral.training.metrics_log import console_logging, log
from vitral.weights.find_model import find_model
from vitral.weights.text_kind import is_text_model

_OF_PROVENANCE = {"name", "fingerprint", "counts", "notes"}


def measure_text(model: str, options: TextEvalOptions) -> Measured:
    """Return the output of `vitral eval --json` for a model that writes text; keys are those of images where they mean
    the same. What a run's check finds in the split is logged. Raises UserError for data of the other kind of source,
    for an unknown split, and for a second model that cannot be compared."""
    console_logging()
    predictor = load_text(model, options.device)
    task, second = predictor.task, options.compare
    evaluators = task.evaluators_of(options.eval)
    other = None if second is None else _second(second, options.device, evaluators)
    data, dataset = open_data(predictor, options)
    name = split_name(dataset, options.split)
    subject = subject_of(model, predictor, data, dataset, name, options)
    theirs = None
    if second is not None and other is not None:
        theirs = subject_of(second, other, data_of(other, data), dataset, name, options)
    found = task.evaluate(subject, evaluators)
    result: dict[str, Any] = {
        "model": model, "data": dataset.name, "task": task.name, "split": name, "splits": list(dataset.splits),
        "primary": found.primary.row(), **found.values, "skipped": [],
    }  # fmt: skip
    if theirs is not None:
        own, others = (task.per_sample(*each.outputs()) for each in (subject, theirs))
        result["compare"] = {"model": second, **task.compare(own, others, compared(found))}
    return Measured(task, found, result)


def _second(model: str, device: str, evaluators: Collection[str]) -> TextPredictor:
    """The model to compare with. Raises UserError for one that writes no text, and without metrics to compare."""
    if not is_text_model(model):
        find_model(model)  # raises UserError where there is none at all
        raise UserError("this model writes no text", where="compare", got=model, expected="a model that writes text")
    if not {"clean", "translation"} & set(evaluators):
        raise UserError(
            "nothing to compare by: two models are compared by the texts that they write", where="compare",
            got=f"eval: {', '.join(evaluators)}", expected="eval.clean={} or eval.translation={}",
        )  # fmt: skip
    return load_text(model, device)


def data_of(predictor: TextPredictor, given: TextSource | None) -> TextData:
    """The given texts, or those of the training run, with lengths and the rest as in that run. Raises UserError where
    neither is known."""
    kept = predictor.config.provenance.get("data") or {}
    keys = {key: value for key, value in kept.items() if key not in _OF_PROVENANCE}
    known = build(TextData, keys, where=f"{predictor.config.name}: recorded data") if keys else None
    if given is not None:
        base = {} if known is None else {k: v for k, v in keys.items() if k not in TextSource.model_fields}
        own = given.model_dump(exclude_unset=True, include=set(TextSource.model_fields))
        known = build(TextData, {**base, **own})
    if known is None:
        hint = "Name the texts: data.source=pairs data.path=FILE"
        raise UserError("this model doesn't say what it was trained on", where=predictor.config.name, hint=hint)
    longest = predictor.config.max_source
    return known if longest is None else known.model_copy(update={"max_source": longest})


def open_data(predictor: TextPredictor, options: TextEvalOptions) -> tuple[TextData, TextDataset]:
    """The given data, or those of the training run. Raises UserError where they have no texts of this kind."""
    data = data_of(predictor, options.data)
    dataset = open_text(data, data.images())
    _require_kind(predictor, dataset)
    kept = predictor.config.provenance.get("data") or {}
    if options.data is None and dataset.fingerprint != kept.get("fingerprint"):
        log.warning("the data at %s have changed since the training: some may have been trained on", data.path)
    return data, dataset


def _require_kind(predictor: TextPredictor, dataset: TextDataset) -> None:
    if dataset.has_images != predictor.reads_images:
        kinds = ("images", "texts") if dataset.has_images else ("texts", "images")
        raise UserError(f"the data are {kinds[0]}, and this model reads {kinds[1]}", where=predictor.config.name)


def subject_of(
    model: str, predictor: TextPredictor, data: TextData, dataset: TextDataset, name: str, options: TextEvalOptions
) -> Subject:
    """The model, called so in the log, as subject of an evaluation on a split. Raises UserError for sources of the
    other kind, and for texts that are too long."""
    _require_kind(predictor, dataset)
    split, search = dataset.splits[name], predictor.resolve_search(options.search)
    hint = f"{model} was trained on shorter texts: leave longer ones out."
    ids = split_ids(split, predictor.tokenizers, data, hint)
    for finding in check_text(replace(dataset, splits={name: split}), predictor.tokenizers, data):
        log.warning("%s, %s texts: %s", model, name, finding_line(finding))
    spec = predictor.config.preprocessing
    store = None if spec is None else open_store(split, spec, data, predictor.device, exact=True)
    return text_subject(
        predictor.model, name, split, ids, predictor.tokenizers, search, store=store, device=predictor.device,
        most=options.samples, batch_size=options.batch_size,
    )  # fmt: skip


def split_name(dataset: TextDataset, given: str) -> str:
    """The split of this name; auto: test, else val, else train. Raises UserError for one that is not there."""
    name = given if given != "auto" else next(part for part in ("test", "val", "train") if part in dataset.splits)
    if name not in dataset.splits:
        raise UserError("the data have no such split", where="split", got=name, expected=", ".join(dataset.splits))
    return name
