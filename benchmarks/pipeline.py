"""From JPEG files to classes on a CPU: ours beside transformers' image-classification pipeline, taking turns.

    python benchmarks/pipeline.py                           # needs python tools/install.py -e ".[bench]"
    python benchmarks/pipeline.py rows=small rounds=15 files=64 threads=2 save=benchmarks/results/pipeline.json

The files are 500 x 375 pixels, noise with a photograph's spectrum at JPEG quality 90, as in data.py. All have the same
random weights: the pipeline's are what `vitral export format=hf` makes of ours. Ours is what `vitral predict FOLDER`
does in its process, from the paths to the five likeliest classes, plain and with engine=auto, whose export is not
timed; the pipeline does the same with batch_size=1 and 8, and the better of the two in each precision is "best_peer".

A row gives the median over the rounds of the pipeline's time / our time, with its quartiles: above 1 we are faster.
"agreement" is the share of files whose likeliest class is the one that our model gives in float32.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import environment, quartiles

from data import photo, write
from tests.oracles import load_oracle
from vitral.cli.images import image_paths
from vitral.config import parse_yaml, split_words
from vitral.data.image_spec import ImageSpec
from vitral.engines import Precision
from vitral.export.config import ExportOptions
from vitral.export.library_folders import export
from vitral.export.runtime_engine import with_engine
from vitral.models.create import create_model
from vitral.models.model import ImageModel
from vitral.predictor import load
from vitral.weights.folder import FolderConfig, save_folder

MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224")
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Run = Callable[[], list[str]]


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    given = {key: parse_yaml(value) for key, value in pairs.items()}
    options: dict[str, Any] = {"rounds": 15, "threads": 2, "files": 64, "rows": "", "save": None, **given}
    torch.set_num_threads(options["threads"])
    results, loads = list[dict[str, Any]](), [os.getloadavg()]
    with tempfile.TemporaryDirectory() as place:
        images = Path(place, "images")
        images.mkdir()
        write(images, "photo", photo, (375, 500), options["files"])
        for name in MODELS:
            for precision in PRECISIONS:
                title = f"{name}, {precision}"
                if str(options["rows"]) in title:
                    runs, chosen = contestants(name, precision, images, Path(place))
                    results.append(measure(title, runs, options["rounds"]) | {"auto": chosen})
                    loads.append(os.getloadavg())
                    print(show(results[-1]), flush=True)
    if options["save"]:
        facts = {"environment": environment(), "load_averages": loads, "results": results}
        Path(options["save"]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def contestants(name: str, precision: Precision, images: Path, place: Path) -> tuple[dict[str, Run], str]:
    """Functions from nothing to the likeliest class of each file, the reference and then ours first; what auto took."""
    folder = place / name
    if not folder.exists():
        save_model(name, folder)
        export(str(folder), ExportOptions(format="hf", out=f"{folder}-hf"))
    plain = load(folder, "cpu")
    predictors = {"vitral auto": with_engine(plain, "auto", precision), "vitral torch": plain}
    if precision != "float32":
        predictors["vitral torch"] = with_engine(plain, "torch", precision)

    def ours(name: str) -> Run:
        return lambda: [row["predictions"][0]["label"] for row in predictors[name].predict(image_paths([str(images)]))]

    load_oracle("torchvision")
    transformers: Any = load_oracle("transformers")
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    theirs = transformers.pipeline(
        "image-classification", model=f"{folder}-hf", device="cpu", dtype=PRECISIONS[precision]
    )

    def peer(batch: int) -> Run:
        return lambda: [row[0]["label"] for row in theirs(image_paths([str(images)]), batch_size=batch)]

    runs: dict[str, Run] = {each: ours(each) for each in predictors}
    runs |= {f"transformers, batch_size={batch}": peer(batch) for batch in (1, 8)}
    expected = [row["predictions"][0]["label"] for row in plain.predict(image_paths([str(images)]))]
    return {"": lambda: expected, **runs}, predictors["vitral auto"].engine.name


def save_model(name: str, folder: Path) -> None:
    """A model folder of random weights, whose classes are told apart by more than rounding."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=1000).eval()
    assert isinstance(model, ImageModel)
    nn.init.normal_(model.get_parameter("head.weight"), std=0.3)
    c = model.config
    config = FolderConfig(
        name=name, task="classification", architecture=c,
        id2label={str(i): f"class {i}" for i in range(c.num_classes)}, provenance={},
        preprocessing=ImageSpec(image_size=c.image_size, channels=c.in_channels, resize_mode="crop", crop_pct=0.875),
    )  # fmt: skip
    save_folder(folder, model, config, "# random weights\n")


def measure(title: str, runs: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Seconds of every contestant, all files each in turn; the order turns with the rounds."""
    expected = runs.pop("")()
    agreement = {
        name: statistics.mean(a == b for a, b in zip(run(), expected, strict=True)) for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "row": title, "ratio": "time of the peer / our time", "rounds": rounds, "files": len(expected),
        "images_per_second": {name: round(len(expected) / value, 1) for name, value in medians.items()},
        "ratio_quartiles": {name: quartiles(times[name], times[names[0]]) for name in names[1:]},
        "best_peer": min(names[2:], key=lambda name: medians[name]), "agreement": agreement,
    }  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """One row as a few lines."""
    lines = [f"{result['row']}: engine=auto took {result['auto']}, n = {result['rounds']}"]
    for name, rate in result["images_per_second"].items():
        q = result["ratio_quartiles"].get(name)
        ratio = f"peer / ours {q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]" if q else ""
        lines.append(f"  {name:<28} {rate:8.1f} images/s  {ratio:<32} agreement {result['agreement'][name]:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
