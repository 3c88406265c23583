"""Check a data set before training: classes, names, pixels, duplicates, statistics.

Every image is decoded once (see `scan`); the rules read what was kept. Shape letters: N images of all splits, K
classes, C channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitral.data import check_cache
from vitral.data.check_boxes import annotation_numbers, box_findings
from vitral.data.class_names import class_name_findings
from vitral.data.config import UNLABELED, DataConfig
from vitral.data.dataset import Array, Dataset, fingerprint
from vitral.data.duplicates import duplicate_findings, leaks
from vitral.data.files import some
from vitral.data.findings import MOST, CheckReport, Finding, Sample, finding, in_order
from vitral.data.label_names import disagreements, flat_folders, joined_labels, shared_labels
from vitral.data.scan import Scan, joined, scan_in_parts
from vitral.data.split_names import split_findings
from vitral.errors import plural, shown

Normalization = tuple[Sequence[float], Sequence[float]]

FEW = 5  # training images of a class
IMBALANCE = 10  # times the smallest class
OUTLIER = 4  # times, or a fraction of, the median size
LONG = 3  # times the median aspect
MIXED = 0.25  # share of the rarer of gray and colored images up to which they are odd ones
FEW_NAMES = 0.01  # share of the images up to which names against labels are a warning: as many are wrong in public sets
SHIFT = 1.0  # of the data's mean after the checkpoint's normalization
SPREAD = (0.4, 2.5)  # of the data's standard deviation after it


def check_dataset(
    dataset: Dataset,
    *,
    workers: int | None = None,
    normalization: Normalization | None = None,
    max_bad: int = 0,
    variant: str = "",
    cache: Path | None = None,
    tick: Callable[[int], None] = lambda count: None,
    texts: bool = False,
) -> CheckReport:
    """All that is wrong or odd with a dataset, as its source gives it (before a validation split is carved).

    normalization: the mean and std of a checkpoint, per channel in [0,1]; the data's own are compared with them. Up to
    `max_bad` damaged images are a warning instead of an error. `workers` threads decode. `cache`: a folder where the
    result is kept; it is taken from there while names, labels, sizes and times of the files, and `variant` (how images
    are decoded, as text), stay the same. Nothing about the data raises; their findings say it. `tick` gets
    how many more images are done. texts: labels are what the images say, no classes; only images are checked, and
    look-alikes are images that say the same.
    """
    key = check_cache.key(dataset, variant) if cache is not None else ""
    report = check_cache.load(cache, key) if cache is not None else None
    if report is None:
        keep = cache / f"{key}.parts" if cache is not None else None
        scans = {
            name: scan_in_parts(split, dataset.channels, workers, keep, name, tick)
            for name, split in dataset.parts.items()
        }
        report = _examine(dataset, scans, texts)
        if cache is not None and keep is not None:
            check_cache.store_tree(cache, key, report.to_json())
            shutil.rmtree(keep, ignore_errors=True)  # what an interrupted check left; the whole is kept now
    more = _normalization(report, normalization) if normalization is not None else []
    return replace(report, findings=in_order([*report.findings, *more])).with_max_bad(max_bad)


def decoding(data: DataConfig) -> str:
    """Return the keys that change the pixels of a decoded file, as text: the `variant` of a check."""
    return f"background {data.background}, max_pixels {data.max_pixels}, value_range {data.value_range}"


def _examine(dataset: Dataset, scans: dict[str, Scan], texts: bool) -> CheckReport:
    every, (samples, labels) = scans, _samples(dataset)
    has_boxes = dataset.task == "detection"
    has_classes = not texts and not has_boxes and dataset.task != "regression"
    scans = {name: scans[name] for name in dataset.splits}
    labels_N = np.concatenate([split.labels_N for split in dataset.splits.values()])
    split_N = np.repeat(np.arange(len(scans)), list(map(len, dataset.splits.values())))
    scan = joined(list(scans.values()))
    findings = [
        *(_classes(dataset) if has_classes else []),
        *(class_name_findings(dataset.classes) if has_classes or has_boxes else []),
        *(box_findings(dataset, scans, samples) if has_boxes else []),
        *_left_out(dataset),
        *(_names(dataset, samples[: len(labels)], labels) if has_classes else []),
        *duplicate_findings(
            _apart(scan, labels_N) if texts else scan,
            split_N,
            labels_N,
            samples.__getitem__,
            annotation_numbers(dataset) if has_boxes else None,
        ),
        *_images(dataset, scan, joined(list(every.values())).damaged, samples),
        *_unlabeled(every, samples),
    ]
    train = scans["train"]
    return CheckReport(
        name=dataset.name,
        fingerprint=fingerprint(_content(dataset, every)),
        counts={name: len(split) for name, split in dataset.parts.items()},
        findings=in_order(findings),
        damaged={name: found.damaged for name, found in every.items() if found.damaged},
        mean=tuple(round(value, 6) for value in train.mean),
        std=tuple(round(value, 6) for value in train.std),
    )


def _apart(scan: Scan, labels_N: Array) -> Scan:
    """The scan with hashes that differ in half of their bits where the labels differ: short lines of text all look
    alike in a thumbnail, so that only those that say the same are compared."""
    salt_K = np.random.default_rng(0).integers(0, 2**64, int(labels_N.max()) + 1, np.uint64)
    salt_N = salt_K[labels_N]
    return replace(scan, hash_N=scan.hash_N ^ salt_N, windows_NW=scan.windows_NW ^ salt_N[:, None])


def _samples(dataset: Dataset) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """Every sample, split by split, and the names of its classes; at the end those without labels, of no class."""
    samples: list[Sample] = []
    labels: list[tuple[str, ...]] = []
    blank = "no boxes" if dataset.task == "detection" else ""
    for name, split in dataset.parts.items():
        own = [("no label",)] * len(split) if name == UNLABELED else dataset.labels(name)
        labels += own if name != UNLABELED else []
        samples += [
            Sample(name, index, shown(str(each)), " + ".join(mine) or blank)
            for index, (each, mine) in enumerate(zip(split.names, own, strict=True))
        ]
    return samples, labels


def _content(dataset: Dataset, scans: dict[str, Scan]) -> list[bytes]:
    parts = ["\n".join(dataset.classes).encode("utf-8", "surrogatepass")]
    for name, found in scans.items():
        names = "\n".join(map(str, dataset.parts[name].names)).encode("utf-8", "surrogatepass")
        labels = np.ascontiguousarray(dataset.parts[name].labels_N).tobytes()
        boxes = dataset.parts[name].boxes
        parts += [boxes.content()] if boxes is not None else []
        parts += [name.encode(), names, labels, found.digest_N2.astype("<u8").tobytes()]
    return parts


def _classes(dataset: Dataset) -> Iterator[Finding]:
    counts = {name: split.class_counts(len(dataset.classes)) for name, split in dataset.splits.items()}
    train_K, total_K = counts["train"], np.sum(list(counts.values()), axis=0)
    if (train_K > 0).sum() < 2:
        only = ", ".join(_named(dataset, train_K > 0)) or "none"
        text = f"only one class has training images ({only})"
        yield finding("one-class", text, classes=int((train_K > 0).sum()))
    hot_NK = dataset.splits["train"].labels_N
    if hot_NK.ndim == 2 and len(hot_NK) > 1 and hot_NK.shape[1] > 1 and (hot_NK == hot_NK[0]).all():
        text = f"every training image has the same labels ({some(_named(dataset, hot_NK[0])) or 'none'})"
        yield finding("same-labels", text, images=len(hot_NK))
    if empty := _named(dataset, total_K == 0):
        yield finding("empty-class", f"no image of {some(empty)}", classes=len(empty))
    absent = {name: _named(dataset, (count_K == 0) & (total_K > 0)) for name, count_K in counts.items()}
    apart = [f"{name} has none of {some(classes)}" for name, classes in absent.items() if classes]
    if apart:
        yield finding("split-classes", f"the splits hold different classes: {'; '.join(apart)}", splits=len(apart))
    if few := _named(dataset, (train_K > 0) & (train_K < FEW)):
        has = plural(len(few), "class has", "classes have")
        yield finding("small-class", f"{has} fewer than {FEW} training images: {some(few)}", classes=len(few))
    present_K = train_K[train_K > 0]
    if len(present_K) > 1 and present_K.max() >= IMBALANCE * present_K.min():
        ratio = float(present_K.max() / present_K.min())
        big, small = (dataset.classes[train_K.tolist().index(count)] for count in (present_K.max(), present_K.min()))
        text = f"{big} has {ratio:.0f} times as many training images as {small} "
        yield finding("imbalance", text + f"({present_K.max():,} and {present_K.min():,})", ratio=ratio)


def _left_out(dataset: Dataset) -> Iterator[Finding]:
    """Folders with images that no split is made of."""
    if dataset.left_out:
        listed = some([f"{name} ({plural(count, 'image')})" for name, count in dataset.left_out.items()])
        text = f"folders beside {', '.join(dataset.splits)} are not read: {listed}"
        yield finding("left-out", text, folders=len(dataset.left_out), images=sum(dataset.left_out.values()))


def _names(dataset: Dataset, samples: list[Sample], labels: list[tuple[str, ...]]) -> Iterator[Finding]:
    """What names say: of classes and, but for names that the source makes up, of files and folders."""
    if any(split.made_up for split in dataset.splits.values()):
        samples, labels = [], []
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    flat = flat_folders(by_class)
    for name, words in flat.items():
        text = (
            f"the class {name} is a folder of files named after {len(words):,} labels ({some(list(words))}): "
            "data.source=filename reads these"
        )
        yield finding("flat-folder", text, [by_class[name][:1]], labels=len(words), images=len(by_class[name]))
    found = [] if flat else split_findings(dataset.classes, by_class, is_divided=len(dataset.splits) > 1)
    yield from found
    shared = shared_labels(by_class)
    if shared and not flat and not found:
        text = (
            f"the files of every class are named after the same {len(shared):,} labels ({some(shared)}): if these are "
            "the classes, data.source=filename reads them"
        )
        yield finding("flat-folder", text, (), "warning", labels=len(shared))
    for separator, parts in joined_labels(dataset.classes).items():
        text = (
            f"{plural(len(parts), 'class name is', 'class names are')} several in one ({some(parts)}): "
            f"data.label_separator={separator!r} reads them as several labels per image"
        )
        yield finding("label-separator", text, classes=len(parts))
    if wrong := disagreements(samples, dataset.classes, labels):
        first = samples[wrong[0]]
        text = (
            f"{plural(len(wrong), 'image')} named after another class than {'its' if len(wrong) == 1 else 'their'} "
            f"label ({first.name} is labeled {first.label})"
        )
        severity = "warning" if len(wrong) <= FEW_NAMES * len(samples) else "error"
        yield finding("name-label", text, _alone(samples, wrong), severity, images=len(wrong))


def _images(dataset: Dataset, scan: Scan, damaged: Mapping[int, str], samples: list[Sample]) -> Iterator[Finding]:
    """What pixels say of single images. `damaged`: by place, of the unlabeled images too."""

    def odd(code: str, places: Sequence[int], text: str, **numbers: float) -> Iterator[Finding]:
        if len(places):
            groups = _alone(samples, places)
            yield finding(code, f"{plural(len(places), 'image')} {text}", groups, images=len(places), **numbers)

    for place, cause in list(damaged.items())[:1]:
        yield from odd(
            "damaged", list(damaged), f"that cannot be decoded ({samples[place].name}: {cause.splitlines()[0]})"
        )
    yield from odd("constant", np.flatnonzero(scan.constant_N).tolist(), "of one color all over")
    whole_M = np.flatnonzero(scan.size_N2[:, 0] > 0)
    size_M2, gray_M = scan.size_N2[whole_M].astype(float), scan.gray_N[whole_M]
    if len(whole_M) >= 8:
        side_M, aspect_M = np.sqrt(size_M2.prod(1)), np.log(size_M2[:, 1] / size_M2[:, 0])
        typical, middle = float(np.median(side_M)), float(np.median(aspect_M))
        yield from odd(
            "sizes", whole_M[(side_M * OUTLIER < typical) | (side_M > typical * OUTLIER)].tolist(),
            f"more than {OUTLIER} times smaller or larger than usual (sides of about {typical:.0f} pixels; from "
            f"{side_M.min():.0f} to {side_M.max():.0f})", typical=typical,
        )  # fmt: skip
        yield from odd(
            "aspect", whole_M[np.abs(aspect_M - middle) > np.log(LONG)].tolist(),
            f"more than {LONG} times longer or taller than usual (width / height about {np.exp(middle):.2f}): much of "
            "them is cut off or squashed", typical=float(np.exp(middle)),
        )  # fmt: skip
    if len(whole_M) and dataset.channels >= 3 and 0 < min(gray_M.mean(), 1 - gray_M.mean()) <= MIXED:
        rare = bool(gray_M.mean() <= 0.5)
        kinds = ("gray", "colored") if rare else ("colored", "gray")
        places_M = whole_M[gray_M == rare]
        text = f"{kinds[0]} among {len(whole_M) - len(places_M):,} {kinds[1]} ones"
        yield from odd("gray-mix", places_M.tolist(), text)


def _alone(samples: Sequence[Sample], places: Sequence[int]) -> list[list[Sample]]:
    """A group for each of the first images."""
    return [[samples[place]] for place in places[:MOST]]


def _unlabeled(scans: dict[str, Scan], samples: list[Sample]) -> list[Finding]:
    """Unlabeled images that are, or look like, validation or test images; and such of another size than the training
    images, where these have one."""
    if UNLABELED not in scans:
        return []
    evaluated = [found for name, found in scans.items() if name not in ("train", UNLABELED)]
    findings = leaks(evaluated, scans[UNLABELED], [sample for sample in samples if sample.split != "train"])
    train_N2, size_N2 = (scans[name].size_N2 for name in ("train", UNLABELED))
    train_N2 = train_N2[train_N2[:, 0] > 0]
    if len(train_N2) and (train_N2 == train_N2[0]).all():
        odd = np.flatnonzero((size_N2 != train_N2[0]).any(1) & (size_N2[:, 0] > 0)).tolist()
        if odd:
            own, theirs = (" x ".join(map(str, size_2.tolist())) for size_2 in (size_N2[odd[0]], train_N2[0]))
            text = f"{plural(len(odd), 'unlabeled image')} of other size ({own}) than all training images ({theirs})"
            places = [len(samples) - len(size_N2) + place for place in odd[:MOST]]
            findings.append(finding("unlabeled-size", text, _alone(samples, places), images=len(odd)))
    return findings


def _normalization(report: CheckReport, normalization: Normalization) -> list[Finding]:
    """Warns where the data, normalized as the checkpoint does, are far from mean 0 and standard deviation 1."""
    mean_C, std_C = (np.array(values, float) for values in normalization)
    if len(mean_C) != len(report.mean) or not sum(report.counts.values()):
        return []
    shift_C, spread_C = (np.array(report.mean) - mean_C) / std_C, np.array(report.std) / std_C
    if np.abs(shift_C).max() <= SHIFT and SPREAD[0] <= spread_C.min() and spread_C.max() <= SPREAD[1]:
        return []
    worst = float(shift_C[np.abs(shift_C).argmax()])
    text = (
        f"the images (mean {_numbers(report.mean)}, std {_numbers(report.std)}) are far from what the checkpoint "
        f"normalizes with (mean {_numbers(mean_C.tolist())}, std {_numbers(std_C.tolist())}): "
        "inverted, scaled or another kind of image?"
    )
    low, high = float(spread_C.min()), float(spread_C.max())
    return [finding("normalization", text, shift=worst, spread_low=low, spread_high=high)]


def _named(dataset: Dataset, mask_K: Array) -> list[str]:
    return [name for name, chosen in zip(dataset.classes, mask_K.tolist(), strict=True) if chosen]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
