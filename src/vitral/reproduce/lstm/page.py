"""The comparison as sections of a page and of the terminal, with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitral.errors import plural
from vitral.report.sections import Bullets, Figure, Note, Section, Table

Found = Mapping[str, Any]
_WHERE = frozenset({"report", "console"})
_TITLES = {
    "accuracy": "Accuracy over time and length", "gradients": "Gradients over distance", "speed": "Time over length",
    "masks": "Masks", "scale": "Scale of the scores", "positions": "Positions", "heads": "Heads",
}  # fmt: skip
_EFFECTS = ("masks", "scale", "positions", "heads")


def figures(found: Found) -> dict[str, Figure]:
    """The pictures of the parts that there are, by name."""
    from vitral.report import sequence_plots as plots

    results, drawn = found["results"], dict[str, Figure]()

    def add(name: str, content: bytes, alt: str) -> None:
        drawn[name] = Figure(content, alt, wide=True, name=f"{name}.svg")

    if "accuracy" in results:
        own = results["accuracy"]
        symbol = "phoneme" if own["data"] == "pronounce" else "character"
        add("learning", plots.learning_curves(own["rows"], symbol), "Errors of each model over processor time")
        rates = {"error_rate": f"errors per {symbol}", "exact_match": "texts without error"}
        add("length", plots.over_length(own["rows"], rates), "Errors of each model by the length of the text")
        copied = {"token_accuracy": "next tokens right, given the true text", "error_rate": "errors per character"}
        add("copy", plots.over_length(own["copy"], copied), "Copied texts by length")
    if "gradients" in results:
        add("gradients", plots.gradient_curves(results["gradients"]["rows"]), "Gradient norms over distance")
    if "speed" in results:
        add("speed", plots.speed_curves(results["speed"]["rows"]), "Processor time over length")
    effects = {name: results[name]["rows"] for name in _EFFECTS if name in results}
    if effects:
        add("effects", plots.effect_bars(effects), "Accuracy of changed Transformers")
    return drawn


def sections(found: Found, drawn: Mapping[str, Figure]) -> list[Section]:
    """One section per part: table, figures, and each claim with its verdict and rule."""
    tables = {"accuracy": _accuracy, "gradients": _gradients, "speed": _speed}
    pictures = {"accuracy": ("learning", "length", "copy"), "gradients": ("gradients",), "speed": ("speed",)}
    results, parts = found["results"], list[Section]()
    last = [name for name in _EFFECTS if name in results][-1:]
    for name, own in results.items():
        shown = pictures.get(name, ("effects",) if name in last else ())
        claims = [_claim_text(each) for each in own["claims"]]
        made = tables[name](own) if name in tables else [_effects(own, found["steps"])]
        parts.append(
            Section(_TITLES[name], [*made, *(drawn[each] for each in shown if each in drawn), Bullets(claims)], _WHERE)
        )
    about = f"{found['seeds']} seeds per row, mean ± standard deviation. Times are those of the processor."
    return [Section("", [Note(about)], _WHERE), *parts]


def _claim_text(claim: Found) -> str:
    best = f" Fewest errors: {claim['fewest_errors']}." if "fewest_errors" in claim else ""
    return f"{claim['verdict']}: {claim['claim']}.{best} Rule: it holds if {claim['rule']}."


def _share(row: Found, key: str) -> str:
    return f"{100 * row[f'{key}_mean']:.1f} ± {100 * row[f'{key}_std']:.1f}"


def _accuracy(own: Found) -> list[Any]:
    seconds, at_time = own["equal_seconds"], own["errors_at_equal_seconds"]
    symbol = "phoneme" if own["data"] == "pronounce" else "character"
    rows = [
        [row["model"], row["parameters"], f"{np.mean(row['seconds']):.1f}", _share(at_time[row["model"]] | {
            f"error_rate_{part}": at_time[row["model"]][part] for part in ("mean", "std")}, "error_rate"),
         *(_share(row, key) for key in ("error_rate", "exact_match"))]
        for row in own["rows"]
    ]  # fmt: skip
    columns = ["Model", "Parameters", "Seconds", f"Errors per {symbol} at {seconds:.3g} s, %", "At the end, %",
               "Exact matches, %"]  # fmt: skip
    lengths = [f"{part['shortest']}-{part['longest']}" for part in own["copy"][0]["by_length"][0]]
    copied = [
        [row["model"], row["parameters"], *(f"{100 * value:.1f}" for value in _by_length(row, "token_accuracy")),
         _share(row, "exact_match")]
        for row in own["copy"]
    ]  # fmt: skip
    return [
        Table(columns, rows, caption=f"Texts: {own['note']}; {own['rows'][0]['count']} test texts."),
        Table(["Model", "Parameters", *(f"Tokens right, length {name}, %" for name in lengths), "Exact matches, %"],
              copied, caption="Texts to copy; tokens with teacher forcing."),
    ]  # fmt: skip


def _by_length(row: Found, key: str) -> Sequence[float]:
    return np.mean([[part[key] for part in run] for run in row["by_length"]], axis=0).tolist()


def _gradients(own: Found) -> list[Any]:
    rows: list[list[Any]] = []
    for row in own["rows"]:
        cells: list[Any] = [row["model"], row["parameters"]]
        for when in ("start", "trained"):
            reach = np.array(row[when])
            cells += [f"{row[f'{when}_factor_mean']:.3f} ± {row[f'{when}_factor_std']:.3f}",
                      f"{np.exp(np.log(np.maximum(reach[:, -1], 1e-300)).mean()):.1e}"]  # fmt: skip
        rows.append(cells)
    longest = len(own["rows"][0]["start"][0]) - 1
    columns = ["Model", "Parameters", "Factor per step, at the start", f"Norm at distance {longest}",
               "Factor per step, trained", f"Norm at distance {longest}, trained"]  # fmt: skip
    return [Table(columns, rows)]


def _speed(own: Found) -> list[Any]:
    names = list(own["rows"][0]["seconds"])
    rows = [
        [str(row["length"]), *(f"{1000 * np.median(row['seconds'][name]):.2f}" for name in names),
         *(_ratio(row[key]) for key in ("train_ratio", "decode_ratio", "cache_ratio"))]
        for row in own["rows"]
    ]  # fmt: skip
    columns = ["Tokens", *(f"{name}, ms" for name in names), "LSTM / Transformer, train", "LSTM / Transformer, decode",
               "Uncached / cached"]  # fmt: skip
    rounds = len(own["rows"][0]["train_ratio"])
    how = f"{rounds} rounds in turns, ratios with quartiles; 8 texts, {plural(own['threads'], 'thread')}"
    note = (
        "A recurrence over T tokens is T steps in a row; a layer of the Transformer computes all tokens together. One "
        "core shows the work of both, not what many cores or a GPU gain from the second."
    )
    return [Table(columns, rows, caption=f"Medians of {how}; decode and uncached: per token."), Note(note)]


def _ratio(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _effects(own: Found, steps: int) -> Table:
    rows = [
        [row["model"], *(f"{row[f'{key}_mean']:.3f} ± {row[f'{key}_std']:.3f}" for key in ("train_loss", "nll")),
         *(_share(row, key) for key in ("token_accuracy", "exact_match", "batch_changes"))]
        for row in own["rows"]
    ]  # fmt: skip
    columns = ["Transformer", "Train loss, mean of the run", "Test loss, nats", "Tokens right, %", "Exact matches, %",
               "Texts that the batch changes, %"]  # fmt: skip
    caption = (
        f"Texts of 4 to 12 symbols to reverse, {steps} steps. The train loss has label smoothing. Test loss and right "
        "tokens: each next token, given the true ones before it. Exact matches: texts that the model writes."
    )
    return Table(columns, rows, caption=caption)
