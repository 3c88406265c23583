"""Pages about data: what a check found, with the pictures side by side, and what a dataset looks like, class by class.

Shape letters: H W height and width, D image channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitral.data.findings import CheckReport, Finding, Sample
from vitral.report import plots
from vitral.report.page import as_text, embed_image, make_table, percent, section, write_page

# An image [H,W] or [H,W,D] as uint8, or None where it can't be read.
Picture = Callable[[Sample], NDArray[Any] | None]

_TITLES = {
    "near": "Look-alikes in one split", "near-across": "Look-alikes across splits (leak)",
    "grey-mix": "Gray among color images",
}  # fmt: skip
_GROUPS = 48  # of one finding that are shown with pictures
_TOGETHER = 6  # pictures of one group
_UNSEEN = (
    "Pairs with different labels come first, then the most alike. This check compares thumbnails of 32 × 32 pixels. It "
    "finds images that were resized, recompressed, tinted, mirrored left to right, or cropped to 80 % or more of each "
    "side (crops up to 100,000 images). It cannot find images that were turned, mirrored and cropped at once, cropped "
    "further, or changed in more places; images under 32 pixels; images without details, such as plain skies; and "
    "other photos of the same object."
)
_NAMES = 1000  # of the images of one finding that are listed


def write_check_page(path: str | Path, report: CheckReport, picture: Picture) -> None:
    """What a check found as one HTML file: each finding with its images, duplicates and look-alikes side by side with
    names, splits and labels. All text is escaped. Raises OSError where the file can't be written."""
    errors, warnings = len(report.errors()), len(report.findings) - len(report.errors())
    verdict = f"{errors:,} {_plural(errors, 'error')}, {warnings:,} {_plural(warnings, 'warning')}"
    images = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    says = (
        "Training is refused until these errors are fixed, or allowed with check.allow=CODE."
        if errors
        else "No errors: training can start."
    )
    head = f'<section class="headline">\n<p><strong>{verdict}</strong> in {images or "no"} images</p>\n'
    content = f" Fingerprint of all images and labels: {escape(report.fingerprint)}." if report.fingerprint else ""
    head += f'<p class="soft">{says}{content}</p>\n</section>'
    shown: dict[Sample, str] = {}
    found = [_finding(finding, picture, shown) for finding in report.findings]
    write_page(path, f"Check of {report.name}", [head, *found])


def write_stats_page(
    path: str | Path, stats: Mapping[str, Any], sheets: Mapping[str, Sequence[Sample]], picture: Picture
) -> None:
    """What `dataset_stats` gives as one HTML file: counts, sizes, mean and std, and some images of each class."""
    splits = stats["splits"]
    overview = '<p class="soft">Mean and standard deviation: per channel, in [0,1].</p>\n' + "\n".join(
        f"<h3>{escape(name)}</h3>\n<dl>"
        + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in _facts(each).items())
        + "</dl>"
        for name, each in splits.items()
    )
    names = list(splits)
    counts = [
        f'<tr><th class="name" scope="row">{escape(label)}</th>'
        + "".join(f"<td>{splits[name]['classes'][label]:,}</td>" for name in names)
        + "</tr>"
        for label in stats["classes"]
    ]
    table = make_table(["Class", *map(escape, names)], 1, counts, "Images of each class in each split.")
    found = [
        f"<h3>{escape(label)}</h3>\n" + _sheet([_photo(sample, picture, with_label=False) for sample in samples])
        for label, samples in sheets.items()
    ]
    write_page(
        path, f"Statistics of {stats['name']}",
        [section("Splits", overview), section("Classes", table), section("Images", "\n".join(found))],
    )  # fmt: skip


def _finding(finding: Finding, picture: Picture, already: dict[Sample, str]) -> str:
    """One finding; groups of images that stand together under an earlier one, by its number, are not shown again."""
    kind = "Error" if finding.severity == "error" else "Warning"
    text = f'<p class="message">{escape(finding.message)}</p>'
    if finding.code in ("near", "near-across"):
        text += f'\n<p class="soft">{_UNSEEN}</p>'
    above = [_above(group, already) for group in finding.groups]
    groups = [group for group, code in zip(finding.groups, above, strict=True) if code is None]
    codes = sorted({code for code in above if code is not None})
    if codes:
        count = len(finding.groups) - len(groups)
        text += f'\n<p class="soft">{count:,} {_plural(count, "group")} shown above: {escape(", ".join(codes))}</p>'
    for number, group in enumerate(groups):
        already |= {sample: f"{finding.code}\0{number}" for sample in group if len(group) > 1}
    shown = groups[:_GROUPS]
    if any(len(group) > 1 for group in shown):
        sheets = "\n".join(_sheet(_group(group, picture)) for group in shown)
        text += f'\n<div class="groups">\n{sheets}\n</div>'
    elif shown:
        text += "\n" + _sheet([_photo(sample, picture) for group in shown for sample in group])
    rest = groups[_GROUPS:]
    if rest:
        names = "\n".join(finding.sign.join(map(str, group)) for group in rest[:_NAMES])
        more = f"\nand {len(rest) - _NAMES:,} more" if len(rest) > _NAMES else ""
        text += f"\n<details><summary>The other {len(rest):,}</summary>\n<pre>{escape(names)}{more}</pre></details>"
    title = f"{_TITLES[finding.code]} ({finding.code})" if finding.code in _TITLES else finding.code
    return section(f"{kind}: {escape(title)}", text)


def _above(group: Sequence[Sample], already: Mapping[Sample, str]) -> str | None:
    """The code of the finding that shows all of this group together, if one does."""
    marks = {already.get(sample) for sample in group}
    mark = marks.pop() if len(marks) == 1 and len(group) > 1 else None
    return None if mark is None else mark.split("\0")[0]


def _group(group: Sequence[Sample], picture: Picture) -> list[str]:
    figures = [_photo(sample, picture) for sample in group[:_TOGETHER]]
    if len(group) > _TOGETHER:
        figures.append(f'<p class="soft">and {len(group) - _TOGETHER:,} more like these</p>')
    return figures


def _sheet(figures: Sequence[str]) -> str:
    return '<div class="mistakes">\n' + "\n".join(figures) + "\n</div>"


def _photo(sample: Sample, picture: Picture, *, with_label: bool = True) -> str:
    pixels = picture(sample)
    words = f"<b>{escape(sample.label)}</b>, {escape(sample.split)}" if with_label else escape(sample.split)
    caption = f'<figcaption>{words}<span class="soft">{escape(sample.name)}</span></figcaption>'
    if pixels is None:
        return f'<figure><p class="soft">cannot be read</p>{caption}</figure>'
    media, content, (width, height) = plots.photo(pixels)
    more = f' width="{width}" height="{height}"' + (' class="pixels"' if max(width, height) <= 64 else "")
    return f"<figure>{embed_image(media, content, f'Image {sample}', more)}{caption}</figure>"


def _facts(each: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a split, as HTML."""
    facts = {"Images": f"{each['images']:,}", "Height × width": _sizes(each)}
    facts |= {"Left out, damaged": f"{each['damaged']:,}"} if each["damaged"] else {}
    return facts | {"Mean": escape(as_text(each["mean"])), "Standard deviation": escape(as_text(each["std"]))}


def _sizes(each: Mapping[str, Any]) -> str:
    if not each["sizes"]:
        return "–"
    (size, count), *others = each["sizes"].items()
    total = sum(each["sizes"].values())
    rest = f" ({percent(count / total)} %), {len(others):,} {_plural(len(others), 'other')}"
    return escape(size) + (rest if others else "")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"
