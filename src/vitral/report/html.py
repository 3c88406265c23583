"""The report of a run: one HTML file that needs no network, no script and no other file.

Shape letters: N samples, C classes, H W height and width, D image channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.evaluate.calibration import reliability_bins
from vitral.report import plots
from vitral.report.page import as_text, embed_image, make_table, percent, section, write_page

Mistake = tuple[NDArray[Any], str, str, float, str]

_MAX_MISTAKES = 24
_MAX_ROWS = 20  # of the per-class table before the rest is folded away
_MAX_PAIRS = 10  # of confused classes

_TABLE_CAPTION = (
    "Precision: of images predicted as this class, how many are right. Recall: of images of this class, how many are "
    "found."
    "F1: their harmonic mean. –: no image to tell from."
)

_AP_CAPTION = "AP: average precision, the area under precision over recall. The others at a probability of 0.5."

# What the summary's keys are called, and their unit.
_FACTS = {
    "recipe": ("Recipe", ""),
    "objective": ("Objective", ""),
    "model": ("Model", ""),
    "parameters": ("Parameters", ""),
    "train_seconds": ("Training time", "s"),
    "steps": ("Optimizer steps", ""),
    "epochs": ("Epochs", ""),
    "seed": ("Seed", ""),
    "best_step": ("Best checkpoint at step", ""),
    "val_top1": ("Validation top-1", "%"),
    "val_map": ("Validation mAP", "%"),
    "temperature": ("Temperature (fitted on validation data; 1: not scaled)", ""),
}
_IN_THE_HEADLINE = {
    "top1", "top1_interval", "top5", "count", "split", "ece", "ece_uncalibrated", "loss", "map", "micro_f1", "macro_f1",
    "exact_match", "exact_match_interval", "judged_by", "baseline", "baseline_class",
}  # fmt: skip


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
    `classification_metrics` or `multilabel_metrics` gives (`per_class` in the order of the confusion's rows), plus
    `split` (its name) and, for the reliability diagram, `probabilities` [N,C] in [0,1] (after the temperature) and
    `labels` [N]; without them the page says that there is no diagram. `mistakes` are (image [H,W] or [H,W,D] as uint8
    or floats in [0,1], truth, prediction, probability of the prediction, name); the 24 with the highest probability are
    shown. All text is escaped. Raises OSError where the file can't be written, KeyError for an evaluation that lacks a
    key, UserError as `reliability_bins` and ValueError as `plots.photo` do.
    """
    several = "map" in evaluation
    sections = [
        _several_headline(evaluation) if several else _headline(evaluation),
        facts(summary),
        curves(metrics_rows),
        *([] if several else [_confusion(evaluation)]),
        _per_class(evaluation),
        *([] if several else [_reliability(evaluation), _mistakes(mistakes, evaluation)]),
        notes_section(notes),
        configuration(config_yaml),
    ]
    write_page(path, title, sections)


def _headline(evaluation: Mapping[str, Any]) -> str:
    top1, count, (low, high) = evaluation["top1"], evaluation["count"], evaluation["top1_interval"]
    more = [f"{_wrong(evaluation):,} wrong"]
    if "baseline" in evaluation:
        name, share = evaluation["baseline_class"], evaluation["baseline"]
        more.append(f"always answering {escape(name)}, the commonest class, is right for {percent(share)} %")
    if "top5" in evaluation:
        more.append(f"the right class is among the first five guesses for {percent(evaluation['top5'])} %")
    if "loss" in evaluation:
        more.append(f"cross-entropy {evaluation['loss']:.3f} nats")
    return f"""<section class="headline">
<p><strong>{percent(top1)} %</strong> of {count:,} {escape(str(evaluation["split"]))} images right, 95 % interval
{percent(low)} to {percent(high)} %</p>
<p class="soft">{"; ".join(more)}</p>
</section>"""


def _several_headline(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["exact_match_interval"]
    return f"""<section class="headline">
<p><strong>{percent(evaluation["map"])} %</strong> mean average precision on {evaluation["count"]:,}
{escape(str(evaluation["split"]))} images, each with any number of classes</p>
<p class="soft">at a probability of 0.5: F1 {percent(evaluation["micro_f1"])} % over all decisions,
{percent(evaluation["macro_f1"])} % as the mean over classes; every class right in
{percent(evaluation["exact_match"])} % of the images, 95 % interval {percent(low)} to {percent(high)} %</p>
</section>"""


def _wrong(evaluation: Mapping[str, Any]) -> int:
    return evaluation["count"] - round(evaluation["top1"] * evaluation["count"])


def facts(summary: Mapping[str, Any]) -> str:
    """The key facts of a run, by summary.json."""
    order = [*(key for key in _FACTS if key in summary), *(key for key in summary if key not in _FACTS)]
    rows: list[str] = []
    for key in order:
        if key == "temperature" and "map" in summary:
            continue  # never fitted where each class has its own sigmoid
        if key not in _IN_THE_HEADLINE and summary[key] is not None:
            label, unit = _FACTS.get(key, (key.replace("_", " ").capitalize(), ""))
            shown = percent(summary[key]) if unit == "%" else as_text(summary[key])
            value = str(summary[key]) if key == "seed" else shown
            rows.append(f"<div><dt>{escape(label)}</dt><dd>{escape(value)} {unit}</dd></div>")
    return section("Key facts", f"<dl>{''.join(rows)}</dl>" if rows else "<p>None recorded.</p>")


def _figure(svg: bytes, alt: str, kind: str = "fit") -> str:
    # A figure wider than the window can be focused, so that it scrolls by keyboard too.
    focus = ' tabindex="0"' if kind == "wide" else ""
    return f'<div class="figure {kind}"{focus}>{embed_image("image/svg+xml", svg, alt)}</div>'


_SMOOTHED = "The training loss includes label smoothing and mixing, if any; the validation loss is without them."


def curves(rows: Sequence[Mapping[str, Any]], says: str = _SMOOTHED) -> str:
    """Panels over the training steps, from the rows of metrics.jsonl, and what there is to say of them."""
    figures = plots.training_curves(rows)
    if not figures:
        return section("Training curves", "<p>No steps recorded.</p>")
    panels = "".join(_figure(svg, f"{title} over the training steps") for title, svg in figures.items())
    return section("Training curves", f'<div class="panels">{panels}</div>\n<p class="soft">{says}</p>')


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
    table = make_table(["Truth", "Predicted", "Times"], 2, rows, caption) if rows else "<p>None.</p>"
    alt = (
        f"Confusion matrix of {len(classes)} classes, rows are the truth; the most frequent confusions are listed below"
    )
    figure = _figure(plots.confusion_matrix(counts_CC, classes), alt, "wide")
    return section("Confusion matrix", f"{figure}\n<h3>Most frequent confusions</h3>\n{table}")


def _per_class(evaluation: Mapping[str, Any]) -> str:
    # Classes that nothing is known of come last: they aren't the worst.
    items = sorted(evaluation["per_class"].items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0.0))
    columns, caption = {"f1": "F1 %", "precision": "Precision %", "recall": "Recall %"}, _TABLE_CAPTION
    if "map" in evaluation:
        columns, caption = {"ap": "AP %", **columns}, f"{_AP_CAPTION} {caption}"
    rows: list[str] = []
    for name, each in items:
        shares = [each[key] for key in columns]
        cells = "".join(f"<td>{'–' if share is None else percent(share)}</td>" for share in shares)
        rows.append(f'<tr><th class="name" scope="row">{escape(name)}</th>{cells}<td>{each["count"]:,}</td></tr>')
    heads = ["Class", *columns.values(), "Images"]
    text = make_table(heads, 1, rows[:_MAX_ROWS], caption)
    if rows[_MAX_ROWS:]:
        rest = make_table(heads, 1, rows[_MAX_ROWS:])
        text += f"\n<details><summary>The other {len(rows) - _MAX_ROWS:,} classes</summary>\n{rest}</details>"
    return section("Classes, worst first", text)


def _reliability(evaluation: Mapping[str, Any]) -> str:
    ece, before = evaluation["ece"], evaluation.get("ece_uncalibrated")
    says = f"Expected calibration error (ECE): <b>{percent(ece)} %</b>, the mean distance of confidence from accuracy"
    if before is not None and before != ece:
        says += f"; {percent(before)} % before temperature scaling."
        worse = "Temperature scaling helped on the validation images, but makes the error larger on these."
        says += f" <b>{worse}</b>" if ece > before else ""
    else:
        says += "."
    if evaluation.get("probabilities") is None or evaluation.get("labels") is None:
        figure = "<p>The probabilities weren't kept, so there is no diagram.</p>"
    else:
        svg = plots.reliability_diagram(reliability_bins(evaluation["probabilities"], evaluation["labels"]))
        alt = f"Reliability diagram: accuracy over confidence, and the images in each bin; ECE {percent(ece)} %"
        figure = _figure(svg, alt)
    return section("Reliability", f"<p>{says}</p>\n{figure}")


def _mistakes(mistakes: Sequence[Mistake], evaluation: Mapping[str, Any]) -> str:
    if not mistakes:
        says = "No images of mistakes were kept." if _wrong(evaluation) else "There are none."
        return section("Worst mistakes", f"<p>{says}</p>")
    worst = sorted(mistakes, key=lambda mistake: -mistake[3])[:_MAX_MISTAKES]
    says = f"{len(worst)} of {max(_wrong(evaluation), len(mistakes)):,} mistakes, the surest first."
    figures = "\n".join(_mistake(*mistake) for mistake in worst)
    return section("Worst mistakes", f'<p>{says}</p>\n<div class="mistakes">\n{figures}\n</div>')


def _mistake(image: NDArray[Any], truth: str, prediction: str, probability: float, name: str) -> str:
    media, content, (width, height) = plots.photo(image)
    more = f' width="{width}" height="{height}"' + (' class="pixels"' if max(width, height) <= 64 else "")
    picture = embed_image(media, content, f"Image {name}: {truth}, taken for {prediction}", more)
    words = f"<b>{escape(truth)}</b> taken for <b>{escape(prediction)}</b>, {percent(probability)}&nbsp;% sure"
    return f'<figure>{picture}<figcaption>{words}<span class="soft">{escape(name)}</span></figcaption></figure>'


def notes_section(notes: Sequence[str]) -> str:
    """What there is to say of the data."""
    items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    return section("Notes from the data", f"<ul>{items}</ul>" if notes else "<p>Nothing to note.</p>")


def configuration(config_yaml: str) -> str:
    """All keys, folded away."""
    lines = len(config_yaml.splitlines())
    text = (
        f"<details><summary>Show all {lines} lines</summary>\n<pre><code>{escape(config_yaml)}</code></pre></details>"
    )
    return section("Configuration", text)
