"""Steps of semi-supervised and adversarial objectives beside the supervised step on the same labeled images.

    python benchmarks/objectives.py
    python benchmarks/objectives.py rows=vat clock=processor save=benchmarks/results/objectives_semi_supervised.json

All kinds take turns in one process, in an order that turns with the rounds. A step is forward, loss, backward, clipping
and AdamW, on `batch` labeled images and `ratio` times as many unlabeled ones, of random pixels. Printed for each kind:
the quartiles of its time over that of the supervised step. With ratio=1, an image that is labeled costs 3 units
(forward 1, backward 2), and an unlabeled one with VAT 6: prediction 1, power iteration 2, changed image 3; so VAT is
expected at 3 supervised steps. A step of an attack costs 2, so PGD of k steps is expected at (2 k + 3) / 3.
clock=processor is for a machine that is busy with something else.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train import environment

from vitral.config import build, parse_yaml, split_words
from vitral.data.config import UNLABELED, AugmentConfig
from vitral.models.create import create_model
from vitral.objectives.adversarial_config import AdversarialConfig
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.objectives.semi_supervised_config import (
    ConsistencyConfig,
    FixMatchConfig,
    MeanTeacherConfig,
    PseudoLabelConfig,
    SemiViTConfig,
    VATConfig,
)
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import STREAM_SPAN, Batch, View
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.train_state import Progress, TrainState

Step = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
STEPS = 10_000  # of the run: these steps are its last ones, at the full weight
ROWS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "supervised": (SupervisedConfig, {}),
    "fgsm": (AdversarialConfig, {"attack": {"kind": "fgsm"}}),
    "fgsm, half clean": (AdversarialConfig, {"attack": {"kind": "fgsm"}, "clean_weight": 0.5}),
    "pgd, 3 steps": (AdversarialConfig, {"attack": {"kind": "pgd", "steps": 3}}),
    "pgd, 7 steps": (AdversarialConfig, {"attack": {"kind": "pgd", "steps": 7}}),
    "embedding_fgm, half clean": (AdversarialConfig, {"attack": {"kind": "embedding_fgm"}, "clean_weight": 0.5}),
    "vat": (VATConfig, {}),
    "vat, 2 power iterations": (VATConfig, {"power_iterations": 2}),
    "vat, entropy": (VATConfig, {"entropy_weight": 1.0}),
    "consistency": (ConsistencyConfig, {}),
    "mean_teacher": (MeanTeacherConfig, {}),
    "pseudo_label": (PseudoLabelConfig, {}),
    "fixmatch": (FixMatchConfig, {}),
    "fixmatch, teacher=self": (FixMatchConfig, {"teacher": "self"}),
    "semi_vit": (SemiViTConfig, {}),
}
DEFAULTS: dict[str, Any] = {
    "rounds": 15, "threads": 1, "clock": "wall", "rows": "", "ratio": 1, "batch": 32, "model": "vit_tiny_patch4_32",
    "save": None,
}  # fmt: skip


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = DEFAULTS | {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    names = [name for name in ROWS if name == "supervised" or re.search(str(options["rows"]), name)]
    steps = {name: step_of(name, options) for name in names}
    for step in steps.values():  # memory is taken, kernels are chosen
        step()
    times: dict[str, list[float]] = {name: [] for name in names}
    loads, clock = [os.getloadavg()[0]], CLOCKS[options["clock"]]
    for turn in range(options["rounds"]):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            steps[name]()
            times[name].append(clock() - start)
    loads.append(os.getloadavg()[0])
    results = [row(name, times) for name in names]
    for each in results:
        low, middle, high = each["ratio_quartiles"]
        print(f"{each['row']:<26} {each['median_ms']:>9.1f} ms   {middle:.2f} [{low:.2f}, {high:.2f}]")
    if options["save"]:
        found = {"environment": environment(), "options": options, "load": loads, "results": results}
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def row(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Median of a kind, and quartiles of its time over the supervised step of the same round."""
    ratios = [mine / plain for mine, plain in zip(times[name], times["supervised"], strict=True)]
    return {
        "row": name, "median_ms": round(1000 * statistics.median(times[name]), 2),
        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)],
    }  # fmt: skip


def step_of(name: str, options: dict[str, Any]) -> Step:
    """One weight update at the end of a run of this kind."""
    kind, keys = ROWS[name]
    torch.manual_seed(0)
    config = build(kind, {"kind": kind.model_fields["kind"].annotation.__args__[0], **keys})
    objective = OBJECTIVES[config.kind](
        lambda: create_model(options["model"], num_classes=10), config, ObjectiveContext(STEPS)
    ).train()
    state = TrainState(objective, make_optimizer(objective, OptimConfig()), None, Progress(step=STEPS - 1))
    train, optim, size = TrainConfig(batch_size=options["batch"]), OptimConfig(), objective.model.config.image_size
    batches: dict[str, Batch] = {}
    for stream, views in config.views(AugmentConfig(), size, 4).items():
        count = options["batch"] * (options["ratio"] if stream == UNLABELED else 1)
        shown = tuple(View(torch.rand(count, 3, *size), torch.eye(3).expand(count, 3, 3)) for _ in views)
        targets = {} if stream == UNLABELED else {"label": torch.arange(count) % 10}
        batches[stream] = Batch(shown, targets, torch.arange(count) + STREAM_SPAN * (stream == UNLABELED))
    guard = NonFiniteGuard(state, lambda _: batches, Path(), train)
    return lambda: train_step(state, objective, batches, train, optim, guard)


if __name__ == "__main__":
    main()
