"""Accuracy over labels per class: semi-supervised recipes beside the labels alone, on the same draws of labels.

    python benchmarks/few_labels.py
    python benchmarks/few_labels.py labels=4 methods=supervised,vat seeds=0,1,2 save=benchmarks/results/few_labels.json
    python benchmarks/few_labels.py rounds=0 save=benchmarks/results/few_labels.json picture=docs/images/few-labels.svg

Each run is `vitral train` on the digits: a method, its keys, labels per class, and a seed, which draws labels, weights
and order. Test accuracy is that of the last weights on the 360 official test images, which choose nothing; "supervised"
has the same number of steps of labeled images, and `lr` gives it other rates. Runs whose row is in the file `save`
are not repeated, so a stopped benchmark continues; `rounds=0` runs nothing. Printed as a Markdown table: mean, standard
deviation and range over seeds. `picture`: an SVG file to write, with the range as bars.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import vitral
from vitral.atomic_files import write_json
from vitral.config import parse_yaml, split_words
from vitral.report.plots import accuracy_over_labels
from vitral.version import __version__

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("digits", {"train.steps": 1200, "train.batch_size": 32, "data.validation": "none"}),
    "vat": ("digits_vat", {}),
    "fixmatch": ("digits_fixmatch", {}),
    "mean_teacher": ("digits_mean_teacher", {}),
}
DEFAULTS: dict[str, Any] = {
    "methods": list(METHODS), "labels": [4], "seeds": [0, 1, 2], "lr": 3e-3, "rounds": 1, "threads": 1, "save": None,
    "picture": None,
}  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = DEFAULTS | {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    path = Path(options["save"]) if options["save"] else None
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["results"] if path and path.exists() else []
    known = {identity(row) for row in rows}
    wanted = [
        {"method": method, "labels_per_class": labels, "seed": seed, "lr": options["lr"]}
        for labels in listed(options["labels"])
        for method in listed(options["methods"])
        for seed in listed(options["seeds"])
    ]
    for each in wanted if options["rounds"] else []:
        if identity(each) not in known:
            rows.append({**each, **measure(each)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if path:
                write_json(path, {"environment": environment(), "results": rows})
    print(table(rows))
    if options["picture"]:
        Path(options["picture"]).write_bytes(accuracy_over_labels(curves(rows)))


def environment() -> dict[str, Any]:
    return {
        "vitral": __version__, "torch": str(torch.__version__), "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def listed(value: Any) -> list[Any]:
    """A value, or several with commas, as a list."""
    if isinstance(value, str):
        return [parse_yaml(part) for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def identity(row: Row) -> tuple[Any, ...]:
    return row["method"], row["labels_per_class"], row["seed"], row["lr"]


def measure(row: Row) -> Row:
    """Train once; test accuracy, accuracy of pseudo-labels, and time."""
    recipe, keys = METHODS[row["method"]]
    amount = "data.shots" if row["method"] == "supervised" else "data.labels_per_class"
    keys = {**keys, amount: row["labels_per_class"], "optim.lr": row["lr"], "seed": row["seed"], "report": False}
    start, processor, load = time.time(), time.process_time(), os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        found = vitral.train(recipe, keys, out=Path(folder) / "run")
    return {
        "top1": found["top1"], "pseudo_right": found.get("pseudo_right"), "steps": found["steps"],
        "processor_seconds": round(time.process_time() - processor, 1), "seconds": round(time.time() - start, 1),
        "load": round(load, 1),
    }  # fmt: skip


def grouped(rows: list[Row]) -> dict[tuple[str, int, float], list[float]]:
    """Accuracies of all seeds by method, labels per class and rate."""
    found: dict[tuple[str, int, float], list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["labels_per_class"], list(METHODS).index(row["method"]), row["lr"])):
        found.setdefault((row["method"], row["labels_per_class"], row["lr"]), []).append(row["top1"])
    return found


def table(rows: list[Row]) -> str:
    lines = ["| labels per class | method | lr | n | mean, % | sd | range, % |", "|---|---|---|---|---|---|---|"]
    for (method, labels, lr), values in grouped(rows).items():
        spread = f"{100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        low, high = (f"{100 * end:.2f}" for end in (min(values), max(values)))
        mean = f"{100 * statistics.mean(values):.2f}"
        lines.append(f"| {labels} | {method} | {lr:g} | {len(values)} | {mean} | {spread} | {low} to {high} |")
    return "\n".join(lines)


def curves(rows: list[Row]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Of each method, by labels per class, mean and range at its best rate."""
    best: dict[tuple[str, int], list[float]] = {}
    for (method, labels, _), values in grouped(rows).items():
        before = best.get((method, labels))
        if before is None or (len(values), statistics.mean(values)) > (len(before), statistics.mean(before)):
            best[method, labels] = values
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for (method, labels), values in best.items():
        found.setdefault(method, []).append((labels, statistics.mean(values), min(values), max(values)))
    return found


if __name__ == "__main__":
    main()
