"""Findings of a data check: stable codes, findings and the report. Imports no heavy package."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from vitral.errors import nearest

Severity = Literal["error", "warning"]

# Code: how grave, and what it says. Codes are part of the interface (check.allow): they are never renamed.
CODES: dict[str, tuple[Severity, str]] = {
    "layout": ("error", "data that cannot be opened as they are laid out, or no images"),
    "one-class": ("error", "only one class has training images"),
    "same-labels": ("error", "data of several labels per image in which every training image has the same ones"),
    "empty-class": ("error", "a class without a single image"),
    "split-classes": ("error", "splits that do not hold the same classes"),
    "alike-classes": ("error", "class names that look the same, or differ by case or punctuation alone (a warning)"),
    "missing-label": ("error", "classes called nan, N/A or -1; a warning for none, NA and null"),
    "flat-folder": ("error", "a folder taken for a class, though its file names carry several labels"),
    "split-names": ("error", "class folders that are splits (train_images, fold0), or that all hold the same folders"),
    "name-label": ("error", "a file or folder name that says another class than the label"),
    "left-out": ("warning", "folders with images beside train, val and test that are not read"),
    "label-separator": ("warning", "class names that are several class names in one: cat;dog"),
    "damaged": ("error", "images that cannot be decoded, more than data.max_bad"),
    "duplicates-across": ("error", "the same pixels in more than one split"),
    "duplicates-labels": ("error", "the same pixels with different labels"),
    "duplicates": ("warning", "the same pixels more than once in one split"),
    "near": ("warning", "look-alikes inside a split"),
    "near-across": ("warning", "look-alikes in different splits"),
    "unlabeled-leak": ("error", "unlabeled images that are, or look like, validation or test images"),
    "unlabeled-size": ("error", "unlabeled images of another size than the training images, which all have one"),
    "near-stopped": ("warning", "so many look-alikes that the search was stopped"),
    "constant": ("warning", "images of one color"),
    "sizes": ("warning", "images far smaller or larger than the others"),
    "aspect": ("warning", "images far longer or taller than the others"),
    "gray-mix": ("warning", "gray images among colored ones, or the other way round"),
    "small-class": ("warning", "classes with very few training images"),
    "imbalance": ("warning", "classes of very different sizes"),
    "box-unit": ("error", "boxes of which more than half lie outside of their images, or have no area"),
    "box-rotated": ("error", "photos with an EXIF rotation whose boxes fit only the stored, unrotated image"),
    "box-size": ("error", "images of another size than the one that their annotations state"),
    "label-no-image": ("error", "label files, or annotations, without an image"),
    "box-outside": ("warning", "boxes that reach out of their images by more than a pixel"),
    "box-degenerate": ("warning", "boxes under one pixel wide or high, which are not trained on"),
    "box-duplicate": ("warning", "the same box with the same class twice on one image"),
    "unused-class": ("warning", "classes without a box, or without one for training (an error)"),
    "image-no-label": ("warning", "images without a label file, or that no file lists"),
    "no-boxes": ("warning", "images without boxes, which are kept as negatives"),
    "normalization": ("warning", "brightness or contrast far from what the checkpoint normalizes with"),
    "text-empty": ("error", "texts that are empty"),
    "text-unknown": ("error", "characters, or words, that training texts lack and the tokenizer has no id for"),
    "text-long": ("error", "texts that are longer than the model's positions"),
    "text-across": ("error", "the same source text in more than one split"),
    "text-length": ("warning", "texts far longer than the others"),
    "text-equal": ("warning", "targets that equal their source"),
    "text-direction": ("warning", "texts in a script that is written from right to left"),
    "text-form": ("warning", "texts in another Unicode form than NFC, which is applied"),
    "text-control": ("warning", "texts with control characters, or characters without width"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, as a person finds it again."""

    split: str
    place: int  # in the split
    name: str
    label: str

    def __str__(self) -> str:
        return f"{self.name} ({self.split}, {self.label})"


Groups = tuple[tuple[Sample, ...], ...]
MOST = 10_000  # groups that a finding names


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    message: one sentence, without the code. groups: the images it is about; a pair of duplicates is one group, a
    damaged image a group of one; at most 10,000 of them. numbers: the counts and measures behind the message.
    """

    code: str
    severity: Severity
    message: str
    groups: Groups = ()
    numbers: Mapping[str, int | float] = field(default_factory=dict[str, int | float])

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

    @property
    def sign(self) -> str:
        """What stands between the images of a group: equal, or only alike."""
        return " ~ " if self.code in ("near", "near-across", "unlabeled-leak") else " = "


def finding(
    code: str,
    message: str,
    groups: Sequence[Sequence[Sample]] = (),
    severity: Severity | None = None,
    /,
    **numbers: float,
) -> Finding:
    """A finding of the severity that its code has, or of this one, with the first 10,000 groups."""
    return Finding(code, severity or CODES[code][0], message, tuple(map(tuple, groups[:MOST])), numbers)


@dataclass(frozen=True)
class CheckReport:
    """All findings about a dataset, errors first.

    fingerprint: 16 hex digits over names, labels and decoded pixels of every image. counts: images by split.
    damaged: by split and place, what is wrong with each image that cannot be decoded, as `damage.without_damage` takes
    it. mean, std: per channel, in [0,1], over all readable training pixels at their own size. cached: read from the
    cache instead of the images.
    """

    name: str
    fingerprint: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    damaged: dict[str, dict[int, str]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cached: bool = False

    def shown(self, allow: Collection[str] = ()) -> tuple[Finding, ...]:
        """Return the findings to log as warnings: warnings, but for those in `allow`, and allowed errors."""
        return tuple(each for each in self.findings if (each.severity == "error") == (each.code in allow))

    def errors(self, allow: Collection[str] = ()) -> tuple[Finding, ...]:
        """The findings that refuse a training run, but for the codes in `allow`."""
        return tuple(each for each in self.findings if each.severity == "error" and each.code not in allow)

    def to_json(self) -> dict[str, Any]:
        """A tree for `json.dumps`; `from_json` reads it back."""
        return {key: value for key, value in asdict(self).items() if key != "cached"}

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> CheckReport:
        """The report of a tree that `to_json` made. Raises ValueError for other trees."""
        return TypeAdapter(CheckReport).validate_python(tree)

    @staticmethod
    def refused(name: str, message: str) -> CheckReport:
        """The report of data that could not even be opened."""
        return CheckReport(name, "", {}, (Finding("layout", "error", message),), {}, (), ())

    def with_max_bad(self, max_bad: int) -> CheckReport:
        """Up to `max_bad` damaged images are only a warning: they are left out, not replaced."""
        if sum(map(len, self.damaged.values())) > max_bad:
            return self
        lighter = (replace(each, severity="warning") if each.code == "damaged" else each for each in self.findings)
        return replace(self, findings=in_order(lighter))


def in_order(findings: Any) -> tuple[Finding, ...]:
    """Errors first, then by the order of CODES."""
    order = list(CODES)
    return tuple(sorted(findings, key=lambda each: (each.severity != "error", order.index(each.code))))


def known_codes(codes: tuple[str, ...]) -> tuple[str, ...]:
    """These codes. Raises ValueError, with the nearest, for one that no check gives or nobody may allow."""
    if "layout" in codes:
        raise ValueError("data that cannot be opened cannot be trained on")
    if "damaged" in codes:
        raise ValueError("damaged images are never trained on: data.max_bad=N leaves out up to N of them")
    for code in codes:
        if code not in CODES:
            close = nearest(code, CODES)
            raise ValueError(
                f"no finding has the code {code!r}"
                + (f"; did you mean {close!r}?" if close else "")
                + f" Codes: {', '.join(CODES)}"
            )
    return codes
