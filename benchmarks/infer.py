"""Logits of ready-made batches on a CPU: ours beside other libraries', taking turns in one process.

    python benchmarks/infer.py                              # needs python tools/install.py -e ".[bench]"
    python benchmarks/infer.py rows=small rounds=15 threads=2 save=benchmarks/results/infer_small.json
    python benchmarks/infer.py rows="base_patch16_224, float32, batch 32" compiled=false

Ours is the engine that `vitral predict engine=auto` takes, whose export is not timed; beside it our torch model. Peers
are timm, eager and compiled, transformers, and ONNX Runtime and OpenVINO "used plainly": timm's model through
torch.onnx.export with an open batch, and the runtime's defaults but for OpenVINO's precision hint, which is that of the
row. All have the same weights. ONNX Runtime has no bfloat16 on processors. In the rows of "best" precision ours is the
fastest of all that `vitral export` and `engine=auto` have, int8 too (its scales from built-in photographs), beside timm
eager in float32 and in bfloat16. Of ViT-B only timm eager and the runtimes are asked, unless all=true.

Short calls are repeated until they take 50 ms, and a tenth of a second passes between two contestants: ONNX Runtime's
threads, used plainly, go on looking for work, and would slow down whoever comes next (ViT-Ti in torch, batch 1, to 0.4
of its rate). All rows take about half an hour on two cores. A row gives the median
over the rounds of peer time / our time, with its quartiles: above 1 we are faster. "agreement" is the share of images
whose likeliest class is that of timm eager in float32, "differs" the largest difference of a logit.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import make_peer
from train import environment, quartiles

from vitral.config import parse_yaml, split_words
from vitral.data.image_spec import ImageSpec
from vitral.engines import Engine, Precision, open_export
from vitral.export.config import ExportOptions
from vitral.export.exporter import builtin_samples, export_network
from vitral.export.graph import quiet
from vitral.export.runtime_engine import engines, fastest
from vitral.models.create import create_model
from vitral.models.vit import VisionTransformer
from vitral.weights.folder import FolderConfig

Run = Callable[[Tensor], Tensor]
LONG = 0.05  # seconds: of shorter calls several are timed at once
PAUSE = 0.1
MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCHES = (1, 8, 32)


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    given = {key: parse_yaml(value) for key, value in pairs.items()}
    options: dict[str, Any] = {
        "rounds": 15, "threads": 2, "save": None, "rows": "", "compiled": True, "all": False, **given
    }  # fmt: skip
    torch.set_num_threads(options["threads"])
    results, loads = list[dict[str, Any]](), [os.getloadavg()]
    for name in MODELS:
        for precision in (*PRECISIONS, "best"):
            titles = {f"{name}, {precision}, batch {batch}": batch for batch in BATCHES}
            expected = {title: batch for title, batch in titles.items() if str(options["rows"]) in title}
            if not expected:
                continue
            brief = "base" in name and not options["all"]
            found = contestants(name, precision, compiled=options["compiled"] and not brief, brief=brief)
            for title, batch in expected.items():
                auto = fastest(found.ours, found.config, batch)
                runs = {"vitral auto": auto.logits, **found.others}
                results.append(measure(title, batch, runs, found.reference, options["rounds"]))
                results[-1]["auto"] = f"{auto.name}, {auto.precision}"
                loads.append(os.getloadavg())
                print(show(results[-1]), flush=True)
    if options["save"]:
        facts = {"environment": environment() | _runtimes(), "load_averages": loads, "results": results}
        Path(options["save"]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


class Contestants(NamedTuple):
    """Our engines, of which the fastest competes; functions from images in [0,1] to logits; timm eager in float32."""

    ours: list[Engine]
    others: dict[str, Run]
    reference: Run
    config: FolderConfig


def contestants(name: str, precision: str, *, compiled: bool, brief: bool) -> Contestants:
    """Those of one model. brief: without transformers and our own torch model."""
    torch.manual_seed(0)
    ours = create_model(name, num_classes=1000).eval()
    assert isinstance(ours, VisionTransformer)
    nn.init.normal_(ours.get_parameter("head.weight"), std=0.3)
    config = _config(name, ours)
    timm = make_peer("timm", ours).eval()
    reference = _normalized(timm, torch.float32)
    if precision == "best":
        low = _normalized(copy.deepcopy(timm).bfloat16(), torch.bfloat16)
        others = {"timm eager, float32": reference, "timm eager, bfloat16": low}
        return Contestants(_of_all_precisions(ours, config), others, reference, config)
    assert precision in PRECISIONS
    dtype, plain = PRECISIONS[precision], copy.deepcopy(ours).to(PRECISIONS[precision])
    runs: dict[str, Run] = {} if brief else {"vitral torch": plain}
    with quiet():
        runs |= _plain_runtimes(timm, precision)
    runs["timm eager"] = _normalized(copy.deepcopy(timm).to(dtype), dtype)
    if not brief and importlib.util.find_spec("transformers"):
        runs["transformers eager"] = _normalized(make_peer("transformers", ours).eval().to(dtype), dtype)
    if compiled:
        runs["timm compiled"] = _normalized(torch.compile(copy.deepcopy(timm).to(dtype), dynamic=True), dtype)
    return Contestants(engines(ours, config, precision), runs, reference, config)


def _of_all_precisions(ours: VisionTransformer, config: FolderConfig) -> list[Engine]:
    found = [engine for precision in PRECISIONS for engine in engines(ours, config, precision)]
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("onnx", "openvino"):
            options = ExportOptions(
                format=kind, out=f"{folder}/{kind}", takes="resized", precision="int8", min_agreement=0
            )
            shipped = export_network(ours, config, "", options, builtin_samples(8, config))
            found.append(open_export(shipped.out / shipped.file))
    return found


def _config(name: str, ours: VisionTransformer) -> FolderConfig:
    c = ours.config
    return FolderConfig(
        name=name, task="classification", architecture=c, id2label={str(i): str(i) for i in range(c.num_classes)},
        provenance={}, preprocessing=ImageSpec(image_size=c.image_size, channels=c.in_channels, resize_mode="crop"),
    )  # fmt: skip


def _normalized(model: Any, dtype: torch.dtype) -> Run:
    def run(images_BCHW: Tensor) -> Tensor:
        out = model(((images_BCHW - 0.5) / 0.5).to(dtype))
        return (out if isinstance(out, Tensor) else out.logits).float()

    return run


def _plain_runtimes(model: nn.Module, precision: str) -> dict[str, Run]:
    """ONNX Runtime and OpenVINO as their first page of documentation has it."""
    import onnxruntime
    import openvino

    found: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        file, example = f"{folder}/peer.onnx", torch.rand(2, 3, 224, 224)
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (example,), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
        if precision == "float32":
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            found["onnxruntime"] = lambda x: torch.from_numpy(session.run(None, {name: ((x - 0.5) / 0.5).numpy()})[0])
        core = openvino.Core()
        hint = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16"}
        network = core.compile_model(core.read_model(file), "CPU", hint)
        found["openvino"] = lambda x: torch.from_numpy(network([((x - 0.5) / 0.5).numpy()])[0].copy())
    return found


@torch.inference_mode()
def measure(title: str, batch: int, runs: dict[str, Run], reference: Run, rounds: int) -> dict[str, Any]:
    """Times in milliseconds of every contestant, a batch each in turn; the order turns with the rounds."""
    images_BCHW = torch.rand(batch, 3, 224, 224)
    expected_BS = reference(images_BCHW)
    said: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        found_BS = run(images_BCHW)
        same = float((found_BS.argmax(1) == expected_BS.argmax(1)).float().mean())
        said[name] = {"agreement": same, "differs": float((found_BS - expected_BS).abs().max())}
        run(images_BCHW)
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats = {name: max(1, math.ceil(LONG / _timed(run, images_BCHW, 1))) for name, run in runs.items()}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(PAUSE)
            times[name].append(1000 * _timed(runs[name], images_BCHW, repeats[name]))
    peers = [name for name in names if not name.startswith("vitral")]
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    return {
        "row": title, "ratio": "time of the peer / our time", "batch": batch, "rounds": rounds, "median_ms": medians,
        "images_per_second": {name: round(1000 * batch / value, 1) for name, value in medians.items()},
        "ratio_quartiles": {name: quartiles(times[name], times[names[0]]) for name in names[1:]},
        "best_peer": min(peers, key=lambda name: medians[name]), "outputs": said,
    }  # fmt: skip


def _timed(run: Run, images_BCHW: Tensor, repeats: int) -> float:
    """Seconds of a call, of so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        run(images_BCHW)
    return (time.perf_counter() - start) / repeats


def show(result: dict[str, Any]) -> str:
    """One row as a few lines."""
    lines = [f"{result['row']}: engine=auto took {result['auto']}, n = {result['rounds']}"]
    for name, rate in result["images_per_second"].items():
        q = result["ratio_quartiles"].get(name)
        ratio = f"peer / ours {q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]" if q else ""
        said = result["outputs"][name]
        same = f"agreement {said['agreement']:.2f}, differs {said['differs']:.1e}"
        lines.append(f"  {name:<20} {rate:8.1f} images/s  {ratio:<32} {same}")
    return "\n".join(lines)


def _runtimes() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnxruntime", "openvino")}


if __name__ == "__main__":
    main()
