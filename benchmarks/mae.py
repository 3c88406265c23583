"""MAE's training step: the encoder of visible patches beside the whole one, and the step beside transformers' ViTMAE.

    python benchmarks/mae.py                             # needs python tools/install.py -e ".[bench]"
    python benchmarks/mae.py rounds=30 threads=2 save=benchmarks/results/cpu_mae.json
    python benchmarks/mae.py rows=encoder                # only rows whose title has "encoder" in it
    python benchmarks/mae.py threads=1 clock=processor   # for a machine that is busy with something else

All take turns in one process. "encoder" rows compare forward and backward of the encoder that sees 25 % of the patches
with those of the encoder that sees all, of the same images (patch embedding is computed for all patches by both): the
ratio is its share of the time. "step" rows compare forward, loss, backward, clipping to norm 1 and a fused AdamW
step; both sides start from the same weights and hide the same patches, and the losses before the first step must agree
to 1e-4 (in bfloat16 to 2e-2). There the ratio is transformers' time / our time: above 1 we are faster. Rows that need
CUDA are left out without it; there both sides are compiled.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train import environment

from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.models.config import ViTConfig
from vitral.models.create import create_model
from vitral.models.position import sincos_table
from vitral.models.presets import resolve
from vitral.models.vit import VisionTransformer
from vitral.objectives import mae
from vitral.objectives.config import MaeConfig
from vitral.objectives.mae import MAE
from vitral.objectives.mae_checkpoint import load_mae
from vitral.objectives.objective import ObjectiveContext
from vitral.structs import Batch, View
from vitral.weights.config import ReadOptions

Step = Callable[[], float]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
ROWS: dict[str, dict[str, Any]] = {
    "encoder, vit_small_patch16_224": {"name": "vit_small_patch16_224", "batch": 8},
    "encoder, vit_base_patch16_224": {"name": "vit_base_patch16_224", "batch": 4},
    "step, vit_small_patch16_224": {"name": "vit_small_patch16_224", "batch": 8},
    "step, vit_base_patch16_224": {"name": "vit_base_patch16_224", "batch": 4},
    **{
        f"{kind}, vit_{size}_patch16_224, bfloat16, cuda": {
            "name": f"vit_{size}_patch16_224", "batch": batch, "precision": "bfloat16", "device": "cuda",
        }
        for kind in ("encoder", "step")
        for size, batch in (("small", 512), ("base", 512), ("large", 256))
    },
}  # fmt: skip


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {"rounds": 15, "threads": 2, "save": None, "rows": "", "clock": "wall"}
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    results = []
    for title, row in ROWS.items():
        if str(options["rows"]) in title and (row.get("device") != "cuda" or torch.cuda.is_available()):
            results.append(measure(title, row, options["rounds"], CLOCKS[options["clock"]]))
            print(show(results[-1]), flush=True)
    if options["save"]:
        text = json.dumps({"environment": environment(), "results": results}, indent=2)
        Path(options["save"]).write_text(text + "\n", encoding="utf-8")


def measure(title: str, row: dict[str, Any], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds of both contestants, one after the other, the first one changing; quartiles of the ratios."""
    torch.manual_seed(0)
    device, precision = row.get("device", "cpu"), row.get("precision", "float32")
    images_BCHW = torch.rand(row["batch"], 3, 224, 224, device=device)
    make = encoders if title.startswith("encoder") else objectives
    steps = make(row["name"], images_BCHW, precision)
    for step in steps.values():  # kernels are chosen, memory is taken
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        for name in names if turn % 2 else names[::-1]:
            start = clock()
            steps[name]()
            times[name].append(1000 * (clock() - start))
    above, below = names
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return {
        "row": title, "batch": row["batch"], "rounds": rounds, "ratio": f"{above} / {below}",
        "median_ms": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)],
    }  # fmt: skip


def encoders(name: str, images_BCHW: Tensor, precision: str) -> dict[str, Step]:
    """Forward and backward of one encoder, of a quarter of the patches and of all."""
    model = create_model(name, num_classes=0, positions="sincos").to(images_BCHW.device).train()
    assert isinstance(model, VisionTransformer)
    count, batch = model.grid[0] * model.grid[1], len(images_BCHW)
    keep_BK = torch.rand(batch, count, device=images_BCHW.device).argsort(1)[:, : count // 4]
    encode = compiled(model.encode, images_BCHW)

    def step(seen_BK: Tensor | None) -> float:
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            out = encode(images_BCHW, seen_BK)
        assert out.cls_BD is not None
        (out.cls_BD.float().sum() + out.patches_BND.float().square().mean()).backward()
        model.zero_grad(set_to_none=True)
        return synchronised(out.cls_BD.sum())

    return {"a quarter": lambda: step(keep_BK), "all patches": lambda: step(None)}


def objectives(name: str, images_BCHW: Tensor, precision: str) -> dict[str, Step]:
    """Whole training steps, of transformers and of ours, from the same weights with the same patches hidden."""
    device = images_BCHW.device
    theirs = transformers_model(name)
    ours, theirs = same_weights(name, theirs).to(device), theirs.to(device)
    noise_BN = torch.rand(len(images_BCHW), ours.model.grid[0] * ours.model.grid[1], device=device)
    # Numbers as random as those of the hash, so that both hide the same patches; drawing them is no part of the row.
    mae.noise = lambda *_: noise_BN
    batch = Batch((View(images_BCHW, torch.eye(3).expand(len(images_BCHW), 3, 3)),), {}, torch.arange(len(images_BCHW)))
    normalized_BCHW = (images_BCHW - 0.5) / 0.5
    our_call, their_call = compiled(ours, images_BCHW), compiled(theirs, images_BCHW)
    losses = {
        "transformers": (theirs, lambda: their_call(normalized_BCHW, noise=noise_BN).loss),
        "vitral": (ours, lambda: our_call({"train": batch}, 0).loss),
    }
    steps = {side: make_step(module, loss, device, precision) for side, (module, loss) in losses.items()}
    first = {side: step() for side, step in steps.items()}
    assert abs(first["transformers"] - first["vitral"]) < (1e-4 if precision == "float32" else 2e-2), first
    return steps


def make_step(module: nn.Module, loss_of: Callable[[], Tensor], device: torch.device, precision: str) -> Step:
    """A training step that returns its loss, when the device has done it."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    module.train()

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return synchronised(loss)

    return step


def compiled(call: Callable[..., Any], images_BCHW: Tensor) -> Callable[..., Any]:
    """On CUDA."""
    return torch.compile(call) if images_BCHW.is_cuda else call


def synchronised(value: Tensor) -> float:
    """The number; on CUDA this waits for what was begun."""
    if value.is_cuda:
        torch.cuda.synchronize()
    return value.item()


def transformers_model(name: str) -> nn.Module:
    """ViTMAEForPreTraining of this size, on fused attention, with the positions that its files have."""
    transformers = load_oracle("transformers")
    c, d = resolve(name), MaeConfig(kind="mae")
    assert isinstance(c, ViTConfig)
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.mlp_dim,
            image_size=c.image_size[0], patch_size=c.patch_size, layer_norm_eps=c.norm_eps,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
            decoder_hidden_size=d.decoder_width, decoder_num_hidden_layers=d.decoder_depth,
            decoder_num_attention_heads=d.decoder_heads, decoder_intermediate_size=4 * d.decoder_width,
            mask_ratio=d.hidden, norm_pix_loss=d.norm_pix_loss,
        )
    )  # fmt: skip
    with torch.no_grad():  # as its files have them; a new model of version 5 has zeros
        model.vit.embeddings.position_embeddings[:, 1:] = sincos_table(c.grid, c.grid, c.width)
        model.decoder.decoder_pos_embed[:, 1:] = sincos_table(c.grid, c.grid, d.decoder_width)
    return model


def same_weights(name: str, theirs: Any) -> MAE:
    """Ours, with the fixed positions that it is pretrained with."""
    config = resolve(name)
    assert isinstance(config, ViTConfig)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        weights = load_mae(folder, ReadOptions(heads=config.heads)).state_dict()
    del weights["model.pos_embed"]
    ours = MAE(
        lambda: create_model(name, num_classes=0, positions="sincos"), MaeConfig(kind="mae"), ObjectiveContext(1)
    )
    ours.load_state_dict(weights)
    return ours


def show(result: dict[str, Any]) -> str:
    """One row as a line."""
    low, middle, high = result["ratio_quartiles"]
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in result["median_ms"].items())
    ratio = f"{result['ratio']}: {middle:.3f} [{low:.3f}, {high:.3f}]"
    return f"{result['row']:<48} {times}   {ratio}   n = {result['rounds']}"


if __name__ == "__main__":
    main()
