"""Shapes, parameters, compute and memory of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vitral.errors import UserError, taken
from vitral.models.activations import Precision, kept_activations
from vitral.models.config import ViTConfig, build_config
from vitral.models.flops import count_macs
from vitral.models.presets import PRESETS, count_parameters, resolve
from vitral.models.walk import formula, walk
from vitral.run.memory import Architecture
from vitral.run.options import SummaryOptions
from vitral.training.plan import Job, forward_bytes, predict
from vitral.weights.find import model_config
from vitral.whole import whole_file


def summarize(name: str, options: SummaryOptions) -> dict[str, Any]:
    """Compute and memory per image of a preset or a model folder, their growth with image size, patch size and depth,
    and the output shape of every stage. Writes a plot of the growth to `options.out`, if it is given."""
    target = _picture(options)
    architecture = resolve(name) if name in PRESETS else model_config(name).architecture
    if options.image_size is not None:
        architecture = build_config({**architecture.model_dump(), "image_size": options.image_size}, where="image_size")
    precision = options.precision
    grown = {
        "sizes": [_grown(architecture, {"image_size": size}, precision) for size in _sizes(architecture)],
        **({key: _series(architecture, key, precision) for key in ("patch_size", "depth")}
           if isinstance(architecture, ViTConfig) else {}),
    }  # fmt: skip
    if target is not None:
        from vitral.report.growth import growth_plot

        with whole_file(target) as partial:
            partial.write_bytes(growth_plot(grown))
    count = count_parameters(architecture)
    parts = predict(Job(architecture, count, count, 1, precision), 1)  # AdamW, no average
    return {
        **compute(architecture), "memory_bytes": sum(parts), "precision": precision, "parts": parts._asdict(),
        "image_size": list(architecture.image_size), **grown,
        "walk": [{"stage": stage.name, "shape": list(stage.shape)} for stage in walk(architecture)],
        **({"formula": formula(architecture)} if isinstance(architecture, ViTConfig) else {}),
    }  # fmt: skip


def _picture(options: SummaryOptions) -> Path | None:
    """The file to write. Raises UserError for one that exists or cannot be written."""
    if options.out is None:
        return None
    path = Path(options.out).expanduser()
    if path.suffix.lower() != ".png":
        raise UserError("not a PNG file", where="out", got=options.out, wanted="a name that ends in .png")
    if path.is_dir() or (path.exists() and not options.overwrite):
        raise taken(path, overwrite=not path.is_dir())
    if not path.parent.is_dir():
        raise UserError("no such folder", where="out", got=path.parent)
    return path


def _sizes(architecture: Architecture) -> list[tuple[int, ...]]:
    factors = (0.5, 1.0, 1.5, 2.0)
    return [tuple(_multiple(side * factor, architecture) for side in architecture.image_size) for factor in factors]


def _series(architecture: ViTConfig, key: Literal["patch_size", "depth"], precision: Precision) -> list[dict[str, Any]]:
    """Half, once, one and a half times and twice the model's own value, as far as such a model can be."""
    own = architecture.patch_size if key == "patch_size" else architecture.depth
    rows: list[dict[str, Any]] = []
    for value in dict.fromkeys(max(1, round(own * factor)) for factor in (0.5, 1, 1.5, 2)):
        try:
            rows.append({key: value, **_grown(architecture, {key: value}, precision)})
        except UserError:  # a patch that the image is no multiple of, lists of as many values as blocks
            continue
    return rows


def _grown(architecture: Architecture, changes: dict[str, Any], precision: Precision) -> dict[str, Any]:
    """Parameters, compute and memory per image of the architecture with changes."""
    other = build_config({**architecture.model_dump(), **changes}, where="summary")
    kept = kept_activations(other, 1, precision)
    return {
        "image_size": list(other.image_size), "parameters": count_parameters(other),
        "macs": sum(count_macs(other).values()), "forward_bytes": forward_bytes(other, 1),
        "training_bytes": kept.total() + kept.workspace,
    }  # fmt: skip


def _multiple(side: float, architecture: Architecture) -> int:
    step = architecture.patch_size if isinstance(architecture, ViTConfig) else 1
    return max(round(side / step), 1) * step


def compute(architecture: Architecture) -> dict[str, Any]:
    """Parameters and multiply-accumulates per forward image: in all, by part, and with all tokens in the last block."""
    parts = {name: count for name, count in count_macs(architecture).items() if count}
    macs = sum(parts.values())
    return {
        "parameters": count_parameters(architecture), "macs": macs, "flops": 2 * macs,
        "macs_all_tokens": sum(count_macs(architecture, whole=True).values()), "macs_parts": parts,
    }  # fmt: skip
