"""Does adversarial training turn confidences of 0.999 into reasonable ones?

The claim is made of FGM on embeddings (arXiv 1605.07725) and FGSM on pixels (1412.6572). Shape letters: B batch, C
channels, H W height and width, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from vitral.data.dataset import Dataset, Split
from vitral.errors import UserError
from vitral.evaluate.calibration import (
    auroc,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    softmax,
)
from vitral.predictor import Predictor, load
from vitral.report.attack_plots import confidence_curves
from vitral.reproduce.config import ConfidenceOptions, Outside
from vitral.reproduce.runs import (
    base_keys,
    check_run,
    comparison,
    finished,
    mean_and_std,
    open_classes,
    paired,
    settings,
    verdict,
    write_plot,
    write_table,
)
from vitral.run.config import load_config
from vitral.run.inference_inputs import image_batches, split_logits
from vitral.training.metrics_log import console_logging, log

PLOT = "confidence.svg"
SETS = {
    "objective.kind": "the variants are plain, FGM on embeddings and FGSM on pixels.",
    "objective.attack.kind": "the variants are FGM on embeddings and FGSM on pixels.",
    "objective.attack.eps": "eps= is that of FGSM, embedding_eps= that of FGM.",
    "objective.clean_weight": "both attacks train with the mixed loss of their papers.",
}
BINS = 20  # of confidence
VERY = 0.999
_BATCH = 256
_SQUARE = 48  # pixels of a piece of a photograph
Floats = NDArray[np.float64]


class Parts(NamedTuple):
    """The images that fit the temperature, and those that are evaluated."""

    fit: Split
    test: Split


def confidence(options: ConfidenceOptions | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train plain and adversarial variants; returns what table.json holds; draws confidence.svg.

    Plain training has two lengths: the steps of the others, and the steps that cost as many passes through the model.
    Each of "rows" is a variant with the values of `measure`, a list with one for each seed, and their means and
    standard deviations, and `histogram`, the share of images in each of 20 bins of confidence by kind of images.
    "claims" is that of `conclusions`.
    """
    console_logging()
    options = options or ConfidenceOptions()
    recipe, keys = base_keys(options, overrides or {}, SETS, {"objective.label_smoothing": 0.0})
    dataset = open_classes(recipe, keys)
    keys["check.skip"] = True
    variants = _variants(recipe, keys, options)
    for variant in variants.values():
        check_run(recipe, {**keys, **variant}, dataset)
    parts = split_parts(dataset)
    rows: list[dict[str, Any]] = []
    with comparison("confidence", options, overrides or {}) as folder:
        for name, variant in variants.items():
            measured = list[dict[str, Any]]()
            for seed in range(options.seeds):
                log.info("%s, seed %d", name, seed)
                where = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
                finished(where, recipe, {**keys, **variant, "seed": seed}, dataset)
                measured.append(measure(where, parts, options.outside))
            steps = variant.get("train.steps", options.steps)
            rows.append({"variant": name, "steps": steps, **_row(measured)})
    found = {**settings(options), "count": len(parts.test), "rows": rows,
             "claims": conclusions(rows)}  # fmt: skip
    write_table(folder, found)
    kinds = rows[0]["histogram"]
    write_plot(
        folder / PLOT,
        confidence_curves({kind: {row["variant"]: row["histogram"][kind] for row in rows} for kind in kinds}),
    )
    return found


def _variants(recipe: str, keys: Mapping[str, Any], options: ConfidenceOptions) -> dict[str, dict[str, Any]]:
    """The keys of each variant: plain training at both lengths, and both attacks with half the weight on clean images,
    as in their papers."""
    mixed = {"objective.kind": "adversarial", "objective.clean_weight": 0.5}
    attacks = {
        name: {**mixed, "objective.attack.kind": kind, "objective.attack.eps": eps}
        for name, kind, eps in (
            ("FGM on embeddings", "embedding_fgm", options.embedding_eps), ("FGSM on pixels", "fgsm", options.eps),
        )
    }  # fmt: skip
    passes = max(load_config(recipe, {**keys, **attack}).objective.passes for attack in attacks.values())
    longer = {"train.steps": round(passes * options.steps)}
    return {"plain": {}, "plain, equal compute": longer, **attacks}


def split_parts(dataset: Dataset) -> Parts:
    """Validation and test images, or halves of the validation images where there is no test split. Raises UserError
    where there are none."""
    if "val" not in dataset.splits:
        raise UserError(
            "the temperature is fitted on validation images, and there are none", where="data.validation",
            hint="data.validation=own holds a part of train out.",
        )  # fmt: skip
    val = dataset.splits["val"]
    if "test" in dataset.splits:
        return Parts(val, dataset.splits["test"])
    return Parts(val.subset(range(0, len(val), 2)), val.subset(range(1, len(val), 2)))


def measure(run: Path, parts: Parts, outside: Sequence[Outside]) -> dict[str, Any]:
    """Return what the model of a run gives on the test images, without its temperature: `top1`; mean, median and share
    above 0.999 of the confidence, the largest probability; `nll` in nats; `ece` and, with a temperature fitted on other
    images, `ece_scaled`; `temperature`. By kind of images outside the classes: mean confidence and `auroc`, the
    probability that a test image has the higher confidence. `histogram`: shares of images by bin of confidence."""
    predictor = load(run)
    logits_NK, labels_N = split_logits(predictor, parts.test, _BATCH)
    temperature = fit_temperature(*split_logits(predictor, parts.fit, _BATCH))
    scores_NK = softmax(logits_NK)
    inside_N = scores_NK.max(1)
    found: dict[str, Any] = {
        "top1": float((scores_NK.argmax(1) == labels_N).mean()), "confidence": float(inside_N.mean()),
        "median": float(np.median(inside_N)), "above": float((inside_N > VERY).mean()),
        "nll": negative_log_likelihood(logits_NK, labels_N), "ece": expected_calibration_error(scores_NK, labels_N),
        "ece_scaled": expected_calibration_error(softmax(logits_NK / temperature), labels_N),
        "temperature": temperature,
    }  # fmt: skip
    found["histogram"] = {"test images": _histogram(inside_N)}
    for kind in outside:
        outside_N = _confidences(predictor, outside_images(predictor, parts.test, kind))
        found[f"{kind}_confidence"], found[f"{kind}_auroc"] = float(outside_N.mean()), auroc(inside_N, outside_N)
        found["histogram"][kind] = _histogram(outside_N)
    return found


def _histogram(confidence_N: Floats) -> list[float]:
    return (np.histogram(confidence_N, BINS, (0, 1))[0] / len(confidence_N)).tolist()


@torch.inference_mode()
def _confidences(predictor: Predictor, batches: Iterator[Tensor]) -> Floats:
    """The largest probability of each image, float64 [N]."""
    return np.concatenate([softmax(predictor.model(each_BCHW).cpu().numpy()).max(1) for each_BCHW in batches])


def outside_images(predictor: Predictor, test: Split, kind: Outside) -> Iterator[Tensor]:
    """Images of no known class, as many as test images or fewer, in batches [B, C, H, W] as the model takes them: the
    test images by 90 degrees or with black and white exchanged, or squares of 48 pixels of scikit-learn's two
    photographs, at the model's size."""
    if kind == "photos":
        spec = predictor.config.preprocessing
        pieces_NCHW = photo_pieces(len(test), spec.channels, spec.image_size)
        yield from pieces_NCHW.to(predictor.device).split(_BATCH)
        return
    for images_BCHW, _ in image_batches(predictor, test, _BATCH):
        white = 255 if images_BCHW.dtype == torch.uint8 else 1.0
        yield white - images_BCHW if kind == "inverted" else images_BCHW.rot90(dims=(2, 3)).contiguous()


def photo_pieces(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Return at most `count` evenly spaced squares of the photographs, float32 in [0, 1], [N, C, H, W]: RGB, else gray
    in all channels; antialiased."""
    from sklearn.datasets import load_sample_images  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    loaded: Any = load_sample_images()
    squares = list[Tensor]()
    for photo_HWC in loaded.images:
        image_CHW = torch.from_numpy(photo_HWC.copy()).permute(2, 0, 1).float() / 255
        rows = image_CHW.unfold(1, _SQUARE, _SQUARE // 2).unfold(2, _SQUARE, _SQUARE // 2)
        squares.append(rows.permute(1, 2, 0, 3, 4).reshape(-1, 3, _SQUARE, _SQUARE))
    pieces_NCHW = torch.cat(squares)
    places = torch.linspace(0, len(pieces_NCHW) - 1, min(count, len(pieces_NCHW))).round().long()
    pieces_NCHW = interpolate(pieces_NCHW[places], size, mode="bilinear", antialias=True, align_corners=False)
    return pieces_NCHW if channels == 3 else pieces_NCHW.mean(1, keepdim=True).expand(-1, channels, -1, -1).contiguous()


def _row(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of a variant's runs as lists, with means and standard deviations."""
    values = {key: [each[key] for each in measured] for key in measured[0] if key != "histogram"}
    spread = {f"{key}_{name}": value for key, each in values.items() for name, value in mean_and_std(each).items()}
    histogram = {
        kind: np.mean([each["histogram"][kind] for each in measured], axis=0).tolist()
        for kind in measured[0]["histogram"]
    }
    return {**values, **spread, "histogram": histogram}


def conclusions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each attack and each length of plain training, what the attack lowers, seed by seed: `confidence` and
    `ece` on the test images.

    A confidence is reasonable where it is the accuracy, so the claim holds if both are lower by more than the spread of
    the seeds; it does not hold if one is higher by more than that; else it is undecided."""
    plain, attacks = rows[:2], rows[2:]
    found: list[dict[str, Any]] = []
    for row in attacks:
        for other in plain:
            lower = {key: paired(other[key], row[key]) for key in ("confidence", "ece")}
            own = {"variant": row["variant"], "against": other["variant"], **lower}
            found.append({**own, "verdict": verdict([*lower.values()])})
    return found
