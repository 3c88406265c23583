"""Predict on many image files, in one process or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from vitral.predictor import Predictor
from vitral.run.command_options import PredictOptions
from vitral.run.inference_inputs import load_used

Answer = dict[str, Any]


def predictions(model: str, paths: Sequence[str], options: PredictOptions) -> Iterator[Answer]:
    """What `vitral predict` prints, image by image. Whatever is wrong with the model is raised at once, an image
    that cannot be read has an "error" instead of predictions."""
    if options.engine != "ray":
        return _answers(_opened(model, options), options)(paths)
    from vitral.run.ray_map import alone, auto_device, cut, map_on_cluster

    device = auto_device(_opened(model, alone(options, "cpu")), options.device)
    return map_on_cluster(partial(_work, model, options), cut(paths, options.batch_size), device, options.ray.workers)


def _opened(model: str, options: PredictOptions) -> Predictor:
    predictor = load_used(model, options)
    predictor.require_answers()
    return predictor


def _answers(predictor: Predictor, options: PredictOptions) -> Callable[[Sequence[str]], Iterator[Answer]]:
    return lambda paths: predictor.predict(paths, options.topk, options.batch_size, stream=True, tolerant=True)


def _work(model: str, options: PredictOptions, device: str) -> Callable[[Sequence[str]], Iterator[Answer]]:
    """In a process of the cluster."""
    from vitral.run.ray_map import alone

    return _answers(_opened(model, alone(options, device)), options)
