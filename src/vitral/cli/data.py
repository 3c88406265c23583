"""`vitral data`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.command import Answer, Arguments, command, group
from vitral.cli.images import output_file
from vitral.cli.table import table
from vitral.data.findings import CODES, CheckReport
from vitral.data.options import CheckOptions, ConvertOptions, ReadOptions, StatsOptions
from vitral.errors import UserError, plural, shown_lines
from vitral.errors import command as command_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitral.data.dataset import Dataset
    from vitral.data.findings import Sample
    from vitral.report.data_page import ReadImage

HELP = """usage: vitral data check|stats|convert PATH [key=value ...] [--json]

check      find problems of images and labels before training: the same check as at the start of every run
stats      count images, classes and sizes of each split; mean and standard deviation of the pixels
convert    write any data as image files: a folder per class, labels in the file names, or a CSV manifest; boxes as
           COCO, VOC, YOLO or CSV

vitral data check --help (stats, convert) lists the keys.

examples:
  vitral data check PHOTOS out=check.html
  vitral data stats digits
  vitral data convert CIFAR out=IMAGES layout=flat
"""

CHECK_HELP = """usage: vitral data check PATH|data=PATH [key=value ...] [--json]

Decodes every image once and reports problems of classes and names, damaged files, exact duplicates and look-alikes
(within and across splits; not under 32 pixels), constant images, odd sizes, gray images among color ones, class
imbalance, and of boxes wrong units, rotated photos, boxes outside, empty or twice, and files without a pair. Errors
give exit code 2; they also refuse a training run, unless allow=CODE (check.allow=CODE of `vitral train`) names them.
Unchanged files are not decoded again.

codes of findings:

{codes}

{keys}

examples:
  vitral data check PHOTOS
  vitral data check PHOTOS out=check.html init=runs/mine
  vitral data check CIFAR data.verify=false --json
""".replace("{codes}", "\n".join(f"  {code:<18} {severity:<8} {text}" for code, (severity, text) in CODES.items()))

STATS_HELP = """usage: vitral data stats PATH|data=PATH [key=value ...] [--json]

Prints images, classes and sizes of each split; mean and standard deviation of its pixels, per channel, in [0,1].

{keys}

examples:
  vitral data stats PHOTOS out=stats.html
  vitral data stats digits --json
"""

CONVERT_HELP = """usage: vitral data convert PATH|data=PATH out=DIR [key=value ...] [--json]

Writes every image with its split and label. Image files are copied unchanged; other images become PNG files.

{keys}

examples:
  vitral data convert CIFAR out=IMAGES                    IMAGES/train/cat/00017.png
  vitral data convert CIFAR out=IMAGES layout=flat        IMAGES/train/cat_00017.png
  vitral data convert digits out=IMAGES layout=csv        IMAGES/train/00017.png and IMAGES/manifest.csv
  vitral data convert VOC out=COCO layout=coco            boxes: COCO/annotations/instances_train.json
"""

_SHOWN = 5  # images per finding
_SHEET = 24  # images with boxes on the page of a check
_MARGIN = " " * 4


def _with_path(arguments: Arguments, data: ReadOptions) -> ReadOptions:
    """Return the options with the path argument. Raises UserError unless exactly one path is given."""
    paths = [*arguments.words, *([data.path] if data.path is not None else [])]
    if len(paths) != 1:
        raise UserError("expected exactly one data path", got=" ".join(paths) or "none", hint="PATH, or data=PATH")
    return data.model_copy(update={"path": paths[0]})


def _open(data: ReadOptions, **how: bool) -> Dataset:
    from vitral.data.sources import open_dataset

    return open_dataset(data.as_data(), hold_out=False, boxes=True, **how)


def _print_notes(dataset: Dataset) -> Dataset:
    """Print skipped files and assumptions on stderr."""
    for note in dataset.notes:
        print(shown_lines(f"data: {note}"), file=sys.stderr)
    return dataset


@command(CHECK_HELP, CheckOptions)
def _check(arguments: Arguments, options: CheckOptions) -> Answer:
    data = _with_path(arguments, options.data)
    if options.out is not None:
        output_file(Path(options.out), "an HTML file")
    from vitral.data.check import check_dataset, decoding
    from vitral.data.check_cache import cache_folder, forget

    normalization = None
    if options.init is not None:
        from vitral.weights.find_model import model_config

        architecture = model_config(options.init).architecture
        normalization = architecture.mean, architecture.std
    try:
        dataset = _print_notes(_open(data, equal_classes=False, one_class=True))
    except UserError as error:
        path = Path(data.path or "").expanduser()
        if not path.exists() or not (arguments.json or options.out):
            raise
        return _report(CheckReport.refused(path.name, str(error)), options, lambda sample: None)
    variant = decoding(data.as_data())
    if options.fresh:
        forget(cache_folder(), dataset, variant)
    from vitral.training.metrics_log import console_logging, counted

    console_logging()
    with counted("checking images", sum(map(len, dataset.splits.values()))) as tick:
        report = check_dataset(
            dataset, workers=data.threads, normalization=normalization, max_bad=data.max_bad,
            variant=variant, cache=cache_folder(), tick=tick,
        )  # fmt: skip
    from vitral.data.statistics import box_sheet

    return _report(report, options, _picture(dataset), box_sheet(dataset, _SHEET))


def _report(
    report: CheckReport, options: CheckOptions, read: ReadImage, sheet: Sequence[Sample] = ()
) -> Answer:  # fmt: skip
    """Return the findings, with exit code 2 for errors; write them as the page `options.out`."""
    if options.out is not None:
        from vitral.report.data_page import write_check_page

        write_check_page(options.out, report, read, sheet)
    errors = report.errors(options.allow)
    tree = {**report.to_json(), "allow": list(options.allow), "errors": len(errors), "cached": report.cached}
    return Answer(tree, lambda: _check_text(report, options), 2 if errors else 0)


def _check_text(report: CheckReport, options: CheckOptions) -> str:
    lines: list[str] = []
    for finding in (*report.errors(options.allow), *report.shown(options.allow)):
        refuses = finding.severity == "error" and finding.code not in options.allow
        lines.append(f"{'error' if refuses else 'warning'} [{finding.code}] {finding.message}")
        shown = finding.groups[:_SHOWN]
        lines += [_MARGIN + finding.sign.join(map(str, group[:_SHOWN])) for group in shown]
        rest = len(finding.groups) - len(shown)
        lines += [f"{_MARGIN}and {rest:,} more"] if rest else []
    counts = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    errors, warnings = len(report.errors(options.allow)), len(report.shown(options.allow))
    lines.append(f"{report.name}: {counts or 'no'} images: {plural(errors, 'error')}, {plural(warnings, 'warning')}")
    return "\n".join(lines)


@command(STATS_HELP, StatsOptions)
def _stats(arguments: Arguments, options: StatsOptions) -> Answer:
    data = _with_path(arguments, options.data)
    if options.out is not None:
        output_file(Path(options.out), "an HTML file")
    from vitral.data.statistics import class_sheets, dataset_stats

    opened = _open(data, equal_classes=False)
    limit = data.max_bad if "max_bad" in data.model_fields_set else None
    stats, dataset = dataset_stats(opened, data.threads, limit)
    _print_notes(dataset)
    if options.out is not None:
        from vitral.report.data_page import write_stats_page

        write_stats_page(options.out, stats, class_sheets(dataset, options.images), _picture(dataset))
    return Answer(stats, lambda: _stats_text(stats))


def _stats_text(stats: dict[str, Any]) -> str:
    lines: list[str] = []
    for name, each in stats["splits"].items():
        sizes = list(each["sizes"].items())
        shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:_SHOWN])
        more = f" and {len(sizes) - _SHOWN:,} other sizes" if len(sizes) > _SHOWN else ""
        mean, std = (", ".join(f"{value:.4f}" for value in each[key]) for key in ("mean", "std"))
        lines.append(f"{name}: {each['images']:,} images; height x width {shown}{more}; mean {mean}; std {std}")
        if "boxes" in each:
            boxes = each["boxes"]
            sizes = ", ".join(f"{count:,} {size}" for size, count in boxes["sizes"].items())
            lines.append(f"{name}: {boxes['count']:,} boxes ({sizes}), {boxes['crowds']:,} of crowds, at most "
                         f"{boxes['most']:,} on one image; {boxes['images_without']:,} images without")  # fmt: skip
    names = list(stats["splits"])
    rows = [(label, *(f"{stats['splits'][name]['classes'][label]:,}" for name in names)) for label in stats["classes"]]
    head = ("class", *names)
    if all("boxes" in each for each in stats["splits"].values()):
        rows = [(*row, *(f"{stats['splits'][name]['boxes']['classes'][row[0]]:,}" for name in names)) for row in rows]
        head = ("class", *(f"{name} images" for name in names), *(f"{name} boxes" for name in names))
    return "\n".join([*lines, "", table(head, rows)])


@command(CONVERT_HELP, ConvertOptions)
def _convert(arguments: Arguments, options: ConvertOptions) -> Answer:
    data = _with_path(arguments, options.data)
    from vitral.data.convert import convert

    found = convert(_open(data, equal_classes=False), Path(options.out), options.layout, data.threads, data.max_bad)
    _print_notes(found.dataset)
    counts = {name: len(split) for name, split in found.dataset.splits.items()}
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    order = "; the file keeps the order of the classes" if found.path.suffix == ".yaml" else ""
    text = f"{found.path}: {words} images, {found.copied:,} of them copied unchanged\n"
    text += f"to read them: data={command_line(str(found.path))}{order}"
    text += "".join(f"\nlost: {each}" for each in found.lost)
    tree = {"path": str(found.path), "counts": counts, "copied": found.copied, "lost": found.lost}
    return Answer(tree, lambda: text)


def _picture(dataset: Dataset) -> ReadImage:
    def picture(sample: Sample) -> NDArray[Any] | None:
        split = dataset.splits[sample.split]
        try:
            image_HWC = split.read(sample.place).permute(1, 2, 0).numpy()
        except UserError:
            return None
        if split.boxes is None:
            return image_HWC
        from vitral.report.box_drawing import draw_boxes

        own = split.boxes.of(sample.place)
        return draw_boxes(image_HWC, own.boxes_M4.tolist(), [dataset.classes[label] for label in own.label_M.tolist()])

    return picture


run = group(HELP, {"check": _check, "stats": _stats, "convert": _convert})
