"""The report of a run: one HTML file that needs no network, no script and no other file.

Shape letters: N samples, C classes, H W height and width, D image channels.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.evaluate.calibration import reliability_bins
from vitral.report import plots

Mistake = tuple[NDArray[Any], str, str, float, str]

_MAX_MISTAKES = 24
_MAX_ROWS = 20  # of the per-class table before the rest is folded away
_MAX_PAIRS = 10  # of confused classes

_TABLE_CAPTION = (
    "Precision: of the images called so, the share that are. Recall: of the images that are so, the share called so. "
    "F1: their harmonic mean. –: no image to tell from."
)

# What the summary's keys are called, and their unit.
_FACTS = {
    "recipe": ("Recipe", ""),
    "model": ("Model", ""),
    "parameters": ("Parameters", ""),
    "train_seconds": ("Training time", "s"),
    "steps": ("Optimiser steps", ""),
    "epochs": ("Epochs", ""),
    "seed": ("Seed", ""),
    "best_step": ("Best checkpoint at step", ""),
    "val_top1": ("Validation top-1", "%"),
    "temperature": ("Temperature (fitted on validation data)", ""),
}
_IN_THE_HEADLINE = {"top1", "top1_interval", "top5", "count", "split", "ece", "ece_uncalibrated", "loss"}

_CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --ground: #ffffff; --card: #f6f7f9; --line: #d5d9de; --bar: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a8b0b9; --ground: #15181c; --card: #1f2329; --line: #3a4048; --bar: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem } p { margin: .4rem 0; max-width: 52rem } .soft { color: var(--soft) }
.headline { border-left: .35rem solid var(--bar); padding-left: .9rem }
.headline strong { display: block; font-size: 2.6rem; line-height: 1.1 }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(8.5rem, 16%), 1fr)); margin: 0;
  gap: .6rem 1rem }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-variant-numeric: tabular-nums }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .8rem }
.figure { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; overflow-x: auto }
.fit { max-width: 31rem } .fit img { display: block; width: 100%; height: auto }
.wide { width: fit-content; max-width: 100% } .wide img { display: block; max-width: none }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem }
th, td { padding: .25rem .4rem; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal }
thead th { font-size: .85rem; vertical-align: bottom }
th.name, td.name { text-align: left; overflow-wrap: anywhere; min-width: 3rem }
@media (max-width: 26rem) { th, td { padding: .25rem .15rem; font-size: .9rem } thead th { font-size: .72rem } }
tbody th { font-weight: 600 } .table { overflow-x: auto }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem .8rem }
.mistakes figure { margin: 0 }
.mistakes img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  background: var(--card); border: 1px solid var(--line); border-radius: .3rem }
img.pixels { image-rendering: pixelated }
figcaption { font-size: .85rem; line-height: 1.35; padding-top: .3rem }
figcaption .soft { display: block; font-size: .75rem }
summary { cursor: pointer; padding: .3rem 0 } pre { background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .7rem; overflow-x: auto; font-size: .85rem; overflow-wrap: normal }
"""
# The policy forbids what this file doesn't do anyway: any request.
_HEAD = """<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">"""


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    metrics_rows: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    mistakes: Sequence[Mistake],
    config_yaml: str,
    notes: Sequence[str],
) -> None:
    """Writes the report under a temporary name beside `path` and renames it, so no half file is ever there.

    `summary` holds what stands in summary.json; unknown keys are shown too. `evaluation` is what
    `classification_metrics` gives (`per_class` in the order of the confusion's rows), plus `split` (its name) and, for
    the reliability diagram, `probabilities` [N,C] in [0,1] (after the temperature) and `labels` [N]; without them the
    page says that there is no diagram. `mistakes` are (image [H,W] or [H,W,D] as uint8 or floats in [0,1], truth,
    prediction, probability of the prediction, name); the 24 with the highest probability are shown. All text is
    escaped. Raises OSError where the file can't be written, KeyError for an evaluation that lacks a key, UserError as
    `reliability_bins` and ValueError as `plots.photo` do.
    """
    sections = [
        _headline(evaluation),
        _facts(summary),
        _curves(metrics_rows),
        _confusion(evaluation),
        _per_class(evaluation),
        _reliability(evaluation),
        _mistakes(mistakes, evaluation),
        _notes(notes),
        _configuration(config_yaml),
    ]
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections])
    head = f"{_HEAD}\n<title>{escape(title)}</title>\n<style>{_CSS}</style>"
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body><main>\n{body}\n</main></body>\n</html>\n'
    )
    _replace(Path(path), page.encode("utf-8", "xmlcharrefreplace"))  # a name may hold half a surrogate pair


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def percent(share: float) -> str:
    """A fraction as a percentage with one digit, or with more where one digit would make it a false 0 or 100."""
    for digits in range(1, 6):
        text = f"{100 * share:.{digits}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            return text
    return repr(100 * share)


def _headline(evaluation: Mapping[str, Any]) -> str:
    top1, count, (low, high) = evaluation["top1"], evaluation["count"], evaluation["top1_interval"]
    more = [f"{_wrong(evaluation):,} wrong"]
    if "top5" in evaluation:
        more.append(f"the right class is among the first five guesses for {percent(evaluation['top5'])} %")
    if "loss" in evaluation:
        more.append(f"cross-entropy {evaluation['loss']:.3f} nats")
    return f"""<section class="headline">
<p><strong>{percent(top1)} %</strong> of {count:,} {escape(str(evaluation["split"]))} images right, 95 % interval
{percent(low)} to {percent(high)} %</p>
<p class="soft">{"; ".join(more)}</p>
</section>"""


def _wrong(evaluation: Mapping[str, Any]) -> int:
    return evaluation["count"] - round(evaluation["top1"] * evaluation["count"])


def _facts(summary: Mapping[str, Any]) -> str:
    order = [*(key for key in _FACTS if key in summary), *(key for key in summary if key not in _FACTS)]
    rows: list[str] = []
    for key in order:
        if key not in _IN_THE_HEADLINE and summary[key] is not None:
            label, unit = _FACTS.get(key, (key.replace("_", " ").capitalize(), ""))
            shown = percent(summary[key]) if unit == "%" else _value(summary[key])
            value = str(summary[key]) if key == "seed" else shown
            rows.append(f"<div><dt>{escape(label)}</dt><dd>{escape(value)} {unit}</dd></div>")
    return _section("Key facts", f"<dl>{''.join(rows)}</dl>" if rows else "<p>None recorded.</p>")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)


def _section(title: str, text: str) -> str:
    return f"<section><h2>{title}</h2>\n{text}\n</section>"


def _image(media: str, content: bytes, alt: str, more: str = "") -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img src="data:{media};base64,{data}" alt="{escape(alt)}"{more}>'


def _figure(svg: bytes, alt: str, kind: str = "fit") -> str:
    # A figure wider than the window can be focused, so that it scrolls by keyboard too.
    focus = ' tabindex="0"' if kind == "wide" else ""
    return f'<div class="figure {kind}"{focus}>{_image("image/svg+xml", svg, alt)}</div>'


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    figures = plots.training_curves(rows)
    if not figures:
        return _section("Training curves", "<p>No steps recorded.</p>")
    panels = "".join(_figure(svg, f"{title} over the training steps") for title, svg in figures.items())
    says = "The training loss includes label smoothing and mixing, if any; the validation loss is plain cross-entropy."
    return _section("Training curves", f'<div class="panels">{panels}</div>\n<p class="soft">{says}</p>')


def _confusion(evaluation: Mapping[str, Any]) -> str:
    classes, counts_CC = list(evaluation["per_class"]), np.asarray(evaluation["confusion"])
    mistakes_CC = counts_CC - np.diag(np.diagonal(counts_CC))
    pairs = sorted(zip(*np.nonzero(mistakes_CC), strict=True), key=lambda pair: -mistakes_CC[pair])
    rows = [
        f'<tr><td class="name">{escape(classes[i])}</td><td class="name">{escape(classes[j])}</td>'
        f"<td>{counts_CC[i, j]:,}</td></tr>"
        for i, j in pairs[:_MAX_PAIRS]
    ]
    caption = f"{len(rows)} of {len(pairs):,} pairs of classes that were confused"
    table = _table(["Truth", "Predicted", "Times"], 2, rows, caption) if rows else "<p>None.</p>"
    alt = (
        f"Confusion matrix of {len(classes)} classes, rows are the truth; the most frequent confusions are listed below"
    )
    figure = _figure(plots.confusion_matrix(counts_CC, classes), alt, "wide")
    return _section("Confusion matrix", f"{figure}\n<h3>Most frequent confusions</h3>\n{table}")


def _table(columns: Sequence[str], names: int, rows: Sequence[str], caption: str = "") -> str:
    """A table whose first `names` columns hold text."""
    marks = [' class="name"' if place < names else "" for place in range(len(columns))]
    head = "".join(f'<th{mark} scope="col">{column}</th>' for column, mark in zip(columns, marks, strict=True))
    shown, body = f"<caption>{escape(caption)}</caption>" if caption else "", "\n".join(rows)
    return f'<div class="table"><table>{shown}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _per_class(evaluation: Mapping[str, Any]) -> str:
    # Classes that nothing is known of come last: they aren't the worst.
    items = sorted(evaluation["per_class"].items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0.0))
    rows: list[str] = []
    for name, each in items:
        shares = [each[key] for key in ("f1", "precision", "recall")]
        cells = "".join(f"<td>{'–' if share is None else percent(share)}</td>" for share in shares)
        rows.append(f'<tr><th class="name" scope="row">{escape(name)}</th>{cells}<td>{each["count"]:,}</td></tr>')
    columns = ["Class", "F1 %", "Precision %", "Recall %", "Images"]
    text = _table(columns, 1, rows[:_MAX_ROWS], _TABLE_CAPTION)
    if rows[_MAX_ROWS:]:
        rest = _table(columns, 1, rows[_MAX_ROWS:])
        text += f"\n<details><summary>The other {len(rows) - _MAX_ROWS:,} classes</summary>\n{rest}</details>"
    return _section("Classes, worst first", text)


def _reliability(evaluation: Mapping[str, Any]) -> str:
    ece, before = evaluation["ece"], evaluation.get("ece_uncalibrated")
    says = f"Expected calibration error (ECE): <b>{percent(ece)} %</b>, the mean distance of confidence from accuracy"
    says += f"; {percent(before)} % before temperature scaling." if before is not None and before != ece else "."
    if evaluation.get("probabilities") is None or evaluation.get("labels") is None:
        figure = "<p>The probabilities weren't kept, so there is no diagram.</p>"
    else:
        svg = plots.reliability_diagram(reliability_bins(evaluation["probabilities"], evaluation["labels"]))
        alt = f"Reliability diagram: accuracy over confidence, and the images in each bin; ECE {percent(ece)} %"
        figure = _figure(svg, alt)
    return _section("Reliability", f"<p>{says}</p>\n{figure}")


def _mistakes(mistakes: Sequence[Mistake], evaluation: Mapping[str, Any]) -> str:
    if not mistakes:
        says = "No images of mistakes were kept." if _wrong(evaluation) else "There are none."
        return _section("Worst mistakes", f"<p>{says}</p>")
    worst = sorted(mistakes, key=lambda mistake: -mistake[3])[:_MAX_MISTAKES]
    says = f"{len(worst)} of {max(_wrong(evaluation), len(mistakes)):,} mistakes, the surest first."
    figures = "\n".join(_mistake(*mistake) for mistake in worst)
    return _section("Worst mistakes", f'<p>{says}</p>\n<div class="mistakes">\n{figures}\n</div>')


def _mistake(image: NDArray[Any], truth: str, prediction: str, probability: float, name: str) -> str:
    media, content, (width, height) = plots.photo(image)
    more = f' width="{width}" height="{height}"' + (' class="pixels"' if max(width, height) <= 64 else "")
    picture = _image(media, content, f"Image {name}: {truth}, taken for {prediction}", more)
    words = f"<b>{escape(truth)}</b> taken for <b>{escape(prediction)}</b>, {percent(probability)}&nbsp;% sure"
    return f'<figure>{picture}<figcaption>{words}<span class="soft">{escape(name)}</span></figcaption></figure>'


def _notes(notes: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return _section("Notes from the data", f"<ul>{items}</ul>" if notes else "<p>Nothing to note.</p>")


def _configuration(config_yaml: str) -> str:
    lines = len(config_yaml.splitlines())
    text = (
        f"<details><summary>Show all {lines} lines</summary>\n<pre><code>{escape(config_yaml)}</code></pre></details>"
    )
    return _section("Configuration", text)
