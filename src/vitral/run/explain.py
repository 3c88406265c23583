"""Explain a model: choose the figures and write them with a page to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitral.errors import UserError
from vitral.interpret.tokens import require_transformer
from vitral.models.registry import has_input_gradients, token_encoder
from vitral.predictor import Predictor
from vitral.report.sections import Bullets, Figure, Note, Section
from vitral.run.command_options import IMAGE_METHODS, MODEL_METHODS, ExplainOptions
from vitral.run.explain_image import explain_image
from vitral.run.explain_model import explain_model
from vitral.run.inference_inputs import load_used
from vitral.run.page_folder import page_folder
from vitral.training.metrics_log import console_logging, log

PAGE, RECORD = "explain.html", "explain.json"
_MOST = 50  # images of one page
_CAUTION = (
    "Attention is not an explanation. It shows which tokens each layer mixes, not what the prediction depends on: a "
    "patch with high attention may change nothing, and by then a token may hold information from any other patch. "
    "Rollout ignores the MLPs and the values that are mixed. Gradients are valid for this image and this class only. "
    "Where the figures disagree, mask the patch and run the model again."
)
_IMAGE_KEYS = {"token", "layers", "heads", "fuse", "label", "gradients"}


def explain(model: str, images: Sequence[str], options: ExplainOptions) -> dict[str, Any]:
    """Write figures and a page to `options.out`. Returns the output of `vitral explain --json`: `model`, `page`,
    `files`, `images` (prediction and numbers per image), `views` (numbers per view of the model) and `notes`
    on omissions.

    Without images, only views of the model. Nothing is written before everything is drawn. Raises UserError for a
    view that the model does not support, an unreadable image, and a folder that another program wrote.
    """
    console_logging()
    if options.out is None:
        raise UserError("no folder for the figures given", where="out", hint="out=DIR")
    folder = page_folder(options.out, overwrite=options.overwrite, page=PAGE, record=RECORD, command="vitral explain")
    _check(images, options)
    predictor = load_used(model, options)
    predictor.model.requires_grad_(False)  # gradients are of images and attention only
    if predictor.task.has_places and options.label is not None:
        hint = "token=ROW,COLUMN names the patch whose attention is shown; by default it is in the best box."
        raise UserError("a detector's views are not of one class", where="class", got=options.label, hint=hint)
    notes: list[str] = []
    reduction = None
    if (encoder := token_encoder(predictor.model)) is not None:  # only the groups view reduces tokens
        reduction, encoder.reduce = encoder.reduce, None
    if "groups" in options.methods and reduction is None:
        raise UserError("this model has no token reduction", where="methods", got="groups", hint="reduce=tome")
    methods = _methods(predictor, bool(images), options, notes)
    views: list[tuple[Section, dict[str, Any]]] = []
    for number, path in enumerate(images, 1):
        log.info("looking at %s", path)
        views.append(explain_image(predictor, path, number, methods, options, reduction))
    views += explain_model(model, predictor, methods, options, notes)
    if not views:
        raise UserError("this model has no views without an image", where=model, hint=" ".join(notes) or None)
    sections, found_of = [section for section, _ in views], [found for _, found in views]
    figures = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    names = [PAGE, RECORD, *(figure.name for figure in figures)]
    found = {
        "model": model, "page": str(folder.path / PAGE), "files": names,
        "images": found_of[: len(images)],
        "views": {name: value for each in found_of[len(images) :] for name, value in each.items()}, "notes": notes,
    }  # fmt: skip
    left_out = [Section("Left out", [Bullets(notes)])] if notes else []
    folder.write(f"Inside {model}", [Section("", [Note(_CAUTION)]), *sections, *left_out], figures, found)
    return found


def _check(images: Sequence[str], options: ExplainOptions) -> None:
    """Raise UserError for options that are invalid for every model, before one is loaded."""
    if len(images) > _MOST:
        raise UserError("too many images for one page", got=len(images), expected=f"at most {_MOST}")
    if images:
        return
    ignored = sorted(options.model_fields_set & _IMAGE_KEYS)
    of_image = [name for name in options.methods if name in IMAGE_METHODS]
    if of_image or ignored:
        what = ", ".join(of_image) or ", ".join("class" if name == "label" else name for name in ignored)
        raise UserError("this view needs an image", got=what, hint="vitral explain MODEL IMAGE [IMAGE ...]")


def _methods(predictor: Predictor, images: bool, options: ExplainOptions, notes: list[str]) -> set[str]:
    """Return the configured views, or all that this model supports. Raises UserError for an unsupported one."""
    explicit, chosen = bool(options.methods), set[str](options.methods)
    if not explicit:
        chosen = {"cka"} if options.compare is not None else set(MODEL_METHODS) - {"cka"}
        chosen |= set(IMAGE_METHODS if images else ())
    if chosen - {"integrated_gradients", "cka"}:
        require_transformer(predictor.model, "this view" if explicit else "vitral explain")
    if "integrated_gradients" in chosen and not has_input_gradients(predictor.model):
        raise UserError("integrated gradients need gradients by the images, and this model reads codes",
                        where="methods", got=predictor.config.name, expected="a model that reads pixels")  # fmt: skip
    of_class = {"gradient_attention", "integrated_gradients", "lens"}
    if not predictor.classes and of_class & chosen:
        if explicit:
            predictor.require_answers()
        notes.append("This model has no head: gradients of a class and predictions per layer are not available.")
        chosen -= of_class
    if predictor.task.has_places and (gradients := chosen & {"gradient_attention", "integrated_gradients"}):
        if explicit:
            got = ", ".join(sorted(gradients))
            raise UserError("gradients are of the output of one class", where="methods", got=got)
        notes.append("Gradients are of the output of one class, which a detector has not.")
        chosen -= gradients
    if not predictor.task.has_classes and "lens" in chosen:
        if explicit:
            raise UserError("the logit lens needs probabilities of classes", where="methods", got=predictor.task.name)
        chosen.remove("lens")
    if "distance" in chosen and not explicit and "data" not in options.model_fields_set:
        notes.append("Attention distance needs several images: add data=FOLDER")
        chosen.remove("distance")
    return chosen
