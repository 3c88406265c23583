"""The planned memory of a training step beside the peak that CUDA's allocator sees. Not measured yet.

    python benchmarks/memory.py save=benchmarks/results/memory.json

For each model, precision and checkpointing one run of three steps (AdamW); the goal is a ratio within 10 % of 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from vitral.config import parse_yaml, split_words
from vitral.models.create import create_model
from vitral.optim.master_weights import ComputeCopy
from vitral.training.memory_estimate import model_job, predict, show_bytes

MODELS = {"vit_small_patch16_224": 256, "vit_base_patch16_224": 128, "vit_large_patch16_224": 64}


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = {"save": None, **{key: parse_yaml(value) for key, value in pairs.items()}}
    if not torch.cuda.is_available():
        sys.exit("this needs CUDA")
    results: list[dict[str, Any]] = []
    for name, batch in MODELS.items():
        for precision in ("float32", "bfloat16", "bfloat16_params"):
            for share in (0.0, 0.5, 1.0):
                results.append(measure(name, batch, precision, share))
                row = results[-1]
                print(f"{name:<24} {precision:<16} {row['checkpointing']:>3} blocks twice ", end="")
                print(f"{show_bytes(row['planned']):>9} {show_bytes(row['peak']):>9} {row['ratio']:.3f}", flush=True)
    if options["save"]:
        text = json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=2)
        Path(options["save"]).write_text(text + "\n", encoding="utf-8")


def measure(name: str, batch: int, precision: Any, share: float) -> dict[str, Any]:
    """Bytes planned and bytes allocated at most, in three steps."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = create_model(name, pool="avg").cuda().train()
    blocks = round(share * model.config.block_count)
    model.checkpointed = blocks
    compute_copy = ComputeCopy(model) if precision == "bfloat16_params" else None
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images_BCHW = torch.rand(batch, 3, *model.config.image_size, device="cuda")
    labels_B = torch.zeros(batch, dtype=torch.long, device="cuda")
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            logits_BC = (model if compute_copy is None else compute_copy.module)(images_BCHW)
        torch.nn.functional.cross_entropy(logits_BC.float(), labels_B).backward()
        if compute_copy is not None:
            compute_copy.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if compute_copy is not None:
            compute_copy.refresh()
    parts = predict(model_job(model.config, batch, precision, device="cuda"), batch, blocks)
    planned = sum(parts) - parts.images // 2  # these images are not augmented
    peak = torch.cuda.max_memory_allocated() - before
    return {
        "model": name, "batch": batch, "precision": precision, "activation_checkpointing": blocks, "planned": planned,
        "peak": peak, "ratio": planned / peak,
    }  # fmt: skip


if __name__ == "__main__":
    main()
