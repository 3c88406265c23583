"""`vitral data`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted, page
from vitral.config import ConfigT, build, with_overrides
from vitral.data.options import CheckOptions, ConvertOptions, ReadOptions, StatsOptions
from vitral.errors import UserError, command, nearest, plural, shown_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitral.data.dataset import Dataset
    from vitral.data.findings import CheckReport, Sample
    from vitral.report.data_page import ReadImage

HELP = """usage: vitral data check|stats|convert PATH [key=value ...] [--json]

check      what is wrong with images and labels, before training: the same check as at the start of every run
stats      images, classes, sizes, mean and standard deviation of each split
convert    any data as image files: a folder a class, labels in the file names, or a CSV manifest

vitral data check --help (stats, convert) says more.

examples:
  vitral data check PHOTOS out=check.html
  vitral data stats digits
  vitral data convert CIFAR out=IMAGES layout=flat
"""

CHECK_HELP = """usage: vitral data check PATH [key=value ...] [--json]

Decodes every image once and tells of classes, names, damaged files, exact duplicates and look-alikes (inside and across
splits; not under 32 pixels), constant images, odd sizes, grey among colour, imbalance. Exit code 2 if there are errors:
these refuse a training run,
unless allow=CODE (check.allow=CODE of `vitral train`) names them. Unchanged files are not decoded again.

codes of findings:

{codes}

key=default, meaning (type):

{keys}

examples:
  vitral data check PHOTOS
  vitral data check PHOTOS out=check.html init=runs/mine
  vitral data check CIFAR data.verify=false --json
"""

STATS_HELP = """usage: vitral data stats PATH [key=value ...] [--json]

Images, classes and sizes of each split; mean and standard deviation of its pixels, per channel, in [0,1].

key=default, meaning (type):

{keys}

examples:
  vitral data stats PHOTOS out=stats.html
  vitral data stats digits --json
"""

CONVERT_HELP = """usage: vitral data convert PATH out=DIR [key=value ...] [--json]

Writes every image with its split and label. Images that are files are copied as they are, others become PNG files.

key=default, meaning (type):

{keys}

examples:
  vitral data convert CIFAR out=IMAGES                    IMAGES/train/cat/00017.png
  vitral data convert CIFAR out=IMAGES layout=flat        IMAGES/train/cat_00017.png
  vitral data convert digits out=IMAGES layout=csv        IMAGES/train/00017.png and IMAGES/manifest.csv
"""

_SHOWN = 5  # images of a finding
_MARGIN = " " * 4


def run(arguments: Arguments) -> int:
    """Run check, stats or convert."""
    actions: dict[str, Callable[[Arguments], int]] = {"check": _check, "stats": _stats, "convert": _convert}
    if not arguments.words:
        print(fitted(HELP), end="", file=sys.stdout if arguments.help else sys.stderr)
        return 0 if arguments.help else 2
    action, *words = arguments.words
    if action not in actions:
        raise UserError("no such action", where=action, wanted=", ".join(actions), nearest=nearest(action, actions))
    return actions[action](arguments._replace(words=words))


def _options(model: type[ConfigT], arguments: Arguments, action: str) -> ConfigT:
    pairs = dict(arguments.pairs)
    named = [*arguments.words, *(pairs.pop(key) for key in ("data", "data.path") if key in pairs)]
    if len(named) != 1:
        raise UserError(
            "one path is wanted", got=" ".join(named) or "none", hint=f"vitral data {action} PATH [key=value ...]"
        )
    return build(model, with_overrides(model, {}, {**pairs, "data.path": named[0]}))


def _open(data: ReadOptions, **how: bool) -> Dataset:
    from vitral.data.sources import open_dataset

    return open_dataset(data.as_data(), hold_out=False, **how)


def _said(dataset: Dataset) -> Dataset:
    """What was left out or assumed, on stderr."""
    for note in dataset.notes:
        print(shown_lines(f"data: {note}"), file=sys.stderr)
    return dataset


def _writable(out: str | None) -> None:
    """Found out before minutes are spent on the images."""
    if out is not None and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise UserError(
            "not a file that can be written", where="out", got=out, wanted="an HTML file in a folder that is there"
        )


def _check(arguments: Arguments) -> int:
    from vitral.data.findings import CODES, CheckReport

    if arguments.help:
        codes = "\n".join(f"  {code:<18} {severity:<8} {text}" for code, (severity, text) in CODES.items())
        print(page(CHECK_HELP, CheckOptions, arguments.words, codes=codes), end="")
        return 0
    options = _options(CheckOptions, arguments, "check")
    _writable(options.out)
    from vitral.data.check import check_dataset, decoding
    from vitral.data.check_cache import cache_folder, forget

    normalisation = None
    if options.init is not None:
        from vitral.weights.find import model_config

        architecture = model_config(options.init).architecture
        normalisation = architecture.mean, architecture.std
    try:
        dataset = _said(_open(options.data, equal_classes=False, one_class=True))
    except UserError as error:
        path = Path(options.data.path or "").expanduser()
        if not path.exists() or not (arguments.json or options.out):
            raise
        return _report(CheckReport.refused(path.name, str(error)), options, arguments, lambda sample: None)
    variant = decoding(options.data.as_data())
    if options.fresh:
        forget(cache_folder(), dataset, variant)
    from vitral.training.journal import console_logging, counted

    console_logging()
    with counted("checking images", sum(map(len, dataset.splits.values()))) as tick:
        report = check_dataset(
            dataset, workers=options.data.threads, normalisation=normalisation, max_bad=options.data.max_bad,
            variant=variant, cache=cache_folder(), tick=tick,
        )  # fmt: skip
    return _report(report, options, arguments, _picture(dataset))


def _report(report: CheckReport, options: CheckOptions, arguments: Arguments, read: ReadImage) -> int:
    """Print it, and write the page that is asked for; returns the exit code."""
    if options.out is not None:
        from vitral.report.data_page import write_check_page

        write_check_page(options.out, report, read)
    errors = report.errors(options.allow)
    tree = {**report.to_json(), "allow": list(options.allow), "errors": len(errors), "cached": report.cached}
    print(json.dumps(tree) if arguments.json else _check_text(report, options))
    return 2 if errors else 0


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


def _stats(arguments: Arguments) -> int:
    if arguments.help:
        print(page(STATS_HELP, StatsOptions, arguments.words), end="")
        return 0
    options = _options(StatsOptions, arguments, "stats")
    _writable(options.out)
    from vitral.data.statistics import class_sheets, dataset_stats

    opened = _open(options.data, equal_classes=False)
    limit = options.data.max_bad if "max_bad" in options.data.model_fields_set else None
    stats, dataset = dataset_stats(opened, options.data.threads, limit)
    _said(dataset)
    if options.out is not None:
        from vitral.report.data_page import write_stats_page

        write_stats_page(options.out, stats, class_sheets(dataset, options.images), _picture(dataset))
    print(json.dumps(stats) if arguments.json else _stats_text(stats))
    return 0


def _stats_text(stats: dict[str, Any]) -> str:
    lines: list[str] = []
    for name, each in stats["splits"].items():
        sizes = list(each["sizes"].items())
        shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:_SHOWN])
        more = f" and {len(sizes) - _SHOWN:,} other sizes" if len(sizes) > _SHOWN else ""
        mean, std = (", ".join(f"{value:.4f}" for value in each[key]) for key in ("mean", "std"))
        lines.append(f"{name}: {each['images']:,} images; height x width {shown}{more}; mean {mean}; std {std}")
    names = list(stats["splits"])
    width = max(5, *(len(label) for label in stats["classes"]))
    lines.append(f"\n{'class':<{width}}" + "".join(f"  {name:>9}" for name in names))
    for label in stats["classes"]:
        counts = "".join(f"  {stats['splits'][name]['classes'][label]:>9,}" for name in names)
        lines.append(f"{label:<{width}}{counts}")
    return "\n".join(lines)


def _convert(arguments: Arguments) -> int:
    if arguments.help:
        print(page(CONVERT_HELP, ConvertOptions, arguments.words), end="")
        return 0
    options = _options(ConvertOptions, arguments, "convert")
    from vitral.data.convert import convert

    dataset = _open(options.data, equal_classes=False)
    found = convert(dataset, Path(options.out), options.layout, options.data.threads, options.data.max_bad)
    _said(found.dataset)
    counts = {name: len(split) for name, split in found.dataset.splits.items()}
    if arguments.json:
        print(json.dumps({"path": str(found.path), "counts": counts, "copied": found.copied}))
    else:
        words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        print(f"{found.path}: {words} images, {found.copied:,} of them copied as they were")
        order = "; the file keeps the order of the classes" if found.path.suffix == ".yaml" else ""
        print(f"to read them: data={command(str(found.path))}{order}")
    return 0


def _picture(dataset: Dataset) -> ReadImage:
    def picture(sample: Sample) -> NDArray[Any] | None:
        try:
            return dataset.splits[sample.split].read(sample.place).permute(1, 2, 0).numpy()
        except UserError:
            return None

    return picture
