"""Predictions for many image files, by one process or by those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from vitral.run.images import load_used
from vitral.run.options import PredictOptions

Answer = dict[str, Any]


def predictions(model: str, paths: Sequence[str], options: PredictOptions) -> Iterator[Answer]:
    """What `vitral predict` prints, image by image. Whatever is wrong with the model is raised at once, what is wrong
    with an image after the answers before it."""
    if options.engine != "ray":
        return _opened(model, options)(paths)
    from vitral.run.spread import alone, cut, spread

    _opened(model, alone(options, "cpu"))
    batches = cut(paths, options.batch_size)
    return spread(partial(_work, model, options), batches, options.device, options.ray.workers)


def _opened(model: str, options: PredictOptions) -> Callable[[Sequence[str]], Iterator[Answer]]:
    predictor = load_used(model, options)
    predictor.require_head()
    return lambda paths: predictor.predictions(paths, options.topk, options.batch_size)


def _work(model: str, options: PredictOptions, device: str) -> Callable[[Sequence[str]], Iterator[Answer]]:
    """In a process of the cluster."""
    from vitral.run.spread import alone

    return _opened(model, alone(options, device))
