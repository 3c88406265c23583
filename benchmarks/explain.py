"""What attention maps cost: a forward pass that keeps none, one layer's, all layers'.

    python benchmarks/explain.py
    python benchmarks/explain.py rounds=31 threads=2 batch=8 save=benchmarks/results/explain.json

ViT-S/16 with random weights, 224 pixels, float32, no gradients. Patches are encoded without capturing anything (fused
attention in every layer), capturing the map of one layer in the middle, and of all layers; the encoded tokens must
agree to 1e-4. They take turns, the order turns with the rounds, after a round that is not counted. Printed as JSON:
seconds, and quartiles of the ratio of each round to the pass without maps (goals: 1.05 for one layer, 1.25 for all).
Processor seconds are summed over the threads, and tell where other work disturbed a round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vitral.config import parse_yaml, split_words
from vitral.interpret.attention import map_name
from vitral.models.create import create_model
from vitral.models.vit import VisionTransformer
from vitral.version import __version__

BASE = "no maps"


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {
        "model": "vit_small_patch16_224", "rounds": 15, "threads": 2, "batch": 8, "save": None
    }  # fmt: skip
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    found = {"environment": environment(), **measure(options["model"], options["rounds"], options["batch"])}
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


@torch.inference_mode()
def measure(name: str, rounds: int, batch: int) -> dict[str, Any]:
    """Seconds of every contestant, each in turn."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=0).eval()
    assert isinstance(model, VisionTransformer)
    patches_BND, grid = model.embed(torch.rand(batch, model.config.in_channels, *model.config.image_size))
    depth = model.config.depth
    captures = {
        BASE: (), "one layer": (map_name(depth // 2),), "all layers": tuple(map_name(layer) for layer in range(depth))
    }  # fmt: skip
    expected_BND = model.encode_tokens(patches_BND, grid).patches_BND
    for capture in captures.values():  # the warm-up, too
        found_BND = model.encode_tokens(patches_BND, grid, capture=capture).patches_BND
        assert (found_BND - expected_BND).abs().max() < 1e-4
    names = list(captures)
    seconds: dict[str, list[float]] = {each: [] for each in names}
    processor_seconds: dict[str, list[float]] = {each: [] for each in names}
    for turn in range(rounds):
        for each in names[turn % len(names) :] + names[: turn % len(names)]:
            start, start_processor = time.perf_counter(), time.process_time()
            model.encode_tokens(patches_BND, grid, capture=captures[each])
            seconds[each].append(round(time.perf_counter() - start, 5))
            processor_seconds[each].append(round(time.process_time() - start_processor, 5))
    return {
        "model": name, "batch": batch, "rounds": rounds, "load": round(os.getloadavg()[0], 2),
        "ratio_quartiles": quartiles(seconds), "processor_ratio_quartiles": quartiles(processor_seconds),
        "seconds": seconds, "processor_seconds": processor_seconds,
    }  # fmt: skip


def quartiles(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of each contestant's time over that of the pass without maps, round by round."""
    found: dict[str, list[float]] = {}
    for each in seconds:
        if each != BASE and len(seconds[each]) > 1:
            ratios = [one / base for one, base in zip(seconds[each], seconds[BASE], strict=True)]
            found[each] = [round(q, 3) for q in statistics.quantiles(ratios, n=4)]
    return found


def environment() -> dict[str, Any]:
    """Versions and machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {
        "vitral": __version__, "torch": str(torch.__version__), "python": platform.python_version(),
        "processor": processor, "threads": torch.get_num_threads(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
