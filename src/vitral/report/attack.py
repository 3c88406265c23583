"""Sections of `vitral attack`: robust accuracy, tests of the attack, curve, classes, confidence, examples.

Shape letters: N images, K classes, C H W channels, height and width of an image, r c rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.metric import Metric, eps_text, percent
from vitral.report.sections import Facts, Figure, Note, Part, Picture, Section, Table

Array = NDArray[Any]
_BOTH, _PAGE = frozenset({"report", "console"}), frozenset({"report"})
_MAX_ROWS = 20  # of the table of classes; the rest is folded
_SIDE = 128  # pixels of a panel of an example


class Example(NamedTuple):
    """An image whose answer an attack changed: its place in the split, its class, the probabilities before and after
    [K], both images [C, H, W] in [0,1], its name, names of the classes, and the attention [r, c] before and after."""

    place: int
    label: int
    before_K: Array
    after_K: Array
    image_CHW: Array
    adversarial_CHW: Array
    name: str = ""
    classes: Sequence[str] = ()
    attention: Sequence[Array] | None = None

    def answer(self, after: int | bool) -> tuple[str, float]:
        """Return the most probable class and its probability."""
        scores_K = self.after_K if after else self.before_K
        return self.classes[int(scores_K.argmax())], float(scores_K.max())

    def row(self) -> dict[str, Any]:
        """Return the example for JSON; change: the largest of a pixel."""
        answers = {
            key: dict(zip(("label", "score"), self.answer(after), strict=True))
            for key, after in (("before", False), ("after", True))
        }
        change = float(np.abs(self.adversarial_CHW - self.image_CHW).max())
        return {"image": self.name, "label": self.classes[self.label], **answers, "change": change}


def attack_sections(
    result: Mapping[str, Any], examples: Sequence[Example], confidence: Sequence[Array]
) -> tuple[list[Section], list[Figure]]:
    """Return the sections of a result of `vitral attack`, the headline first, and all figures as files.

    confidence: probability of the answer of each image before and after the attack, [N] each.
    """
    from vitral.report.attack_plots import accuracy_over_eps, confidence_histogram

    curve = Figure(
        accuracy_over_eps(result["curve"], result["attack"]["eps"], 1 / len(result["per_class"])),
        "Accuracy over the size of the change, with its 95 % interval; the table has the numbers",
        name="accuracy.svg",
    )
    histogram = Figure(
        confidence_histogram(*confidence), "Histogram of the confidence on clean and on adversarial images",
        name="confidence.svg",
    )  # fmt: skip
    shown, sheets = _examples(result, examples)
    sections = [
        _headline(result), *_tests(result), _curve(result, curve), *_parts(result), _classes(result),
        _confidence(result, histogram), shown,
    ]  # fmt: skip
    return sections, [curve, histogram, *sheets]


def attack_text(attack: Mapping[str, Any]) -> str:
    """Describe an attack: "pgd, linf, eps 8/255"."""
    return f"{attack['kind']}, {attack['norm']}, eps {eps_text(attack['eps'])}"


def _headline(result: Mapping[str, Any]) -> Section:
    attack = result["attack"]
    count = f"{result['count']:,} {result['split']} images"
    parts: list[Part] = [
        _metric(result, "robust_top1", f"of {count} correct under {attack_text(attack)}"),
        _metric(result, "clean_top1", "Without attack"),
    ]
    keys = {key: value for key, value in attack.items() if key not in ("kind", "norm", "eps")}
    note = ", ".join(f"{key} {value}" for key, value in {**keys, "seed": result["seed"]}.items())
    if attack["kind"] == "ensemble":
        note += ". The ensemble is AutoAttack without FAB: APGD-CE, targeted APGD-DLR and Square."
    parts += [Note(note), *map(Note, result["notes"])]
    return Section("", parts, _BOTH)


def _metric(result: Mapping[str, Any], name: str, label: str) -> Metric:
    low, high = result[f"{name}_interval"]
    return Metric(name, label, result[name], (low, high))


def _tests(result: Mapping[str, Any]) -> list[Section]:
    checks = result["checks"]
    if not checks:
        return []
    failed = [check for check in checks if check["passed"] is False]
    done = sum(check["passed"] is not None for check in checks)
    words = {True: "yes", False: "no", None: "not tested"}
    rows = [(check["expects"], words[check["passed"]], check["text"]) for check in checks]
    parts: list[Part] = [Table(["Expected", "Passed", "Measured"], rows)]
    if failed:
        text = f"{len(failed)} of {done} tests failed: the real accuracy under attack is probably lower."
        parts = [text, *parts]
    else:
        parts = [f"No sign of a weak attack or of masked gradients in {done} tests.", *parts]
    return [Section("Strength of the attack", parts, _BOTH)]


def _curve(result: Mapping[str, Any], figure: Figure) -> Section:
    rows: list[list[Any]] = []
    for each in result["curve"]:
        low, high = (100 * end for end in each["robust_top1_interval"])
        numbers = (percent(each[key], 1) for key in ("mean_confidence", "ece"))
        rows.append([eps_text(each["eps"]), percent(each["robust_top1"], 1), f"{low:.1f} to {high:.1f}", *numbers])
    table = Table(["eps", "Top-1 %", "95 % interval", "Confidence %", "ECE %"], rows)
    note = Note("An image that is fooled by a small change counts as fooled for larger ones.")
    return Section("Accuracy over the size of the change", [figure, table, note], _BOTH)


def _parts(result: Mapping[str, Any]) -> list[Section]:
    """Each attack of an ensemble with what it found among the images that were left."""
    if len(result["parts"]) < 2:
        return []
    table = Table(["Attack", "Fooled"], [(part["attack"], part["fooled"]) for part in result["parts"]])
    return [Section("Attacks in a row, each on the images that are left", [table], _BOTH)]


def _classes(result: Mapping[str, Any]) -> Section:
    rows: list[list[Any]] = []
    for label, each in result["per_class"].items():
        count = each["count"]
        low, high = (100 * end for end in wilson_interval(each["robust"], count)) if count else (0, 0)
        shares = (percent(each[key] / count, 1) if count else None for key in ("clean", "robust"))
        rows.append([label, count, *shares, f"{low:.1f} to {high:.1f}" if count else None])
    rows.sort(key=lambda row: (row[3] is None, float(row[3] or 0)))
    columns = ["Class", "Images", "Correct %", "Robust %", "95 % interval"]
    return Section("Classes, least robust first", [Table(columns, rows, folded=min(_MAX_ROWS, len(rows)))], _BOTH)


def _confidence(result: Mapping[str, Any], figure: Figure) -> Section:
    clean = next(each for each in result["curve"] if each["eps"] == 0)
    attacked = next(each for each in result["curve"] if each["eps"] == result["attack"]["eps"])
    rows = [
        (f"{name}, {when}", f"{percent(each[key], 1)} %")
        for name, key in (("Mean confidence", "mean_confidence"), ("ECE", "ece"))
        for when, each in (("clean images", clean), ("adversarial images", attacked))
    ]
    return Section("Confidence", [figure, Facts(rows)], _PAGE)


def _examples(result: Mapping[str, Any], examples: Sequence[Example]) -> tuple[Section, list[Figure]]:
    from vitral.report import explain_plots as plots

    if not examples:
        return Section("Worst examples", ["The attack changed no answer."]), []
    most = max(float(np.abs(each.adversarial_CHW - each.image_CHW).max()) for each in examples)
    factor = 0.5 / most if most else 1.0
    columns, rows, sheets = ["Clean", "Change", "Adversarial"], list[list[Any]](), list[Figure]()
    has_attention = examples[0].attention is not None
    columns += ["Attention before", "Attention after"] if has_attention else []
    for number, each in enumerate(examples, 1):
        images = (
            each.image_CHW, 0.5 + factor * (each.adversarial_CHW - each.image_CHW), each.adversarial_CHW
        )  # fmt: skip
        pictures = [plots.as_picture(image.transpose(1, 2, 0)) for image in images]
        panels = [plots.enlarged(picture, _SIDE) for picture in pictures]
        if each.attention is not None:
            high = max(float(heat_rc.max()) for heat_rc in each.attention)
            panels += [
                plots.heat_panel(picture, heat_rc, _SIDE, high)
                for picture, heat_rc in zip((pictures[0], pictures[2]), each.attention, strict=True)
            ]
        (before, sure), (after, fooled) = ((name, f"{percent(score, 1)} %") for name, score in map(each.answer, (0, 1)))
        text = f"{before}, {sure}, became {after}, {fooled}"
        alts = [f"{name.lower()} of {each.name}: {text}" for name in columns]
        cells = [Picture(panel, "", alt) for panel, alt in zip(panels, alts, strict=True)]
        rows.append([f"{before} → {after}", *cells, f"{sure}, then {fooled}", each.name])
        png = plots.sheet([panels], [name.lower() for name in columns], [""], [])
        sheets.append(Figure(png, text, name=f"example-{number:02d}.png"))
    caption = (
        f"The {len(examples)} images with the most confident wrong answers. Change: times {factor:.3g}, gray is none."
    )
    if has_attention:
        caption += " Attention: of the token that the head reads, last layer, mean of the heads, one scale per image."
    return Section("Worst examples", [Table(["Answer", *columns, "Confidence", "File"], rows, caption)], _PAGE), sheets
