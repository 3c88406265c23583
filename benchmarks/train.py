"""A training step: ours beside other libraries', taking turns in one process, on a CPU and on CUDA.

    python benchmarks/train.py                           # needs python tools/install.py -e ".[bench]"
    python benchmarks/train.py rounds=30 threads=1 save=benchmarks/results/cpu_train.json
    python benchmarks/train.py rows=224                  # only rows whose title has 224 in it

A step is forward, cross-entropy, backward, clipping to norm 1 and a fused AdamW step, the same for all; peers are timm,
transformers, torchvision and vit-pytorch, those that are installed. Before anything is timed, all start from the same
weights and do one step, after which loss, clipped gradient and weights must be ours within LIMITS; vit-pytorch is
another model in details, and peers.py says how it is compared. Rows that need CUDA are left out without it; there all
sides are compiled, loss included.

A row gives the median over the rounds of peer time / our time, with its quartiles: above 1 we are faster. Rows called
"lever" have us twice, with one thing on and off: the ratio is time with / time without, below 1 it is a gain. Where a
row changes something for us alone (drop-path that skips work) it says so; the peers' own option is used where they have
it. "of GEMM" is the model's operations (6 a multiply-accumulate of the forward pass) over the time, as a share of the
rate of a large matrix product of the same precision, measured in the same run.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import PEERS, Weights, comparable, fits, from_peer, make_peer

from tests.oracles import load_oracle
from vitral.config import parse_yaml, split_words
from vitral.models.create import create_model
from vitral.models.presets import resolve
from vitral.models.summary import count_macs
from vitral.models.vit import VisionTransformer
from vitral.optim.config import OptimConfig
from vitral.optim.master_weights import ComputeCopy
from vitral.optim.optimizer import make_optimizer
from vitral.version import __version__

Step = Callable[[], float]
RATE = 1e-4  # of AdamW: what a weight moves in the first step, but for weights without a gradient to speak of
# Loss; gradient and step of the weights, each as the norm of the difference over the norm of ours. A first step of
# AdamW is the gradient's sign: where that is rounding (biases of keys), signs are too. vit-pytorch's gradient is
# clipped a little less, as the norm of ours has the biases that it lacks; without it float32 would keep 1e-5 and 1e-2.
LIMITS = {"float32": (1e-4, 1e-2, 3e-2), "bfloat16": (2e-2, 5e-2, 0.3)}

TINY32 = {"name": "vit_tiny_patch4_32", "batch": 32}
ROWS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch4_32, class token": TINY32,
    "vit_tiny_patch4_32, average": {**TINY32, "pool": "avg"},
    "vit_tiny_patch4_32, class token, bfloat16": {**TINY32, "precision": "bfloat16"},
    "vit_tiny_patch16_224, class token": {"name": "vit_tiny_patch16_224", "batch": 8},
    "vit_tiny_patch16_224, class token, bfloat16": {
        "name": "vit_tiny_patch16_224", "batch": 8, "precision": "bfloat16",
    },
    "vit_nano_patch4_32, class token": {"name": "vit_nano_patch4_32", "batch": 64},
    "vit_micro_patch2_8, class token": {"name": "vit_micro_patch2_8", "batch": 64},
    "vit_micro_patch2_8, average": {"name": "vit_micro_patch2_8", "batch": 64, "pool": "avg"},
    "vit_tiny_patch4_32, average, drop-path 0.2 on both sides": {**TINY32, "pool": "avg", "drop_path": 0.2},
    "lever: drop-path 0.2, average": {**TINY32, "pool": "avg", "with": {"drop_path": 0.2}},
    "lever: last block for the class token alone": {**TINY32, "without": {"whole": True}},
    "lever: fused attention": {**TINY32, "without": {"attention": "math"}},
    "lever: fused attention, bfloat16": {**TINY32, "precision": "bfloat16", "without": {"attention": "math"}},
    "lever: patches by one matrix product": {**TINY32, "without": {"patches": "convolution"}},
    "lever: fused AdamW": {**TINY32, "without": {"fused": False}},
    "lever: bfloat16 products": {**TINY32, "with": {"precision": "bfloat16"}},
    "lever: bfloat16 parameters over products": {
        **TINY32, "precision": "bfloat16", "with": {"precision": "bfloat16_params"},
    },
    "lever: all blocks checkpointed (for memory)": {**TINY32, "with": {"checkpointed": 12}},
    "lever: Muon over AdamW (for fewer steps)": {**TINY32, "with": {"optimizer": "muon"}},
    "lever: compiled": {"name": "vit_nano_patch4_32", "batch": 64, "with": {"compile": True}},
    **{
        f"vit_{size}_patch16_224, class token, bfloat16, compiled, cuda": {
            "name": f"vit_{size}_patch16_224", "batch": batch, "precision": "bfloat16", "compile": True,
            "device": "cuda",
        }
        for size, batch in (("small", 512), ("base", 256), ("large", 128))
    },
    **{
        f"lever: {name}, vit_base_patch16_224, cuda": {
            "name": "vit_base_patch16_224", "batch": 256, "precision": "bfloat16", "compile": True, "device": "cuda",
            **lever,
        }
        for name, lever in {
            "compiled": {"without": {"compile": False}},
            "bfloat16 parameters over products": {"with": {"precision": "bfloat16_params"}},
            "drop-path 0.2": {"pool": "avg", "with": {"drop_path": 0.2}},
        }.items()
    },
}  # fmt: skip


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options = {
        "rounds": 15,
        "threads": 2,
        "save": None,
        "rows": "",
        **{k: v if k == "rows" else parse_yaml(v) for k, v in pairs.items()},
    }
    torch.set_num_threads(options["threads"])
    rates, results, loads = gemm_rate(), list[dict[str, Any]](), [os.getloadavg()]
    print("matrix products, 10^12 operations a second:", rates, flush=True)
    for title, row in ROWS.items():
        if str(options["rows"]) in title and (row.get("device") != "cuda" or torch.cuda.is_available()):
            results.append(measure(title, row, options["rounds"], rates))
            loads.append(os.getloadavg())
            print(show(results[-1]), flush=True)
    if options["save"]:
        facts = {"environment": environment(), "gemm_tflops": rates, "load_averages": loads, "results": results}
        text = json.dumps(facts, indent=2)
        Path(options["save"]).write_text(text + "\n", encoding="utf-8")


def measure(title: str, row: dict[str, Any], rounds: int, rates: dict[str, float]) -> dict[str, Any]:
    """Times in milliseconds of every contestant, a step each in turn; the order turns with the rounds."""
    is_lever = "with" in row or "without" in row
    steps, differences = contestants(row, is_lever)
    names = list(steps)
    for name in names:
        steps[name]()
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start, start_processor = time.perf_counter(), time.process_time()
            steps[name]()
            times[name].append(1000 * (time.perf_counter() - start))
            processor[name].append(1000 * (time.process_time() - start_processor))
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    operations = 6.0 * sum(count_macs(resolve(row["name"])).values()) * row["batch"]
    rate = rates[f"{row.get('device', 'cpu')}, {row.get('precision', 'float32').partition('_')[0]}"]
    return {
        "row": title, "ratio": "time with / time without" if is_lever else "time of the peer / our time",
        "batch": row["batch"], "rounds": rounds, "median_ms": medians,
        "median_processor_ms": {name: round(statistics.median(values), 2) for name, values in processor.items()},
        "ratio_quartiles": {name: quartiles(times[name], times[names[0]]) for name in names[1:]},
        "processor_ratio_quartiles": {name: quartiles(processor[name], processor[names[0]]) for name in names[1:]},
        "best_peer": None if is_lever or len(names) == 1 else min(names[1:], key=lambda name: medians[name]),
        "of_gemm": {name: round(operations / value / 1e9 / rate, 3) for name, value in medians.items()},
        "differences": differences,
    }  # fmt: skip


def quartiles(theirs: list[float], ours: list[float]) -> list[float]:
    """Of the ratios of the rounds."""
    ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
    return [round(value, 3) for value in statistics.quantiles(ratios, n=4)]


def contestants(row: dict[str, Any], is_lever: bool) -> tuple[dict[str, Step], dict[str, list[float]]]:
    """The steps to be timed, ours or the one without the lever first; how far the peers' first steps are from ours."""
    plain = {key: value for key, value in row.items() if key not in ("with", "without")}
    ours = ours_of(plain)
    side = ours.config.image_size[0]
    images_BCHW = torch.rand(row["batch"], 3, side, side, device=row.get("device", "cpu"))
    labels_B = torch.randint(0, 10, (row["batch"],), device=images_BCHW.device)
    if is_lever:
        both = {"without": {**plain, **row.get("without", {})}, "with": {**plain, **row.get("with", {})}}
        return {name: make_step(ours_of(one), images_BCHW, labels_B, one) for name, one in both.items()}, {}
    normalized_BCHW = (images_BCHW - 0.5) / 0.5
    start = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    first = after_one_step(copy.deepcopy(ours), images_BCHW, labels_B, plain)
    steps = {"vitral": make_step(ours, images_BCHW, labels_B, plain)}
    differences: dict[str, list[float]] = {}
    for name in PEERS:
        if importlib.util.find_spec(name) is None or not fits(name, ours):
            print(f"  {name}: absent" if fits(name, ours) else f"  {name}: has no such model", file=sys.stderr)
            continue
        peer = make_peer(name, ours).to(images_BCHW.device)
        if not ours.config.drop_path:
            same = comparable(name, peer, ours.config.norm_eps)
            theirs = after_one_step(same, normalized_BCHW, labels_B, plain)
            differences[name] = compare(name, first, theirs, start)
            limits = LIMITS[plain.get("precision", "float32")]
            assert all(a <= b for a, b in zip(differences[name], limits, strict=True)), (name, differences[name])
        steps[name] = make_step(peer, normalized_BCHW, labels_B, plain)
    return steps, differences


def ours_of(row: dict[str, Any]) -> VisionTransformer:
    """Our model as a row says, with the same weights each time."""
    torch.manual_seed(0)
    ours = create_model(row["name"], pool=row.get("pool", "cls"), drop_path=row.get("drop_path", 0.0))
    assert isinstance(ours, VisionTransformer)
    nn.init.normal_(ours.get_parameter("head.weight"), std=0.02)
    ours.checkpointed = row.get("checkpointed", 0)
    if row.get("patches") == "convolution":
        proj = ours.patch_embed.proj
        by_convolution = partial(nn.functional.conv2d, weight=proj.weight, bias=proj.bias, stride=proj.weight.shape[-1])
        ours.patch_embed.forward = lambda images_BCHW: by_convolution(images_BCHW).flatten(2).mT
    return ours.to(row.get("device", "cpu"))


def after_one_step(
    model: nn.Module, images_BCHW: Tensor, labels_B: Tensor, row: dict[str, Any]
) -> tuple[float, Weights, Weights]:
    """Loss, clipped gradients and weights of an eager first step."""
    gradients: Weights = {}

    def keep() -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()

    loss = make_step(model, images_BCHW, labels_B, {**row, "compile": False}, keep)()
    return loss, gradients, {name: value.detach() for name, value in model.named_parameters()}


def compare(
    name: str, ours: tuple[float, Weights, Weights], theirs: tuple[float, Weights, Weights], start: Weights
) -> list[float]:
    """Difference of loss, gradient and step of the weights; the latter two over the norm of ours."""
    gradients, weights = (from_peer(name, part, ours[2]) for part in theirs[1:])
    gradient = norm([ours[1][key] - gradients[key] for key in gradients]) / norm([ours[1][key] for key in gradients])
    moved = norm([ours[2][key] - start[key] for key in weights])
    return [abs(ours[0] - theirs[0]), gradient, norm([ours[2][key] - weights[key] for key in weights]) / moved]


def norm(tensors: list[Tensor]) -> float:
    """Euclidean, of all together."""
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


def make_step(
    model: nn.Module, images_BCHW: Tensor, labels_B: Tensor, row: dict[str, Any], keep: Callable[[], None] | None = None
) -> Step:
    """One training step as a function that returns the loss, which ends when the device has done it. keep: called when
    the gradients are clipped."""
    precision, device = row.get("precision", "float32"), images_BCHW.device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=row.get("fused", True))
    if row.get("optimizer") == "muon":
        optimizer = make_optimizer(model, OptimConfig(name="muon", lr=RATE))
    compute_copy = ComputeCopy(model.train()) if precision == "bfloat16_params" else None
    computing: Any = model if compute_copy is None else compute_copy.module

    def compute() -> Tensor:
        out = computing.classify(computing.pool(computing.encode(images_BCHW))) if row.get("whole") else None
        out = computing(images_BCHW) if out is None else out
        logits_BC = out if isinstance(out, Tensor) else out.logits
        return nn.functional.cross_entropy(logits_BC.float(), labels_B)

    forward = torch.compile(compute, dynamic=False) if row.get("compile") else compute

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"), attention(row):
            loss = forward()
        loss.backward()
        if compute_copy is not None:
            compute_copy.collect()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if keep is not None:
            keep()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if compute_copy is not None:
            compute_copy.refresh()
        return loss.item() if device == "cpu" else (torch.cuda.synchronize(), loss.item())[1]

    model.train()
    return step


@contextmanager
def attention(row: dict[str, Any]) -> Generator[None]:
    """Attention as the row wants it: fused, or as products and a softmax."""
    if row.get("attention") != "math":
        yield
        return
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        yield


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


def show(result: dict[str, Any]) -> str:
    """One row as a line."""
    parts = [f"{name} {q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]" for name, q in result["ratio_quartiles"].items()]
    name, first = next(iter(result["median_ms"].items()))
    said = f"{result['row']:<58} {name} {first:7.1f} ms, {result['of_gemm'][name]:.0%} of GEMM"
    return f"{said}   {result['ratio']}: {',  '.join(parts) or 'no peer'}   n = {result['rounds']}"


def environment() -> dict[str, Any]:
    """Versions and machine."""
    found = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    versions = {name: getattr(load_oracle(name), "__version__", _version(name)) for name in found}
    processor = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if "model name" in line
    ]
    return {
        "vitral": __version__, "torch": str(torch.__version__), **versions, "python": platform.python_version(),
        "processor": processor[0] if processor else platform.processor(), "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "presets": {row["name"]: resolve(row["name"]).model_dump(mode="json") for row in ROWS.values()},
    }  # fmt: skip


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name.replace("_", "-"))


if __name__ == "__main__":
    main()
