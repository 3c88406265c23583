"""HTML pages of `vitral check`: findings with their images side by side, and statistics of a dataset per class.

Shape letters: H W height and width, D image channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitral.data.findings import CheckReport, Finding, Sample
from vitral.errors import plural
from vitral.evaluate.metric import Metric, percent
from vitral.report.render import write_page
from vitral.report.sections import Code, Gallery, Note, Part, Picture, Section, Table

# Reads an image as uint8 [H,W] or [H,W,D], or gives None where it cannot be read.
ReadImage = Callable[[Sample], NDArray[Any] | None]

_TITLES = {
    "near": "Look-alikes in one split", "near-across": "Look-alikes across splits (leak)",
    "gray-mix": "Gray among color images",
}  # fmt: skip
_GROUPS = 48  # of one finding that are shown with pictures
_TOGETHER = 6  # pictures of one group
_UNSEEN = (
    "Pairs with different labels come first, then the most similar. This check compares thumbnails of 32 × 32 pixels. "
    "It finds images that were resized, recompressed, tinted, mirrored left to right, or cropped to 80 % or more of "
    "each side (crops up to 100,000 images). It does not find images that were rotated, mirrored and cropped at once, "
    "cropped further, or changed in more places; images under 32 pixels; images without details, such as plain skies; "
    "and other photos of the same object."
)
_NAMES = 1000  # of the images of one finding that are listed


def write_check_page(
    path: str | Path, report: CheckReport, read: ReadImage, sheet: Sequence[Sample] = ()
) -> None:  # fmt: skip
    """Write the findings of a check as one HTML file: each finding with its images, duplicates and look-alikes side by
    side with names, splits and labels. sheet: images with boxes, shown at the end. Raises OSError where the file cannot
    be written."""
    errors = len(report.errors())
    warnings = plural(len(report.findings) - errors, "warning")
    images = ", ".join(f"{count:,} {name}" for name, count in report.counts.items()) or "no"
    counts = f"{'error' if errors == 1 else 'errors'}, {warnings}"
    says = "Training is refused until these errors are fixed, or allowed with check.allow=CODE."
    head: list[Part] = [
        Metric("errors", f"in {images} images", errors, None, False, "integer", counts),
        Note(says if errors else "No errors: training can start."),
    ]
    if report.fingerprint:
        head.append(Note(f"Fingerprint of all images and labels: {report.fingerprint}"))
    elsewhere: dict[Sample, str] = {}
    found = [_finding(finding, read, elsewhere) for finding in report.findings]
    boxes = [Section("Boxes", [Gallery([_picture(sample, read) for sample in sheet])])] if sheet else []
    write_page(path, f"Check of {report.name}", [Section("", head), *found, *boxes])


def write_stats_page(
    path: str | Path, stats: Mapping[str, Any], sheets: Mapping[str, Sequence[Sample]], read: ReadImage
) -> None:
    """Write the result of `dataset_stats` as one HTML file: counts, sizes, mean and std, some images per class."""
    splits: Mapping[str, Mapping[str, Any]] = stats["splits"]
    total = Metric(
        "images", f"in {plural(len(splits), 'split')}, {plural(len(stats['classes']), 'class', 'classes')}",
        sum(each["images"] for each in splits.values()), format="integer", unit="images",
    )  # fmt: skip
    rows = [
        ["Images", *(each["images"] for each in splits.values())],
        ["Height × width", *map(_sizes, splits.values())],
        ["Damaged, left out", *(each["damaged"] for each in splits.values())],
        *(
            [label, *(", ".join(f"{value:.4f}" for value in each[key]) for each in splits.values())]
            for label, key in (("Mean", "mean"), ("Standard deviation", "std"))
        ),
    ]
    overview = Table(["Split", *splits], rows, "Mean and standard deviation: per channel, in [0, 1].")
    counts = [(label, *(each["classes"][label] for each in splits.values())) for label in stats["classes"]]
    galleries = [
        Gallery([_picture(sample, read, sample.split) for sample in samples], label)
        for label, samples in sheets.items()
    ]
    write_page(
        path, f"Statistics of {stats['name']}",
        [
            Section("", [total]), Section("Splits", [overview]),
            Section("Classes", [Table(["Class", *splits], counts, "Images per class and split.")]),
            *_box_sections(stats),
            Section("Images", galleries),
        ],
    )  # fmt: skip


def _box_sections(stats: Mapping[str, Any]) -> list[Section]:
    """Boxes per class, split and size."""
    splits: Mapping[str, Any] = {name: each["boxes"] for name, each in stats["splits"].items() if "boxes" in each}
    if not splits:
        return []
    rows = [
        ["Boxes", *(each["count"] for each in splits.values())],
        ["Images without boxes", *(each["images_without"] for each in splits.values())],
        ["Most on one image", *(each["most"] for each in splits.values())],
        *(
            [f"Boxes, {size}", *(each["sizes"][size] for each in splits.values())]
            for size in ("small", "medium", "large")
        ),
        *([f"Boxes of {label}", *(each["classes"][label] for each in splits.values())] for label in stats["classes"]),
    ]
    note = "Small: under 32 × 32 pixels; large: 96 × 96 or more (the limits of COCO)."
    return [Section("Boxes", [Table(["Boxes", *splits], rows, note)])]


def _finding(finding: Finding, read: ReadImage, elsewhere: dict[Sample, str]) -> Section:
    """One finding. Groups of images that an earlier one shows together are named by its code only; elsewhere: code and
    number of the group of each image that was shown."""
    parts: list[Part] = [finding.message]
    if finding.code in ("near", "near-across"):
        parts.append(Note(_UNSEEN))
    above = [_above(group, elsewhere) for group in finding.groups]
    groups = [group for group, code in zip(finding.groups, above, strict=True) if code is None]
    if codes := sorted({code for code in above if code is not None}):
        parts.append(Note(f"{plural(len(finding.groups) - len(groups), 'group')} shown above: {', '.join(codes)}"))
    for number, group in enumerate(groups):
        elsewhere |= {sample: f"{finding.code}\0{number}" for sample in group if len(group) > 1}
    few, rest = groups[:_GROUPS], groups[_GROUPS:]
    if any(len(group) > 1 for group in few):
        parts.append(Gallery([_group(group, read) for group in few]))
    elif few:
        parts.append(Gallery([_picture(sample, read) for group in few for sample in group]))
    if rest:
        lines = [finding.sign.join(map(str, group)) for group in rest[:_NAMES]]
        lines += [f"and {len(rest) - _NAMES:,} more"] if len(rest) > _NAMES else []
        parts.append(Code("\n".join(lines), f"Show {len(rest):,} more"))
    title = f"{_TITLES[finding.code]} ({finding.code})" if finding.code in _TITLES else finding.code
    return Section(f"{finding.severity.capitalize()}: {title}", parts)


def _above(group: Sequence[Sample], elsewhere: Mapping[Sample, str]) -> str | None:
    """The code of the finding that shows all of this group together, if one does."""
    marks = {elsewhere.get(sample) for sample in group}
    mark = marks.pop() if len(marks) == 1 and len(group) > 1 else None
    return None if mark is None else mark.split("\0")[0]


def _group(group: Sequence[Sample], read: ReadImage) -> Gallery:
    more = f"The first {_TOGETHER} of {len(group):,} images" if len(group) > _TOGETHER else ""
    return Gallery([_picture(sample, read) for sample in group[:_TOGETHER]], more)


def _picture(sample: Sample, read: ReadImage, caption: str = "") -> Picture:
    return Picture(read(sample), caption or f"{sample.label}, {sample.split}", f"Image {sample}", sample.name)


def _sizes(each: Mapping[str, Any]) -> str:
    if not each["sizes"]:
        return "–"
    (size, count), *others = each["sizes"].items()
    total = sum(each["sizes"].values())
    return f"{size} ({percent(count / total, 1)} %), {plural(len(others), 'other')}" if others else size
