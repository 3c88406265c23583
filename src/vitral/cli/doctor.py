"""`vitral doctor`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted
from vitral.config import build, help_text, with_overrides
from vitral.errors import UserError
from vitral.run.options import DoctorOptions
from vitral.version import __version__

HELP = """usage: vitral doctor [MODEL | RUN] [key=value] [--json]

Says what a bug report needs: versions, device, instruction sets, memory, threads, free disk, optional packages,
environment variables that matter, and the speed of a small model's training step.

With a model: verifies every byte of its folder against the digests in config.json, loads it and computes one image.
With an export: compares its outputs on this processor with those of its model, which are in proof.json beside it.

With the folder of a run that ended after steps that were not finite: runs the batch of the last one again, on the
weights that it met, and says which images it holds and in which module the first NaN or infinity appears.

key, type, default, meaning:

{keys}
"""

OPTIONAL = ("timm", "transformers", "torchvision", "tensorboard", "onnx", "onnxruntime", "openvino")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NO_COLOR")


def run(arguments: Arguments) -> int:
    """Examine and print."""
    if arguments.help:
        print(fitted(HELP.format(keys=help_text(DoctorOptions))), end="")
        return 0
    if len(arguments.words) > 1 or (arguments.pairs and not arguments.words):
        got = " ".join([*arguments.words, *arguments.pairs])
        raise UserError("doctor takes one model or run folder at most", got=got)
    options = build(DoctorOptions, with_overrides(DoctorOptions, {}, arguments.pairs))
    facts = _look_at(arguments.words[0], options) if arguments.words else examine()
    if arguments.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:<22} {_text(value)}")
    return 0


def _text(value: Any) -> str:
    """A fact as a line shows it: numbers with separators, what is not there as `none`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def _look_at(name: str, options: DoctorOptions) -> dict[str, Any]:
    """A run that ended after bad steps, or else a model."""
    from vitral.run.replay import bad_state, replay

    if bad_state(Path(name)) is not None and not options.accept:
        return replay(Path(name))
    from vitral.run.check_model import check_model
    from vitral.training.journal import console_logging

    console_logging()
    return check_model(name, accept=options.accept)


def examine() -> dict[str, Any]:
    """What `vitral doctor` shows: names to plain values."""
    import numpy
    import PIL
    import torch

    from vitral.processor import instruction_sets

    cuda = torch.cuda.is_available()
    return {
        "vitral": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "versions": {"torch": str(torch.__version__), "numpy": numpy.__version__, "pillow": PIL.__version__},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "device_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if cuda else None,
        "processor_cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
        if hasattr(os, "sysconf")
        else None,
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "optional_packages": {name: "present" if find_spec(name) else "absent" for name in OPTIONAL},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "train_step_ms": _step_milliseconds("cuda" if cuda else "cpu"),
    }


def _step_milliseconds(device: str) -> float:
    """Median time of a forward and backward pass of vit_micro_patch2_8, 64 images, after a warm-up; under 2 seconds."""
    import torch

    from vitral.models.create import create_model

    model = create_model("vit_micro_patch2_8").to(device)
    images_BCHW = torch.rand(64, 3, 8, 8, device=device)
    times: list[float] = []
    for _ in range(12):
        start = time.perf_counter()
        model(images_BCHW).square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return round(1000 * sorted(times[2:])[5], 2)
