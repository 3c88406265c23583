"""The check of a dataset before a second of training is spent on it: classes, names, pixels, duplicates, statistics.

Every image is decoded once (see `scan`); the rules read what was kept. Shape letters: N images of all splits, K
classes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitral.data import check_cache
from vitral.data.class_names import class_name_findings
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, fingerprint
from vitral.data.duplicates import MOST, Array, duplicate_findings, finding
from vitral.data.files import some
from vitral.data.findings import CheckReport, Finding, Sample, in_order
from vitral.data.label_names import disagreements, flat_folders, joined_labels, shared_labels
from vitral.data.scan import Scan, scan
from vitral.data.scan_parts import forget_parts, scan_in_parts
from vitral.data.split_names import split_findings
from vitral.errors import plural, shown

Normalisation = tuple[Sequence[float], Sequence[float]]

FEW = 5  # training images of a class
IMBALANCE = 10  # times the smallest class
OUTLIER = 4  # times, or a fraction of, the median size
LONG = 3  # times the median aspect
MIXED = 0.25  # share of the rarer of grey and coloured images up to which they are odd ones
FEW_NAMES = 0.01  # share of the images up to which names against labels are a warning: as many are wrong in public sets
SHIFT = 1.0  # of the data's mean after the checkpoint's normalisation
SPREAD = (0.4, 2.5)  # of the data's standard deviation after it


def check_dataset(
    dataset: Dataset,
    *,
    workers: int | None = None,
    normalisation: Normalisation | None = None,
    max_bad: int = 0,
    variant: str = "",
    cache: Path | None = None,
    tick: Callable[[int], None] = lambda count: None,
) -> CheckReport:
    """All that is wrong or odd with a dataset, as its source gives it (before a validation split is carved).

    normalisation: the mean and std of a checkpoint, per channel in [0,1]; the data's own are compared with them. Up to
    `max_bad` damaged images are a warning instead of an error. `workers` threads decode. `cache`: a folder where the
    result is kept; it is taken from there while names, labels, sizes and times of the files, and `variant` (how images
    are decoded, in words), stay the same. Nothing about the data raises; their findings say it. `tick` is told
    how many more images are done.
    """
    key = check_cache.key(dataset, variant) if cache is not None else ""
    report = check_cache.load(cache, key) if cache is not None else None
    if report is None:
        keep = cache / f"{key}.parts" if cache is not None else None
        report = _examine(
            dataset,
            {
                name: scan_in_parts(split, dataset.channels, workers, keep, name, scan, tick)
                for name, split in dataset.splits.items()
            },
        )
        if cache is not None and keep is not None:
            check_cache.store(cache, key, report)
            forget_parts(keep)
    more = _normalisation(report, normalisation) if normalisation is not None else []
    return replace(report, findings=in_order([*report.findings, *more])).with_max_bad(max_bad)


def decoding(data: DataConfig) -> str:
    """In words, the keys that change what pixels a file gives: the `variant` of a check."""
    return f"background {data.background}, max_pixels {data.max_pixels}, value_range {data.value_range}"


def _examine(dataset: Dataset, scans: dict[str, Scan]) -> CheckReport:
    samples, labels = _samples(dataset)
    has_classes = dataset.task != "regression"
    labels_N = np.concatenate([split.labels_N for split in dataset.splits.values()])
    whole = [place for place, size in enumerate(np.concatenate([s.size_N2 for s in scans.values()])) if size[0] > 0]
    findings = [
        *(_classes(dataset) if has_classes else []),
        *(class_name_findings(dataset.classes) if has_classes else []),
        *_left_out(dataset),
        *(_names(dataset, samples, labels) if has_classes else []),
        *_damaged(scans, samples),
        *duplicate_findings(scans, labels_N, samples.__getitem__),
        *_constant(scans, samples),
        *_shapes(scans, samples, whole),
        *_grey(dataset, scans, samples, whole),
    ]
    train = scans["train"]
    return CheckReport(
        name=dataset.name,
        fingerprint=fingerprint(_content(dataset, scans)),
        counts={name: len(split) for name, split in dataset.splits.items()},
        findings=in_order(findings),
        damaged={name: found.damaged for name, found in scans.items() if found.damaged},
        mean=tuple(round(value, 6) for value in train.mean),
        std=tuple(round(value, 6) for value in train.std),
    )


def _samples(dataset: Dataset) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """Every sample, split by split, and the names of its classes."""
    samples: list[Sample] = []
    labels: list[tuple[str, ...]] = []
    for name, split in dataset.splits.items():
        if split.task == "regression":
            pairs = [zip(dataset.classes, row_K, strict=True) for row_K in split.labels_N.tolist()]
            own = [tuple(f"{column} {value:g}" for column, value in row) for row in pairs]
        elif split.labels_N.ndim == 2:
            own = [tuple(dataset.classes[k] for k in np.flatnonzero(row_K)) for row_K in split.labels_N]
        else:
            own = [(dataset.classes[label],) for label in split.labels_N.tolist()]
        labels += own
        samples += [
            Sample(name, index, shown(str(each)), " + ".join(mine))
            for index, (each, mine) in enumerate(zip(split.names, own, strict=True))
        ]
    return samples, labels


def _content(dataset: Dataset, scans: dict[str, Scan]) -> list[bytes]:
    parts = ["\n".join(dataset.classes).encode("utf-8", "surrogatepass")]
    for name, found in scans.items():
        names = "\n".join(map(str, dataset.splits[name].names)).encode("utf-8", "surrogatepass")
        labels = np.ascontiguousarray(dataset.splits[name].labels_N).tobytes()
        parts += [name.encode(), names, labels, found.digest_N2.astype("<u8").tobytes()]
    return parts


def _classes(dataset: Dataset) -> list[Finding]:
    found: list[Finding] = []
    counts = {name: _class_counts(split.labels_N, len(dataset.classes)) for name, split in dataset.splits.items()}
    train_K, total_K = counts["train"], np.sum(list(counts.values()), axis=0)
    if (train_K > 0).sum() < 2:
        only = ", ".join(_named(dataset, train_K > 0)) or "none"
        found.append(
            finding("one-class", f"only one class has training images ({only})", [], classes=int((train_K > 0).sum()))
        )
    hot_NK = dataset.splits["train"].labels_N
    if hot_NK.ndim == 2 and len(hot_NK) > 1 and hot_NK.shape[1] > 1 and (hot_NK == hot_NK[0]).all():
        text = f"every training image has the same labels ({some(_named(dataset, hot_NK[0])) or 'none'})"
        found.append(finding("same-labels", text, [], images=len(hot_NK)))
    empty = _named(dataset, total_K == 0)
    if empty:
        found.append(finding("empty-class", f"no image of {some(empty)}", [], classes=len(empty)))
    apart = [
        f"{name} has none of {some(_named(dataset, (count_K == 0) & (total_K > 0)))}"
        for name, count_K in counts.items()
        if ((count_K == 0) & (total_K > 0)).any()
    ]
    if apart:
        found.append(
            finding("split-classes", f"the splits hold different classes: {'; '.join(apart)}", [], splits=len(apart))
        )
    few = _named(dataset, (train_K > 0) & (train_K < FEW))
    if few:
        has = "class has" if len(few) == 1 else "classes have"
        text = f"{len(few):,} {has} fewer than {FEW} training images: {some(few)}"
        found.append(finding("small-class", text, [], classes=len(few)))
    present_K = train_K[train_K > 0]
    if len(present_K) > 1 and present_K.max() >= IMBALANCE * present_K.min():
        ratio = float(present_K.max() / present_K.min())
        big, small = (
            dataset.classes[int(train_K.argmax())],
            dataset.classes[int(np.where(train_K > 0, train_K, np.inf).argmin())],
        )
        both = f"{present_K.max():,} and {present_K.min():,}"
        text = f"{big} has {ratio:.0f} times as many training images as {small} ({both})"
        found.append(finding("imbalance", text, [], ratio=ratio))
    return found


def _left_out(dataset: Dataset) -> list[Finding]:
    """Folders with images that no split is made of."""
    if not dataset.left_out:
        return []
    listed = some([f"{name} ({plural(count, 'image')})" for name, count in dataset.left_out.items()])
    text = f"folders beside {', '.join(dataset.splits)} are not read: {listed}"
    return [finding("left-out", text, [], folders=len(dataset.left_out), images=sum(dataset.left_out.values()))]


def _names(dataset: Dataset, samples: list[Sample], labels: list[tuple[str, ...]]) -> list[Finding]:
    """What names say: of classes and, but for names that the source makes up, of files and folders."""
    found: list[Finding] = []
    if any(split.made_up for split in dataset.splits.values()):
        samples, labels = [], []
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    for name, said in flat_folders(by_class).items():
        text = (
            f"the class {name} is a folder of files named after {len(said):,} labels ({some(list(said))}): "
            "data.source=filename reads these"
        )
        found.append(finding("flat-folder", text, [by_class[name][:1]], labels=len(said), images=len(by_class[name])))
    if not found:
        found += split_findings(dataset.classes, by_class, is_divided=len(dataset.splits) > 1)
    shared = shared_labels(by_class)
    if shared and not found:
        text = (
            f"the files of every class are named after the same {len(shared):,} labels ({some(shared)}): if these are "
            "the classes, data.source=filename reads them"
        )
        found.append(Finding("flat-folder", "warning", text, (), {"labels": len(shared)}))
    for separator, joined in joined_labels(dataset.classes).items():
        text = (
            f"{len(joined):,} class {'name is' if len(joined) == 1 else 'names are'} several in one ({some(joined)}): "
            f"data.label_separator={separator!r} reads them as several labels an image"
        )
        found.append(finding("label-separator", text, [], classes=len(joined)))
    wrong = disagreements(samples, dataset.classes, labels)
    if wrong:
        first = samples[wrong[0]]
        own = "its" if len(wrong) == 1 else "their"
        text = (
            f"{plural(len(wrong), 'image')} named after another class than {own} label "
            f"({first.name} is labelled {first.label})"
        )
        groups = tuple((samples[place],) for place in wrong[:MOST])
        severity = "warning" if len(wrong) <= FEW_NAMES * len(samples) else "error"
        found.append(Finding("name-label", severity, text, groups, {"images": len(wrong)}))
    return found


def _damaged(scans: dict[str, Scan], samples: list[Sample]) -> list[Finding]:
    places = _flags(scans, lambda found: np.isin(np.arange(len(found.size_N2)), list(found.damaged)))
    if not places:
        return []
    cause = next(iter(next(found.damaged for found in scans.values() if found.damaged).values()))
    text = f"{plural(len(places), 'image')} that cannot be decoded ({samples[places[0]].name}: {cause.splitlines()[0]})"
    return [finding("damaged", text, [[samples[place]] for place in places], images=len(places))]


def _constant(scans: dict[str, Scan], samples: list[Sample]) -> list[Finding]:
    places = _flags(scans, lambda found: found.constant_N)
    if not places:
        return []
    text = f"{plural(len(places), 'image')} of one colour all over"
    return [finding("constant", text, [[samples[place]] for place in places], images=len(places))]


def _shapes(scans: dict[str, Scan], samples: list[Sample], whole: list[int]) -> list[Finding]:
    if len(whole) < 8:
        return []
    size_M2 = np.concatenate([found.size_N2 for found in scans.values()])[whole].astype(float)
    found: list[Finding] = []
    side_M = np.sqrt(size_M2.prod(1))
    typical = float(np.median(side_M))
    odd = np.flatnonzero((side_M * OUTLIER < typical) | (side_M > typical * OUTLIER))
    if len(odd):
        text = (
            f"{plural(len(odd), 'image')} more than {OUTLIER} times smaller or larger than usual (sides of about "
            f"{typical:.0f} pixels; from {side_M.min():.0f} to {side_M.max():.0f})"
        )
        found.append(
            finding("sizes", text, [[samples[whole[place]]] for place in odd], images=len(odd), typical=typical)
        )
    aspect_M = np.log(size_M2[:, 1] / size_M2[:, 0])
    middle = float(np.median(aspect_M))
    odd = np.flatnonzero(np.abs(aspect_M - middle) > np.log(LONG))
    if len(odd):
        text = (
            f"{plural(len(odd), 'image')} more than {LONG} times longer or taller than usual "
            f"(width / height about {np.exp(middle):.2f}): much of them is cut off or squashed"
        )
        found.append(
            finding(
                "aspect",
                text,
                [[samples[whole[place]]] for place in odd],
                images=len(odd),
                typical=float(np.exp(middle)),
            )
        )
    return found


def _grey(dataset: Dataset, scans: dict[str, Scan], samples: list[Sample], whole: list[int]) -> list[Finding]:
    if not whole or dataset.channels < 3:
        return []
    grey_M = np.concatenate([found.grey_N for found in scans.values()])[whole]
    if not 0 < min(grey_M.mean(), 1 - grey_M.mean()) <= MIXED:
        return []
    rare = bool(grey_M.mean() <= 0.5)
    odd = np.flatnonzero(grey_M == rare)
    kinds = ("grey", "coloured") if rare else ("coloured", "grey")
    text = f"{plural(len(odd), 'image')} {kinds[0]} among {len(grey_M) - len(odd):,} {kinds[1]} ones"
    return [finding("grey-mix", text, [[samples[whole[place]]] for place in odd], images=len(odd))]


def _normalisation(report: CheckReport, normalisation: Normalisation) -> list[Finding]:
    """Warns where the data, normalised as the checkpoint does, are far from mean 0 and standard deviation 1."""
    mean_C, std_C = (np.array(values, float) for values in normalisation)
    if len(mean_C) != len(report.mean) or not sum(report.counts.values()):
        return []
    shift_C, spread_C = (np.array(report.mean) - mean_C) / std_C, np.array(report.std) / std_C
    if np.abs(shift_C).max() <= SHIFT and SPREAD[0] <= spread_C.min() and spread_C.max() <= SPREAD[1]:
        return []
    worst = float(shift_C[np.abs(shift_C).argmax()])
    text = (
        f"the images (mean {_numbers(report.mean)}, std {_numbers(report.std)}) are far from what the checkpoint "
        f"normalises with (mean {_numbers(mean_C.tolist())}, std {_numbers(std_C.tolist())}): "
        "inverted, scaled or another kind of image?"
    )
    return [
        finding(
            "normalisation", text, [], shift=worst, spread_low=float(spread_C.min()), spread_high=float(spread_C.max())
        )
    ]


def _class_counts(labels_N: Array, classes: int) -> Array:
    """Images a class; of several classes an image counts for each."""
    return labels_N.sum(0, dtype=np.int64) if labels_N.ndim == 2 else np.bincount(labels_N, minlength=classes)


def _flags(scans: dict[str, Scan], flag: Any) -> list[int]:
    flags_N: Array = np.concatenate([flag(found) for found in scans.values()])
    return np.flatnonzero(flags_N).tolist()


def _named(dataset: Dataset, mask_K: Array) -> list[str]:
    return [name for name, chosen in zip(dataset.classes, mask_K.tolist(), strict=True) if chosen]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
