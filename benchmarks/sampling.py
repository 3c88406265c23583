"""Sampling of an image of 32 x 32 pixels from an Image GPT: with a cache of keys and values, and without.

    python benchmarks/sampling.py
    python benchmarks/sampling.py rounds=5 width=64 depth=4 save=benchmarks/results/sampling.json

Both draw one image of 1,024 tokens with the same keys from a model of random weights; without the cache, each step
computes all tokens so far. They take turns, the order turns with the rounds. Printed as JSON: processor seconds of each
round, and median and quartiles of uncached / cached (above 1 the cache is faster).
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitral.config import parse_yaml, split_words
from vitral.models.code_sampling import sample_codes
from vitral.models.create import create_model
from vitral.models.generate import StepModel
from vitral.models.igpt import IGPT
from vitral.models.search_config import SearchConfig
from vitral.version import __version__


class Uncached:
    """All codes so far at each step."""

    def __init__(self, model: IGPT) -> None:
        self.model = model

    def start(self, memory: Tensor, copies: int, max_length: int) -> list[Tensor]:
        return []

    def step(self, tokens_R: Tensor, state: list[Tensor]) -> Tensor:
        # The first token is the start, which `read` puts in front of the codes, and the last code is not read.
        state.append(tokens_R)
        codes_RT = torch.stack([*state[1:], torch.zeros_like(tokens_R)], dim=1)
        return self.model.code_head(self.model.read(codes_RT).patches_BND[:, -1])

    def reorder(self, state: list[Tensor], index_R: Tensor) -> None:
        raise NotImplementedError


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {"rounds": 5, "width": 64, "depth": 4, "threads": 1, "save": None}
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    width = options["width"]
    model = create_model(
        "igpt_tiny_32", num_classes=0, width=width, depth=options["depth"], heads=width // 32, mlp_dim=4 * width
    ).eval()
    assert isinstance(model, IGPT)
    torch.nn.init.normal_(model.code_head.weight, std=0.1)
    found = {"environment": environment(), "options": options, **measure(model, options["rounds"])}
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


def measure(model: IGPT, rounds: int) -> dict[str, Any]:
    ways: dict[str, StepModel | None] = {"cached": None, "uncached": Uncached(model)}
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    equal: list[float] = []
    for turn in range(rounds):
        drawn: dict[str, Tensor] = {}
        for name in names[turn % 2 :] + names[: turn % 2]:
            start = time.process_time()
            drawn[name] = sample_codes(
                model, torch.tensor([-1]), SearchConfig(search="sample", seed=turn), [0], steps=ways[name]
            )
            seconds[name].append(round(time.process_time() - start, 3))
        equal.append(float((drawn["cached"] == drawn["uncached"]).float().mean()))
    ratios = [slow / fast for slow, fast in zip(seconds["uncached"], seconds["cached"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "processor_seconds": seconds,
        "equal_tokens": equal, "uncached_over_cached": {"median": median, "quartiles": [low, high], "n": rounds},
    }  # fmt: skip


def environment() -> dict[str, Any]:
    return {
        "vitral": __version__, "torch": str(torch.__version__), "processor": platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
