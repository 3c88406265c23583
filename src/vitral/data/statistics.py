"""Statistics of a data set: images, classes and sizes per split, mean and standard deviation of the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vitral.data.box_ops import area
from vitral.data.boxes import Boxes
from vitral.data.damaged_images import without_damage
from vitral.data.dataset import Dataset, spaced
from vitral.data.findings import Sample
from vitral.data.regression_targets import refuse_numbers
from vitral.data.scan import scan

_SMALL, _MEDIUM = 32**2, 96**2  # square pixels: COCO's limits


def dataset_stats(
    dataset: Dataset, workers: int | None = None, max_bad: int | None = None
) -> tuple[dict[str, Any], Dataset]:
    """Each split's images, images that can't be decoded, images per class, sizes ("height x width", the most frequent
    first), per channel the mean and std over all its pixels at their own size, in [0,1], and of boxes their number, per
    class, and by size (COCO's limits, 32 and 96 pixels squared); and the dataset without the damaged images, which are
    counted. Decodes each image once. Raises UserError for more than `max_bad` damaged images (None: however many), for
    numbers instead of classes, and as `without_damage` does."""
    refuse_numbers(dataset)
    scans = {name: scan(split, dataset.channels, workers) for name, split in dataset.splits.items()}
    damage = {name: found.damaged for name, found in scans.items()}
    dataset = without_damage(dataset, damage, sum(map(len, damage.values())) if max_bad is None else max_bad)
    splits: dict[str, Any] = {}
    for name, split in dataset.splits.items():
        found = scans[name]
        sizes = Counter(f"{height} x {width}" for height, width in found.size_N2.tolist() if height)
        splits[name] = {
            "images": len(split),
            "damaged": len(found.damaged),
            "classes": dict(zip(dataset.classes, split.class_counts(len(dataset.classes)).tolist(), strict=True)),
            "sizes": dict(sizes.most_common()),
            "mean": [round(value, 6) for value in found.mean],
            "std": [round(value, 6) for value in found.std],
        }
        if split.boxes is not None:
            splits[name]["boxes"] = _box_stats(split.boxes, dataset.classes)
    stats = {"name": dataset.name, "classes": list(dataset.classes), "channels": dataset.channels, "splits": splits}
    return stats, dataset


def _box_stats(boxes: Boxes, classes: Sequence[str]) -> dict[str, Any]:
    """Counts of boxes: all, of crowds, per class and per size; images without boxes; the most on one image."""
    area_X = area(torch.from_numpy(boxes.boxes_X4)).numpy()
    small, medium = int((area_X < _SMALL).sum()), int((area_X < _MEDIUM).sum())
    return {
        "count": len(area_X), "crowds": int(boxes.crowd_X.sum()), "images_without": int((boxes.counts_N == 0).sum()),
        "most": int(boxes.counts_N.max(initial=0)),
        "sizes": {"small": small, "medium": medium - small, "large": len(area_X) - medium},
        "classes": dict(zip(classes, np.bincount(boxes.label_X, minlength=len(classes)).tolist(), strict=True)),
    }  # fmt: skip


def box_sheet(dataset: Dataset, most: int) -> list[Sample]:
    """Up to `most` images with boxes, evenly spaced over each split's; none of data without boxes."""
    samples: list[Sample] = []
    for name, split in dataset.splits.items():
        places = [] if split.boxes is None else np.flatnonzero(split.boxes.counts_N).tolist()
        labels = [" + ".join(own) for own in dataset.labels(name)]
        chosen = (places[each] for each in spaced(len(places), max(1, most // len(dataset.splits))))
        samples += [Sample(name, place, str(split.names[place]), labels[place]) for place in chosen]
    return samples


def class_sheets(dataset: Dataset, most: int) -> dict[str, list[Sample]]:
    """Up to `most` images of each class, evenly spaced: of train, or of the first split that has the class."""
    sheets: dict[str, list[Sample]] = {}
    for label, name in enumerate(dataset.classes):
        for split_name, split in dataset.splits.items():
            has_N = split.labels_N[:, label] if split.multi_label else split.labels_N == label
            own = np.flatnonzero(has_N).tolist()
            if own:
                places = [own[place] for place in spaced(len(own), most)]
                sheets[name] = [Sample(split_name, place, str(split.names[place]), name) for place in places]
                break
    return sheets
