"""`vitral doctor`."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.table import table
from vitral.errors import UserError
from vitral.run.command_options import DoctorOptions
from vitral.version import __version__

HELP = """usage: vitral doctor [MODEL | RUN] [key=value] [--json]

Prints what a bug report needs: versions, device, instruction sets, memory, threads, free disk, optional packages,
relevant environment variables, and the time of a small model's training step.

With a model: verifies every byte of its folder against the digests in config.json, loads it and predicts one image.
With an export: compares its outputs on this processor with those of its model, stored beside it in proof.json.
With the folder of a run that ended on non-finite losses or gradients: repeats the last such batch with the weights of
that step, and lists its images and the first module with a NaN or infinity.

{keys}

examples:
  vitral doctor
  vitral doctor runs/mine
"""

OPTIONAL = ("timm", "transformers", "torchvision", "tensorboard", "onnx", "onnxruntime", "openvino")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NO_COLOR")


@command(HELP, DoctorOptions)
def run(arguments: Arguments, options: DoctorOptions) -> Answer:
    """Examine and print."""
    if arguments.pairs and not arguments.words:
        raise UserError("accept=true requires a model folder", hint="vitral doctor MODEL accept=true")
    facts = _inspect(arguments.words[0], options) if arguments.words else examine()
    return Answer(facts, lambda: table((), [(name, _text(value)) for name, value in facts.items()]))


def _text(value: Any) -> str:
    """Return a value as text: numbers with separators, empty values as `none`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def _inspect(name: str, options: DoctorOptions) -> dict[str, Any]:
    """Return facts about a run that ended on non-finite steps, or about a model."""
    from vitral.run.replay_step import bad_state, replay

    if bad_state(Path(name)) is not None and not options.accept:
        return replay(Path(name))
    from vitral.run.check_model import check_model
    from vitral.training.metrics_log import console_logging

    console_logging()
    return check_model(name, accept=options.accept)


def examine() -> dict[str, Any]:
    """Return the facts of `vitral doctor` by name."""
    import numpy
    import PIL
    import torch

    from vitral.cpu import instruction_sets

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
    """Measure the median time of forward and backward of vit_micro_patch2_8, 64 images; under 2 seconds."""
    import torch
    from torch.utils.benchmark import Timer

    from vitral.models.create import create_model

    model = create_model("vit_micro_patch2_8").to(device)
    images_BCHW = torch.rand(64, 3, 8, 8, device=device)
    names = {"model": model, "images_BCHW": images_BCHW}
    step = Timer("model(images_BCHW).square().mean().backward()", globals=names, num_threads=torch.get_num_threads())
    return round(1000 * step.blocked_autorange(min_run_time=0.2).median, 2)
