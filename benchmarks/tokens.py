"""Token merging: images a second beside the work that is left, and accuracy over r.

    python benchmarks/tokens.py
    python benchmarks/tokens.py rounds=15 threads=2 save=benchmarks/results/cpu_tokens.json
    python benchmarks/tokens.py kind=accuracy model=vitral-digits picture=docs/images/fewer-tokens.svg
    python benchmarks/tokens.py kind=accuracy "others=[runs/smaller,runs/pruned]"

kind=speed: a forward pass with r tokens merged in each block and one without take turns, the order turns with the
rounds. Printed as JSON: for each r the ratio of the work (multiply-accumulates of matrix products without merging over
those with it), the quartiles of the ratio of the times, of the times' ratio over the work's ("gain": 1 is all that
fewer tokens can give), and processor seconds, which tell where other work disturbed a round.

kind=accuracy: top-1 of a model folder on its test images with r tokens merged, or with a share kept, in each block;
`others` are smaller models of the same classes. Printed as a Markdown table; `picture` is an SVG file to write.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitral.compression.config import EViTConfig, ToMeConfig
from vitral.compression.evit import EViT
from vitral.compression.tome import ToMe
from vitral.config import parse_yaml, split_words
from vitral.models.config import ViTConfig
from vitral.models.create import create_model
from vitral.models.summary import count_macs
from vitral.models.token_reduction import TokenReduction
from vitral.models.vit import VisionTransformer
from vitral.report.plots import accuracy_over_work
from vitral.run.command_options import EvalOptions
from vitral.run.evaluate import evaluate
from vitral.version import __version__
from vitral.weights.folder import find_folder, load_config

DEFAULTS: dict[str, Any] = {
    "kind": "speed", "model": None, "r": [4, 8, 13], "rounds": 3, "batch": 16, "threads": 2, "compiled": False,
    "others": [], "picture": None, "save": None,
}  # fmt: skip


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = DEFAULTS | {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    if options["kind"] == "accuracy":
        accuracy(options["model"] or "vitral-digits", options["others"], options["picture"])
        return
    found = {"environment": environment(options), **speed(options)}
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


def speed(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every setting, each in turn."""
    name = options["model"] or "vit_small_patch16_224"
    model = create_model(name).eval()
    assert isinstance(model, VisionTransformer)
    images = torch.rand(options["batch"], model.config.in_channels, *model.config.image_size)
    runs = {r: run(model, r, images, options["compiled"]) for r in (0, *options["r"])}
    seconds: dict[int, list[float]] = {r: [] for r in runs}
    processor: dict[int, list[float]] = {r: [] for r in runs}
    with torch.inference_mode():
        for forward in runs.values():
            forward()
        for turn in range(options["rounds"]):
            order = list(runs)
            for r in order[turn % len(order) :] + order[: turn % len(order)]:
                start, start_processor = time.perf_counter(), time.process_time()
                runs[r]()
                seconds[r].append(time.perf_counter() - start)
                processor[r].append(time.process_time() - start_processor)
    rows: list[dict[str, Any]] = []
    for r in options["r"]:
        work = work_ratio(model.config, ToMe(r))
        by_time, by_processor = (
            [whole / fewer for whole, fewer in zip(kind[0], kind[r], strict=True)] for kind in (seconds, processor)
        )
        rows.append(
            {
                "r": r, "work_ratio": round(work, 4), "time_ratio": quartiles(by_time),
                "gain": quartiles([ratio / work for ratio in by_time]),
                "processor_gain": quartiles([ratio / work for ratio in by_processor]),
                "images_per_second": round(options["batch"] / statistics.median(seconds[r]), 2),
            }
        )  # fmt: skip
    whole = round(options["batch"] / statistics.median(seconds[0]), 2)
    return {"model": name, "rounds": options["rounds"], "images_per_second_without": whole, "rows": rows}


def run(model: VisionTransformer, r: int, images: torch.Tensor, compiled: bool) -> Callable[[], torch.Tensor]:
    """A forward pass with r tokens merged in each block."""

    def forward() -> torch.Tensor:
        model.reduce = ToMe(r)
        return model(images)

    return torch.compile(forward, fullgraph=True) if compiled else forward


def work_ratio(config: ViTConfig, reduction: TokenReduction) -> float:
    """Multiply-accumulates without over those with it."""
    return sum(count_macs(config).values()) / sum(count_macs(config, reduce=reduction).values())


def counts(config: ViTConfig, reduction: TokenReduction) -> list[int]:
    return reduction.counts(config.grid[0] * config.grid[1], config.depth)


def quartiles(values: list[float]) -> list[float]:
    return [round(q, 3) for q in statistics.quantiles(values, n=4)]


def accuracy(model: str, others: list[str], picture: str | None) -> None:
    """Top-1 of the test images over what is left of the work."""
    config = load_config(find_folder(model)).architecture
    assert isinstance(config, ViTConfig)
    patches, whole = config.grid[0] * config.grid[1], sum(count_macs(config).values())
    settings: list[tuple[str, str, EvalOptions, TokenReduction]] = []
    for schedule in ("constant", "decreasing"):
        for r in range(patches // config.depth + 1):
            options = EvalOptions(reduce="tome", tome=ToMeConfig(r=r, schedule=schedule))
            settings.append((f"merging, {schedule} r", f"{r}", options, ToMe(r, schedule)))
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        options = EvalOptions(reduce="evit", evit=EViTConfig(share=share))
        settings.append(("keeping by attention", f"{share:g}", options, EViT(share)))
    print("| way | r or share | patch tokens | work, % | top-1, % | 95 % interval |\n|---|---|---|---|---|---|")
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for way, value, options, reduction in settings:
        found = evaluate(model, options)
        work = sum(count_macs(config, reduce=reduction).values()) / whole
        row(curves, way, value, counts(config, reduction), work, found)
    for other in others:
        architecture = load_config(find_folder(other)).architecture
        work = sum(count_macs(architecture).values()) / whole
        row(curves, Path(other).name, "", None, work, evaluate(other, EvalOptions()))
    if picture:
        shown = {way: points for way, points in curves.items() if "decreasing" not in way}
        Path(picture).write_bytes(accuracy_over_work(shown))


def row(
    curves: dict[str, list[tuple[float, float, float, float]]], way: str, value: str, left: list[int] | None,
    work: float, found: dict[str, Any],
) -> None:  # fmt: skip
    low, high = found["top1_interval"]
    curves.setdefault(way, []).append((work, found["top1"], low, high))
    tokens = "" if left is None else " ".join(map(str, left))
    print(f"| {way} | {value} | {tokens} | {100 * work:.1f} | {100 * found['top1']:.2f} |"
          f" {100 * low:.2f} to {100 * high:.2f} |")  # fmt: skip


def environment(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "vitral": __version__, "torch": str(torch.__version__), "machine": platform.machine(),
        "system": platform.system(), "threads": options["threads"], "batch": options["batch"],
        "compiled": options["compiled"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
