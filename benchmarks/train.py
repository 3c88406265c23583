"""A training step: ours beside timm's and transformers', taking turns in one process, on a CPU and on CUDA.

    python benchmarks/train.py                           # needs pip install -e ".[bench]" -c constraints/cpu.txt
    python benchmarks/train.py rounds=30 threads=1 save=benchmarks/results/cpu_train.json
    python benchmarks/train.py rows=224                  # only rows whose title has 224 in it

Rows that need CUDA are left out without it; there both sides are compiled, and the rate of a large matrix product is
measured in the same run. "lever" rows have us twice: with one thing changed, beside ourselves. A step is
forward, cross-entropy, backward, clipping to norm 1 and a fused AdamW step, the same for all. All models start from the
same weights, and their first losses must agree to 1e-4 (in bfloat16 to 2e-2). Each row gives the median over the rounds
of peer time / our time, with its quartiles: above 1 we are faster. Where a row changes something for us alone
(drop-path that skips work) it says so; the peers' own option is used where they have it. Of a lever the ratio is
changed / unchanged: above 1 it costs time.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.models.create import create_model
from vitral.models.presets import resolve
from vitral.models.vit import VisionTransformer
from vitral.optim.masters import Bfloat16Copy
from vitral.version import __version__

Step = Callable[[], float]
ROWS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch4_32, class token": {"name": "vit_tiny_patch4_32", "batch": 32},
    "vit_tiny_patch4_32, average": {"name": "vit_tiny_patch4_32", "batch": 32, "pool": "avg"},
    "vit_nano_patch4_32, class token": {"name": "vit_nano_patch4_32", "batch": 64},
    "vit_micro_patch2_8, class token": {"name": "vit_micro_patch2_8", "batch": 64},
    "vit_micro_patch2_8, average": {"name": "vit_micro_patch2_8", "batch": 64, "pool": "avg"},
    "vit_tiny_patch4_32, average, drop-path 0.2": {
        "name": "vit_tiny_patch4_32", "batch": 32, "pool": "avg", "drop_path": 0.2,
    },
    "vit_nano_patch4_32, class token, compiled": {"name": "vit_nano_patch4_32", "batch": 64, "compile": True},
    "vit_tiny_patch16_224, class token": {"name": "vit_tiny_patch16_224", "batch": 8},
    "vit_tiny_patch4_32, class token, bfloat16": {"name": "vit_tiny_patch4_32", "batch": 32, "precision": "bfloat16"},
    "vit_tiny_patch16_224, class token, bfloat16": {
        "name": "vit_tiny_patch16_224", "batch": 8, "precision": "bfloat16",
    },
    "vit_tiny_patch4_32, lever: bfloat16 parameters": {
        "name": "vit_tiny_patch4_32", "batch": 32, "precision": "bfloat16", "lever": {"precision": "bfloat16_params"},
    },
    "vit_tiny_patch4_32, lever: all blocks checkpointed": {
        "name": "vit_tiny_patch4_32", "batch": 32, "lever": {"checkpointed": 12},
    },
    **{
        f"vit_{size}_patch16_224, class token, bfloat16, compiled, cuda": {
            "name": f"vit_{size}_patch16_224", "batch": batch, "precision": "bfloat16", "compile": True,
            "device": "cuda",
        }
        for size, batch in (("small", 512), ("base", 256), ("large", 128))
    },
}  # fmt: skip


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = {"rounds": 15, "threads": 2, "save": None, "rows": "", **{k: parse_yaml(v) for k, v in pairs.items()}}
    torch.set_num_threads(options["threads"])
    results = []
    for title, row in ROWS.items():
        if str(options["rows"]) in title and (row.get("device") != "cuda" or torch.cuda.is_available()):
            results.append(measure(title, row, options["rounds"]))
            print(show(results[-1]), flush=True)
    if options["save"]:
        facts = {"environment": environment(), "gemm_tflops": gemm_rate(), "results": results}
        text = json.dumps(facts, indent=2)
        Path(options["save"]).write_text(text + "\n", encoding="utf-8")


def measure(title: str, row: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times in milliseconds of every contestant, a step each in turn; the order turns with the rounds."""
    torch.manual_seed(0)
    pool, drop_path = row.get("pool", "cls"), row.get("drop_path", 0.0)
    ours = create_model(row["name"], pool=pool, drop_path=drop_path)
    nn.init.normal_(ours.head.weight, std=0.02)
    side = ours.config.image_size[0]
    device, precision, lever = row.get("device", "cpu"), row.get("precision", "float32"), row.get("lever")
    images_BCHW, labels_B = torch.rand(row["batch"], 3, side, side), torch.randint(0, 10, (row["batch"],))
    images_BCHW, labels_B = images_BCHW.to(device), labels_B.to(device)
    models: dict[str, nn.Module] = {"vitral": ours}
    if lever is not None:
        models["changed"] = copy.deepcopy(ours)
        models["changed"].checkpointed = lever.get("checkpointed", 0)
    else:
        models["timm"] = timm_model(ours, pool, drop_path)
        if pool == "cls" and not drop_path:
            models["transformers"] = transformers_model(ours)
    own = ("vitral", "changed")
    steps = {
        name: make_step(
            model.to(device), images_BCHW if name in own else (images_BCHW - 0.5) / 0.5, labels_B,
            row.get("compile", False),
            lever.get("precision", precision) if lever is not None and name == "changed" else precision,
        )
        for name, model in models.items()
    }  # fmt: skip
    first = {name: step() for name, step in steps.items()}
    if not drop_path:
        assert max(first.values()) - min(first.values()) < (1e-4 if precision == "float32" else 2e-2), first
    for step in steps.values():
        step()
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(1000 * (time.perf_counter() - start))
    ratios = {
        name: statistics.quantiles(
            [theirs / mine for theirs, mine in zip(times[name], times["vitral"], strict=True)], n=4
        )
        for name in names[1:]
    }
    best = min(names[1:], key=lambda name: statistics.median(times[name]))
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    rounded = {name: [round(value, 3) for value in values] for name, values in ratios.items()}
    return {
        "row": title,
        "batch": row["batch"],
        "rounds": rounds,
        "median_ms": medians,
        "ratio_quartiles": rounded,
        "best_peer": best,
    }


def make_step(model: nn.Module, images_BCHW: Tensor, labels_B: Tensor, compiled: bool, precision: str) -> Step:
    """One training step as a function that returns the loss, which ends when the device has done it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    low = Bfloat16Copy(model.train()) if precision == "bfloat16_params" else None
    computing = model if low is None else low.module
    forward = torch.compile(computing) if compiled else computing

    def step() -> float:
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            out = forward(images_BCHW)
        logits_BC = out if isinstance(out, Tensor) else out.logits
        loss = nn.functional.cross_entropy(logits_BC.float(), labels_B)
        loss.backward()
        if low is not None:
            low.collect()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if low is not None:
            low.refresh()
        if images_BCHW.is_cuda:
            torch.cuda.synchronize()
        return loss.item()

    model.train()
    return step


def gemm_rate() -> dict[str, float]:
    """10^12 operations a second of a square matrix product, the best of ten: what a step can be compared with."""
    found: dict[str, float] = {}
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        side = 8192 if device == "cuda" else 1024
        for dtype in (torch.float32, torch.bfloat16):
            a, times = torch.randn(side, side, device=device, dtype=dtype), list[float]()
            for _ in range(10):
                start = time.perf_counter()
                a @ a
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            found[f"{device}, {str(dtype).removeprefix('torch.')}"] = round(2 * side**3 / min(times) / 1e12, 3)
    return found


def timm_model(ours: VisionTransformer, pool: str, drop_path: float) -> nn.Module:
    """timm's model of the same architecture with our weights."""
    timm = load_oracle("timm")
    c = ours.config
    model = timm.models.VisionTransformer(
        img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.width, depth=c.depth, num_heads=c.heads,
        mlp_ratio=c.mlp_dim / c.width, num_classes=c.num_classes, global_pool={"cls": "token", "avg": "avg"}[pool],
        drop_path_rate=drop_path,
    )  # fmt: skip
    model.load_state_dict(ours.state_dict())
    return model


def transformers_model(ours: VisionTransformer) -> nn.Module:
    """transformers' model of the same architecture with our weights, on fused attention."""
    transformers = load_oracle("transformers")
    c = ours.config
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.mlp_dim,
            image_size=c.image_size[0], patch_size=c.patch_size, num_labels=c.num_classes, layer_norm_eps=c.norm_eps,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
        )
    )  # fmt: skip
    model.load_state_dict(
        {theirs: tensor for key, value in ours.state_dict().items() for theirs, tensor in renamed(key, value)}
    )
    return model


def renamed(key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """One of our parameters under transformers' names; the packed qkv becomes three."""
    key = key.replace("blocks.", "vit.layers.").replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
    key = key.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection").replace("head.", "classifier.")
    key = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"}.get(key, key)
    key = key.replace("attn.proj", "attention.o_proj")
    key = "vit.layernorm" + key.removeprefix("norm") if key.startswith("norm.") else key
    if "attn.qkv" in key:
        return [
            (key.replace("attn.qkv", f"attention.{n}_proj"), part)
            for n, part in zip("qkv", value.chunk(3), strict=True)
        ]
    return [(key, value)]


def show(result: dict[str, Any]) -> str:
    """One row as a line."""
    parts = [f"{name} {q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]" for name, q in result["ratio_quartiles"].items()]
    ours = f"{result['median_ms']['vitral']:7.1f} ms"
    return f"{result['row']:<46} {ours}   peer / ours: {',  '.join(parts)}   n = {result['rounds']}"


def environment() -> dict[str, Any]:
    """Versions and machine."""
    versions = {name: load_oracle(name).__version__ for name in ("timm", "transformers")}
    processor = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if "model name" in line
    ]
    return {
        "vitral": __version__, "torch": str(torch.__version__), **versions, "python": platform.python_version(),
        "processor": processor[0] if processor else platform.processor(), "threads": torch.get_num_threads(),
        "presets": {row["name"]: resolve(row["name"]).model_dump(mode="json") for row in ROWS.values()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
