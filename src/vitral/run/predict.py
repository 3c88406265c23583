"""Predict on many image files, in one process or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from vitral.predictor import Predictor
from vitral.run.command_options import PredictOptions
from vitral.run.inference_inputs import load_used
from vitral.training.metrics_log import console_logging

Answer = dict[str, Any]


def predictions(model: str, paths: Sequence[str], options: PredictOptions) -> Iterator[Answer]:
    """What `vitral predict` prints, image by image. Whatever is wrong with the model is raised at once, an image
    that cannot be read has an "error" instead of predictions."""
    console_logging()
    if options.engine != "ray":
        return _work(model, options)(paths)
    from vitral.run.ray_map import alone, auto_device, cut, map_on_cluster

    device = auto_device(_opened(model, alone(options, "cpu")), options.device)
    return map_on_cluster(partial(_work, model, options), cut(paths, options.batch_size), device, options.ray.workers)


def _opened(model: str, options: PredictOptions) -> Predictor:
    predictor = load_used(model, options)
    predictor.require_answers()
    return predictor


def _work(
    model: str, options: PredictOptions, device: str | None = None
) -> Callable[[Sequence[str]], Iterator[Answer]]:
    """Open the model for all images; in a process of a cluster with the device that it computes on."""
    if device is not None:
        from vitral.run.ray_map import alone

        options = alone(options, device)
    predictor = _opened(model, options)
    return lambda paths: predictor.predict(paths, options.topk, options.batch_size, stream=True, tolerant=True)
