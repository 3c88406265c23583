"""A BiT ResNet-50x1 on a CPU: ours beside timm's, taking turns in one process.

    python benchmarks/cpu_resnet.py                      # needs python tools/install.py -e ".[bench]"
    python benchmarks/cpu_resnet.py rounds=30 threads=1

Both have the same weights, and their first outputs must agree to 1e-4. Each line gives the medians in milliseconds and
the median over the rounds of timm's time / our time, with its quartiles: above 1 we are faster.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.models.config import ResNetConfig
from vitral.models.resnet import ResNet
from vitral.models.resnet_presets import RESNETS


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = {"rounds": 15, "threads": 2, **{key: parse_yaml(value) for key, value in pairs.items()}}
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    ours = ResNet(ResNetConfig.model_validate(RESNETS["resnetv2_50x1_bit"]))
    theirs = load_oracle("timm").create_model("resnetv2_50x1_bit")
    ours.load_state_dict(theirs.state_dict())
    for batch, training in ((1, False), (8, False), (8, True)):
        images = torch.rand(batch, 3, 224, 224)
        steps = [step(ours, images, training), step(theirs, (images - 0.5) / 0.5, training)]
        first = [run() for run in steps]
        assert (first[0] - first[1]).abs().max() < 1e-4, "not the same function"
        print(f"batch {batch}, {'forward and backward' if training else 'forward'}: {turns(steps, options['rounds'])}")


def step(model: nn.Module, images_BCHW: Tensor, training: bool) -> Callable[[], Tensor]:
    """The logits of a batch; in training, the gradients of their mean square too."""

    def run() -> Tensor:
        with torch.set_grad_enabled(training):
            logits_BS = model.train(training)(images_BCHW)
            if training:
                model.zero_grad()
                logits_BS.square().mean().backward()
        return logits_BS.detach()

    return run


def turns(steps: list[Callable[[], Tensor]], rounds: int) -> str:
    """Medians and ratio of two steps that take turns, each going first every other round."""
    times: list[list[float]] = [[], []]
    for turn in range(rounds):
        for which in (turn % 2, 1 - turn % 2):
            start = time.perf_counter()
            steps[which]()
            times[which].append(1000 * (time.perf_counter() - start))
    low, middle, high = statistics.quantiles([b / a for a, b in zip(*times, strict=True)], n=4)
    ours, theirs = (statistics.median(values) for values in times)
    return f"ours {ours:.0f} ms, timm {theirs:.0f} ms, ratio {middle:.2f} [{low:.2f}, {high:.2f}], n = {rounds}"


if __name__ == "__main__":
    main()
