"""Predict on many image files, in one process or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vitral.errors import UserError
from vitral.predictor import Predictor, decode_image
from vitral.run.command_options import PredictOptions
from vitral.run.inference_inputs import load_used
from vitral.training.metrics_log import console_logging

Answer = dict[str, Any]


def predictions(model: str, paths: Sequence[str], options: PredictOptions) -> Iterator[Answer]:
    """What `vitral predict` prints, image by image. Whatever is wrong with the model is raised at once, an image
    that cannot be read has an "error" instead of predictions."""
    console_logging()
    folder = None if options.draw is None else Path(options.draw).expanduser()
    if folder is not None:
        _require_empty(folder)
    if options.engine == "ray":
        from vitral.run.ray_map import alone, auto_device, cut, map_on_cluster

        predictor = _opened(model, alone(options, "cpu"))
        device = auto_device(predictor, options.device)
        work = partial(_work, model, options)
        rows = map_on_cluster(work, cut(paths, options.batch_size), device, options.ray.workers)
    else:
        predictor = _opened(model, options)
        rows = _answers(predictor, options, paths)
    return rows if folder is None else _drawing(rows, predictor, _made(folder))


def _opened(model: str, options: PredictOptions) -> Predictor:
    predictor = load_used(model, options)
    predictor.require_answers()
    if options.draw is not None:
        predictor.task.require_places("draw", options.draw)
    if "topk" in options.model_fields_set:
        predictor.task.refuse_topk(options.topk)
    if options.threshold is not None:
        predictor.task = predictor.task.at_threshold(options.threshold)
    return predictor


def _require_empty(folder: Path) -> None:
    """Raise UserError for a place where something is that a new folder would mix with."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("here are other files", where="draw", got=folder, expected="a new or empty folder")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("this folder cannot be made", where="draw", got=folder, hint=str(error)) from None
    return folder


def _drawing(rows: Iterator[Answer], predictor: Predictor, folder: Path) -> Iterator[Answer]:
    """The same answers, each drawn on its image as a PNG in the folder: `NUMBER-NAME.png`."""
    spec = predictor.config.preprocessing.model_copy(update={"channels": 3})
    for number, row in enumerate(rows, 1):
        if "error" not in row:
            pixels_HWC = decode_image(row["image"], spec).permute(1, 2, 0).numpy()
            picture = Image.fromarray(predictor.task.drawn(pixels_HWC, row))
            picture.save(folder / f"{number:05d}-{Path(row['image']).stem[:100]}.png")
        yield row


def _work(model: str, options: PredictOptions, device: str) -> Callable[[Sequence[str]], Iterator[Answer]]:
    """Open the model for all images in a process of a cluster, with the device that it computes on."""
    from vitral.run.ray_map import alone

    options = alone(options, device)
    return partial(_answers, _opened(model, options), options)


def _answers(predictor: Predictor, options: PredictOptions, paths: Sequence[str]) -> Iterator[Answer]:
    topk = options.topk if "topk" in options.model_fields_set else None
    return predictor.predict(paths, topk, options.batch_size, stream=True, tolerant=True)
