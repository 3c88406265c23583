"""RandAugment(2, 9) of 512 RGB images of 32 x 32 on a CPU: ours and kornia's as a batch, torchvision v2's one by one.

    python benchmarks/augment.py                        # needs python tools/install.py -e ".[bench]"
    python benchmarks/augment.py rounds=60 threads=1 save=benchmarks/results/augment.json

All take turns in one process; the order turns with the rounds, and every round has new draws. Ours and torchvision's
get uint8, as decoded images are, kornia's the float32 it wants; all give float32 in [0,1]. kornia picks its operations
once for the whole batch, so its times differ from round to round: the ratio of all time spent is given beside the
median of the rounds, with quartiles. Above 1 we are faster. Both interpolations are shown, with
torchvision's set to the same; kornia's is always bilinear.
"""

from __future__ import annotations

import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.data.augment import augment
from vitral.data.config import AugmentConfig
from vitral.version import __version__

SIZE = (512, 3, 32, 32)
Run = Callable[[int], Tensor]


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {"rounds": 30, "threads": 1, "save": None, **{k: parse_yaml(v) for k, v in pairs.items()}}
    torch.set_num_threads(options["threads"])
    results = [measure(interpolation, options["rounds"]) for interpolation in ("bilinear", "nearest")]
    for result in results:
        print(show(result), flush=True)
    if options["save"]:
        text = json.dumps({"environment": environment(), "results": results}, indent=2)
        Path(options["save"]).parent.mkdir(parents=True, exist_ok=True)
        Path(options["save"]).write_text(text + "\n", encoding="utf-8")


def measure(interpolation: str, rounds: int) -> dict[str, Any]:
    """Times in milliseconds of every contestant, one batch each in turn."""
    runs = contestants(interpolation)
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    torch.manual_seed(0)
    for turn in range(-3, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            out = runs[name](turn + 3)
            seconds = time.perf_counter() - start
            assert out.shape == SIZE
            assert out.dtype == torch.float32
            if turn >= 0:  # the first ones warm up
                times[name].append(1000 * seconds)
    ours = times["vitral"]
    ratios = {name: [a / b for a, b in zip(times[name], ours, strict=True)] for name in names if name != "vitral"}
    return {
        "row": f"RandAugment(2, 9), 512 x 3 x 32 x 32, {interpolation}",
        "rounds": rounds,
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "ratio_quartiles": {name: statistics.quantiles(values, n=4) for name, values in ratios.items()},
        "ratio_of_sums": {name: sum(times[name]) / sum(ours) for name in ratios},
    }


def contestants(interpolation: str) -> dict[str, Run]:
    """Name to a function from the round's number to the augmented batch."""
    load_oracle("torchvision")
    load_oracle("kornia")
    transforms = importlib.import_module("torchvision.transforms.v2")
    auto = importlib.import_module("kornia.augmentation.auto")
    images_BCHW = torch.randint(0, 256, SIZE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images_BCHW = torch.nn.functional.avg_pool2d(images_BCHW.float(), 5, 1, 2).byte()  # neighbors alike, as in photos
    floats_BCHW = images_BCHW.float() / 255
    sample_ids_B = torch.arange(len(images_BCHW))
    config = AugmentConfig.model_validate({"policy": "randaugment", "interpolation": interpolation})
    theirs = transforms.RandAugment(2, 9, interpolation=transforms.InterpolationMode(interpolation))
    kornia = auto.RandAugment(n=2, m=9)
    return {
        "vitral": lambda turn: (
            augment(images_BCHW, config, 0, torch.full_like(sample_ids_B, turn), sample_ids_B).images_BCHW
        ),
        "kornia": lambda _: kornia(floats_BCHW),
        "torchvision v2 loop": lambda _: torch.stack([theirs(image) for image in images_BCHW]).float().div_(255),
    }


def show(result: dict[str, Any]) -> str:
    """One row as lines."""
    lines = [f"{result['row']}: vitral {result['median_ms']['vitral']:.1f} ms, n = {result['rounds']}"]
    for name, (low, middle, high) in result["ratio_quartiles"].items():
        total = result["ratio_of_sums"][name]
        lines.append(f"  {name} / vitral: {middle:.2f} [{low:.2f}, {high:.2f}], of all time spent {total:.2f}")
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Versions and machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "vitral": __version__, "torch": str(torch.__version__),
        **{name: load_oracle(name).__version__ for name in ("torchvision", "kornia")},
        "python": platform.python_version(), "processor": processor[0] if processor else platform.processor(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
