"""Compare an export with its model on the same images, and measure the speed of both.

Shape letters: B batch, C channels, H W height and width, h w those of the model, S classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vitral.config import Config
from vitral.data.decode import as_image
from vitral.data.resize import fit_image
from vitral.engines import Engine, logits_of
from vitral.errors import RunFailed, UserError
from vitral.export.package import resized_sides
from vitral.weights.folder import FolderConfig

MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": None, "int8": None}
MIN_AGREEMENT = {"float32": 1.0, "bfloat16": 0.95, "int8": 0.95}
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "int8": 0.95}
NUMBERS = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.2}  # of outputs without classes, in standard deviations
# float32 itself is as far as that from float64, so large logits cannot agree better.
OF_LARGEST = 1e-4
_ROUNDS, _BATCH = 7, 8


class BeyondLimit(RunFailed):
    """An export that is not the model: exit code 3, and nothing is left of it."""

    exit_code = 3


class Likeness(Config):
    """How far an engine is from the eager float32 model; differences are absolute, of logits.

    max_difference: of all that was compared: end to end, from the image as it is read, and behind_resize, of images
    that need none (without a resize in the graph the two are equal). largest_logit: of the model's, by its absolute
    value, both in the task's units (`Task.comparable`). agreement: share of equal answers: of images with the same
    likeliest class, or of boxes; None without either; then features stand for logits, and cosine is that of an image's
    features with the model's, on average. answers: more numbers of the task.
    """

    images: int
    source: str
    max_difference: float
    behind_resize: float
    largest_logit: float
    agreement: float | None
    cosine: float | None
    answers: dict[str, float] = Field(default_factory=dict[str, float])


class Parity(Likeness):
    """The report of a comparison: also of speed.

    speedup: time of the eager model (with its resize, where the graph has one) over that of the export, for batches of
    `batch` images of the model's size: median of `rounds` that take turns; speedup_range: their quartiles.
    """

    batch: int
    rounds: int
    speedup: float
    speedup_range: tuple[float, float]


def compare(
    reference: Callable[[Tensor], Tensor], engine: Engine, config: FolderConfig, images: Sequence[Tensor], source: str
) -> Parity:
    """Both on uint8 images [C, H, W] of any sizes. reference: logits of [B, C, h, w] in [0,1]."""
    spec, fitted = config.preprocessing, [fit(image, config) for image in images]
    mine_NS = outputs_of(reference, fitted)
    if engine.takes == "resized":
        theirs_NS, behind = outputs_of(engine.logits, fitted), None
    else:
        theirs_NS = torch.cat([logits_of(engine, spec, [image]) for image in images])
        own = [_own_size(image, config) for image in images[:8]]
        comparable = config.make_task().comparable
        pairs = [(_of(reference, [fit(each, config)]), logits_of(engine, spec, [each])) for each in own]
        behind = max(_apart(comparable(mine), comparable(theirs)) for mine, theirs in pairs)
    likeness = compare_outputs(mine_NS, theirs_NS, config, source, behind)
    batch = [_own_size(image, config) for image in (list(images) * _BATCH)[:_BATCH]]
    eager_s, theirs_s = take_turns(
        [lambda: _of(reference, [fit(image, config) for image in batch]), lambda: logits_of(engine, spec, batch)],
        _ROUNDS,
    )
    low, middle, high = np.quantile(np.divide(eager_s, theirs_s), [0.25, 0.5, 0.75]).round(3).tolist()
    return Parity(**likeness.model_dump(), batch=len(batch), rounds=_ROUNDS, speedup=middle, speedup_range=(low, high))


def compare_outputs(
    mine_NS: Tensor, theirs_NS: Tensor, config: FolderConfig, source: str, behind_resize: float | None = None
) -> Likeness:
    """Of the logits of N images by the model and by an engine."""
    task = config.make_task()
    answers = task.parity(mine_NS, theirs_NS)
    mine_NS, theirs_NS = task.comparable(mine_NS), task.comparable(theirs_NS)
    difference = _apart(mine_NS, theirs_NS)
    return Likeness(
        images=len(mine_NS), source=source, max_difference=max(difference, behind_resize or 0.0),
        behind_resize=difference if behind_resize is None else behind_resize, largest_logit=float(mine_NS.abs().max()),
        agreement=answers.pop("agreement", None),
        cosine=None if task.has_head else float(torch.cosine_similarity(mine_NS.double(), theirs_NS.double()).mean()),
        answers=answers,
    )  # fmt: skip


def outputs_of(function: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Tensor:
    """What a function of [B, C, h, w] makes of N images [C, h, w], some at a time."""
    return torch.cat([_of(function, images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)])


def check(likeness: Likeness, precision: str, max_difference: float | None, min_agreement: float | None) -> None:
    """Raises BeyondLimit where the report is beyond the limits; None means those of the precision."""
    is_number = likeness.agreement is None and likeness.cosine is None
    most, found = max_difference or (NUMBERS if is_number else MAX_DIFFERENCE)[precision], likeness.max_difference
    if is_number and min_agreement is not None:
        raise UserError("numbers have no agreement of classes", where="min_agreement", hint="Set max_difference.")
    if most is not None and max_difference is None:
        most = max(most, OF_LARGEST * likeness.largest_logit)
    shares = MIN_COSINE if likeness.agreement is None else MIN_AGREEMENT
    least = shares[precision] if min_agreement is None else min_agreement
    if not np.isfinite(found) or (most is not None and not found <= most):
        limit = f", more than {most:.2g}" if most is not None else ""
        raise BeyondLimit(f"the export differs from the model by {found:.1e}{limit}")
    if likeness.agreement is not None and likeness.agreement < least:
        raise BeyondLimit(
            f"the export's answers are the model's to {100 * likeness.agreement:.1f} % on {likeness.images} images, "
            f"less than {100 * least:g} %"
        )
    if likeness.cosine is not None and not likeness.cosine >= least:
        raise BeyondLimit(
            f"the cosine of the export's features with the model's is {likeness.cosine:.4f} on average of "
            f"{likeness.images} images, less than {least:g}"
        )


def take_turns(
    functions: Sequence[Callable[[], object]], rounds: int, most_seconds: float = float("inf")
) -> list[list[float]]:
    """Seconds of each function in each round, in which each runs once; a first round only warms up. After
    `most_seconds` no round but the third begins."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - start > most_seconds:
            break
        for function, found in zip(functions, times, strict=True):
            before = time.perf_counter()
            function()
            found.append(time.perf_counter() - before)
    return times


def builtin_images(count: int, config: FolderConfig) -> list[Tensor]:
    """Cut-outs of scikit-learn's two photographs, uint8 [C, H, W], of the model's own and of six other sizes."""
    from sklearn.datasets import load_sample_images

    photos: Any = load_sample_images()
    draw = np.random.default_rng(0)
    sizes = [resized_sides(config), (31, 17), (200, 150), (64, 64), (150, 200), (375, 500), (9, 120)]
    found: list[Tensor] = []
    for number in range(count):
        photo_HWC = photos.images[number % 2]
        height, width = np.minimum(sizes[number % len(sizes)], photo_HWC.shape[:2])
        top, left = draw.integers(0, np.subtract(photo_HWC.shape[:2], (height, width)) + 1)
        cut_HWC = np.ascontiguousarray(photo_HWC[top : top + height, left : left + width])
        found.append(as_image(cut_HWC, config.preprocessing.channels))
    return found


def fit(image_CHW: Tensor, config: FolderConfig) -> Tensor:
    """An image as the model takes it, float32 in [0,1]."""
    return fit_image(image_CHW, config.preprocessing.image_size, config.preprocessing)


def _own_size(image_CHW: Tensor, config: FolderConfig) -> Tensor:
    """The image at the size that needs no scaling."""
    size = resized_sides(config)
    whole = config.preprocessing.model_copy(update={"crop_pct": 1.0})
    return (fit_image(image_CHW, size, whole) * 255).round().byte()


def _of(function: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Tensor:
    return function(torch.stack(list(images))).float().cpu()


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
