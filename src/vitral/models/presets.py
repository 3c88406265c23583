"""All named models in one table. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vitral.errors import UserError, nearest
from vitral.files import read_json
from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.config import ModelConfig
from vitral.models.registry import FAMILIES, ConfigT, build_any
from vitral.models.sequence_config import SequenceConfig

PRESETS: dict[str, dict[str, Any]] = {
    name: {"family": key, **preset} for key, family in FAMILIES.items() for name, preset in family.presets.items()
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that `resolve` knows and that fit a shell pattern (`*tiny*`), of each kind the smallest first."""
    return [name for name in PRESETS if fnmatchcase(name, pattern)]


def preset_table() -> dict[str, dict[str, int]]:
    """`parameters` (head included) and `macs_all_tokens` (multiply-accumulates of one sample, as the config's
    `input_shapes` has it, with all tokens in the last block, as papers count) of every preset, without torch: a file
    that tools/model_table.py measures."""
    return read_json(Path(__file__).with_name("table.json"))


def resolve(name: str, **options: Any) -> ModelConfig:
    """The configuration of a named encoder of images, with any of its fields replaced.

    num_classes is 1000 for presets of 224 pixels and more (ImageNet-1k) and 10 for the smaller ones (CIFAR-10, digits).
    Raises UserError for an unknown name or option, a value of the wrong kind, or fields that do not fit each other.
    """
    return _resolve(ModelConfig, name, options)


def resolve_sequence(name: str, **options: Any) -> SequenceConfig:
    """The configuration of a named model of sequences, with any of its fields replaced. Raises UserError as
    `resolve`."""
    return _resolve(SequenceConfig, name, options)


def resolve_any(name: str, **options: Any) -> ArchitectureConfig:
    """The configuration of a named model of any kind. Raises UserError as `resolve`."""
    return _resolve(ArchitectureConfig, name, options)


def _resolve(kind: type[ConfigT], name: str, options: Mapping[str, Any]) -> ConfigT:
    if name not in PRESETS:
        hint = f"{len(PRESETS)} models are known: vitral models"
        raise UserError("unknown model", where=name, nearest=nearest(name, PRESETS), hint=hint)
    preset = PRESETS[name]
    classes = {"num_classes": 1000 if preset["image_size"] >= 224 else 10} if "image_size" in preset else {}
    return build_any(kind, {**classes, **preset, **options}, where=name)


# What does not make it another model: classes and images that the data bring, and how it is trained.
_FREE = {
    "num_classes", "in_channels", "mean", "std", "dropout", "drop_path", "position_resize", "vocabulary",
    "source_vocabulary", "max_length", "encoder", "pad_id",
}  # fmt: skip


def changed_name(name: str, config: ArchitectureConfig) -> str:
    """A preset's name with what differs from the preset, as in `vit_tiny_patch16_224 (patch_size=28)`; any other name
    as it is. Changes that the name holds already are written again."""
    base = name.partition(" (")[0]
    if base not in PRESETS or (preset := resolve_any(base)).family != config.family:
        return name
    mine, theirs = config.model_dump(exclude=_FREE), preset.model_dump(exclude=_FREE)
    changes = ", ".join(f"{key}={_short(value)}" for key, value in mine.items() if value != theirs[key])
    return f"{base} ({changes})" if changes else base


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("quantizer"))
    if isinstance(value, tuple):
        return str(value[0]) if len(value) == 2 and value[0] == value[1] else "x".join(map(str, value)) or "none"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
