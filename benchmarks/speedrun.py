"""A plain ViT on CIFAR-10 from scratch, by the package's own engine: time of the whole and mean final accuracy.

    python benchmarks/speedrun.py data=DIR                                      # five seeds, on one GPU
    python benchmarks/speedrun.py data=DIR recipe=cifar10_vit seeds=1 save=benchmarks/results/cifar10_vit.json
    python benchmarks/speedrun.py data=DIR seeds=1 train.steps=20 train.batch_size=64   # anywhere: no result

DIR holds CIFAR-10, the python or the binary version. Each seed is a process of its own, `vitral train` with the fixed
schedule of the recipe and nothing kept from a run before (the compiler's cache is empty). Accuracy is that of the last
averaged weights on all 10,000 test images, looked at once. Two clocks: `seconds` hold the whole process, that is
starting Python, reading the images, compiling, all of training, judging the test images and writing the model folder;
`train_seconds` hold the steps with compiling, augmentation and saving. Neither holds unpacking of the data, nor the
check for damaged and doubled images, which is left out. Words with a dot change the recipe, and the result says so.

The model folder of seed 0 is left as OUT/vitral-cifar10, weights in bfloat16, in the form in which models come with the
package. To bundle it: cp -r runs/speedrun/vitral-cifar10 src/vitral/bundled/
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vitral.config import parse_yaml, split_words
from vitral.data.config import DataConfig
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.files import read_json
from vitral.run.config import load_config
from vitral.version import __version__
from vitral.weights.digests import signed
from vitral.weights.folder import CARD, CONFIG, WEIGHTS, whole_folder
from vitral.weights.tensors import load_tensors, save_tensors

BUNDLE = "vitral-cifar10"


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {
        "recipe": "cifar10_speedrun",
        "seeds": 5,
        "data": None,
        "out": "runs/speedrun",
        "save": None,
    }
    changed = {key: value for key, value in pairs.items() if key not in options}
    options |= {key: parse_yaml(value) for key, value in pairs.items() if key in options}
    if options["data"] is None:
        sys.exit("data=DIR is needed: the folder of CIFAR-10")
    exact = is_exact(options["data"])
    load_config(options["recipe"], {**changed, "data": options["data"]})  # a wrong key fails here, and not five times
    runs = [one_run(seed, exact, options, changed) for seed in range(options["seeds"])]
    bundle(Path(options["out"]) / "seed0/model", Path(options["out"]) / BUNDLE)
    found = {
        **environment(),
        "recipe": options["recipe"],
        "changed": changed,
        "train_images": said(exact),
        "runs": runs,
    }
    found |= summary(runs)
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))
    print(line(found), file=sys.stderr)


def is_exact(data: str) -> bool:
    """Whether the images are those that were published, by their md5 sums. Raises UserError for other trouble."""
    try:
        open_dataset(DataConfig(path=data, source="cifar"), hold_out=False)
    except UserError as error:
        if "md5" not in str(error):
            raise
        return False
    return True


def said(exact: bool) -> str:
    """Which images were trained on."""
    return "the published ones" if exact else "others than published by their md5 sums (a JPEG-95 pack has such)"


def one_run(seed: int, exact: bool, options: dict[str, Any], changed: dict[str, str]) -> dict[str, Any]:
    """One seed in a process of its own."""
    words = {"data": options["data"], "out": f"{options['out']}/seed{seed}", "seed": seed, "overwrite": "true"}
    words |= {"check.skip": "true", "report": "false", "data.verify": str(exact).lower(), **changed}
    command = [sys.executable, "-m", "vitral", "train", options["recipe"], "--json"]
    with tempfile.TemporaryDirectory() as cache:
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *(f"{key}={value}" for key, value in words.items())],
            stdout=subprocess.PIPE, env=environ, encoding="utf-8", check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"seed {seed} ended with exit code {done.returncode}")
    result = json.loads(done.stdout)
    kept = {key: result[key] for key in ("seed", "top1", "split", "count", "steps", "train_seconds", "parameters")}
    return {**kept, "seconds": round(seconds, 1)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, spread and times over the seeds."""
    scores = [run["top1"] for run in runs]
    return {
        "top1_mean": statistics.mean(scores),
        "top1_deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "seconds_mean": statistics.mean(run["seconds"] for run in runs),
        "train_seconds_mean": statistics.mean(run["train_seconds"] for run in runs),
        "is_result": torch.cuda.is_available(),
    }


def bundle(model: Path, place: Path) -> None:
    """The model folder with its weights in bfloat16: half the size, and no more of it is needed to predict."""
    tensors, metadata = load_tensors(model / WEIGHTS)
    with whole_folder(place) as folder:
        shutil.copy(model / CARD, folder / CARD)
        save_tensors(folder / WEIGHTS, {name: tensor.bfloat16() for name, tensor in tensors.items()}, metadata)
        (folder / CONFIG).write_text(signed(read_json(model / CONFIG), folder / WEIGHTS), encoding="utf-8")


def line(found: dict[str, Any]) -> str:
    """The result in words."""
    if not found["is_result"]:
        return "no CUDA device: this shows that the script works, and is no result"
    spread = f", standard deviation {100 * found['top1_deviation']:.2f}" if found["top1_deviation"] is not None else ""
    return (
        f"{100 * found['top1_mean']:.2f} % of the test images, mean of {len(found['runs'])} seeds{spread}; "
        f"{found['seconds_mean']:.0f} s a process, {found['train_seconds_mean']:.0f} s of them training, on "
        f"{found['device']}; train images: {found['train_images']}"
    )


def environment() -> dict[str, Any]:
    """Versions and machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"vitral": __version__, "torch": str(torch.__version__), "device": device}


if __name__ == "__main__":
    main()
