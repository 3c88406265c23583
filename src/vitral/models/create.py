"""Create a model from a name or a configuration."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.config import ModelConfig
from vitral.models.model import ImageModel
from vitral.models.network import Network
from vitral.models.presets import resolve, resolve_sequence
from vitral.models.registry import FAMILIES
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel


def create_model(
    name: str,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> ImageModel:
    """A freshly initialized model, by a name that `list_models` gives (timm's names, "vit_base_patch16_224").

    num_classes: outputs of the head, 0 for pooled features; None means 1000 for presets of 224 pixels and more
    (ImageNet-1k), else 10. image_size: pixels, one number or (height, width), multiples of the patch size; None means
    the preset's. in_channels: 1 to 4; None means 3. options: any other field of the family's configuration, patch_size
    or drop_path for instance. Random values come from torch's global state. Raises UserError for anything that does not
    fit.
    """
    given = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
    return build_model(resolve(name, **{key: value for key, value in given.items() if value is not None}, **options))


def build_model(config: ModelConfig) -> ImageModel:
    """A freshly initialized encoder of images, from torch's global random state."""
    model = build_network(config)
    assert isinstance(model, ImageModel)
    return model


def create_sequence_model(name: str, **options: Any) -> SequenceModel:
    """A freshly initialized model of sequences by a preset's name ("transformer_tiny"), from torch's global random
    state. options: any field of its configuration, the sizes of vocabularies for instance. Raises UserError."""
    return build_sequence_model(resolve_sequence(name, **options))


def build_sequence_model(config: SequenceConfig) -> SequenceModel:
    """A freshly initialized model of sequences, from torch's global random state."""
    model = build_network(config)
    assert isinstance(model, SequenceModel)
    return model


def build_network(config: ArchitectureConfig) -> Network:
    """A freshly initialized model of any family, from torch's global random state."""
    module, _, name = FAMILIES[config.family].model.partition(":")
    return getattr(import_module(module), name)(config)
