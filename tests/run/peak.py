"""Prints the bytes that two training steps take of this process, and those that are predicted: OBJECTIVE BLOCKS."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from vitral.models.create import build_model
from vitral.models.model import ImageModel
from vitral.models.presets import resolve
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.optim.optimizer import make_optimizer
from vitral.run.config import load_config
from vitral.run.fit_memory import make_job
from vitral.structs import Batch, View
from vitral.training.memory_estimate import predict

SAMPLES = 32


def resident() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def warm_up() -> None:
    """What torch loads and allocates once."""
    model = build_model(resolve("vit_micro_patch2_8"))
    model.checkpointed = 1
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    torch.nn.functional.cross_entropy(
        model.train()(torch.rand(2, 3, 8, 8)), torch.zeros(2, dtype=torch.long)
    ).backward()
    optimizer.step()


def main(objective: dict[str, Any], checkpointed: int) -> tuple[int, int]:
    """Bytes at the peak more than before, and as predicted."""
    pruned, labeled = objective["kind"] == "dynamic_vit", objective["kind"] in ("dynamic_vit", "supervised")
    keys = {"precision": "float32", "train.ema": None, "train.batch_size": SAMPLES, "objective": objective}
    config = load_config("digits", keys | ({"init": "any", "init_head": True} if pruned else {}))
    options: dict[str, Any] = {"pruner_blocks": (1, 2)} if pruned else {}
    model = resolve("vit_tiny_patch16_224", image_size=112, depth=6, num_classes=10 * labeled, **options)
    predicted = sum(predict(make_job(config, model, torch.device("cpu"), 0), SAMPLES, checkpointed))

    def build() -> ImageModel:
        built = build_model(model)
        built.checkpointed = checkpointed
        return built

    warm_up()
    before = resident()
    real = OBJECTIVES[config.objective.kind](build, config.objective, ObjectiveContext(1000)).train()
    optimizer = make_optimizer(real, config.optim)
    loaded = torch.rand(SAMPLES, 3, *model.image_size)
    shown = config.objective.views(config.augment, model.image_size, model.stride)["train"]
    sizes = [view.size for view in shown]
    views = tuple(View(torch.rand(SAMPLES, 3, *size), torch.eye(3).expand(SAMPLES, 3, 3)) for size in sizes)
    batches = {"train": Batch(views, {"label": torch.arange(SAMPLES) % 10}, torch.arange(len(loaded)))}
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peaks.append(max(peaks[-1], resident()))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        real(batches, 999).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    done.set()
    watcher.join()
    return peaks[-1] - before, predicted


if __name__ == "__main__":
    print(*main(json.loads(sys.argv[1]), int(sys.argv[2])))
