"""Small runs that learn to write text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitral.config import dump_yaml
from vitral.run.config import load_run
from vitral.run.text_config import TextRunConfig
from vitral.run.train import run

SMALL: dict[str, Any] = {
    "task": "text", "recipe": "toy",
    "data": {"source": "reverse", "count": 400, "lengths": [3, 5], "symbols": 5, "max_source": 8, "max_target": 8},
    "model": {"name": "transformer_tiny", "width": 32, "mlp_dim": 64},
    "search": {"max_length": 8},
    "optim": {"lr": 3e-3, "weight_decay": 0.01},
    "train": {"steps": 6, "batch_size": 16},
    "report": False,
}  # fmt: skip
STRIPS: dict[str, Any] = {
    "task": "text", "recipe": "strips", "data": {"source": "digits_read", "count": 64, "max_target": 8},
    "model": {"name": "vit_text_micro_patch2_8x40"}, "search": {"max_length": 8},
    "optim": {"lr": 3e-3}, "train": {"steps": 3, "batch_size": 8}, "report": False,
}  # fmt: skip
CTC_STRIPS: dict[str, Any] = {**STRIPS, "model": {"name": "vit_ctc_micro_patch2_8x40"}, "search": {}}


def text_config(folder: Path, base: dict[str, Any] = SMALL, **keys: Any) -> TextRunConfig:
    """The configuration of a run; `keys` with __ in place of dots."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_yaml(base), encoding="utf-8")
    config = load_run(str(recipe), {name.replace("__", "."): value for name, value in keys.items()})
    assert isinstance(config, TextRunConfig)
    return config


def text_run(folder: Path, base: dict[str, Any] = SMALL, **keys: Any) -> dict[str, Any]:
    """Run it in `folder`/run; its summary."""
    return run(text_config(folder, base, **{"out": str(folder / "run"), **keys}))
