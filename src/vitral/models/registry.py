"""The families of models, in one table. Nothing here imports torch before a model is built.

Other modules do not check the family of a model, but what it can do: the properties of its configuration, and
`token_encoder` for what only an encoder of patch tokens does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from vitral.config import build
from vitral.errors import UserError
from vitral.models.config import ModelConfig, ResNetConfig, ViTConfig
from vitral.models.infer_architecture import infer_resnet, infer_vit
from vitral.models.resnet_presets import RESNETS
from vitral.models.vit_presets import VITS

if TYPE_CHECKING:
    from torch import Tensor

    from vitral.models.model import ImageModel
    from vitral.models.vit import VisionTransformer

Size = int | tuple[int, int]
Infer = Callable[..., tuple[dict[str, Any], list[str]]]


@dataclass(frozen=True)
class Family:
    """What makes a family: its configuration and module, and what others have to know of its parameters' names.

    title, tag: its name in a model card, and its tag on a hub. config: a class whose `family` is the key in FAMILIES.
    model: "module:class" of the ImageModel, imported when the first one is built. presets: named configurations.
    blocks: where the numbered layers are, "NAME.0." and so on. last: first parts of the names of parameters behind
    them, head: those that a new task replaces; all others are in front of the blocks. signature: a tensor that weights
    of this family alone have, and infer: the architecture from them (see `infer` below); without one, weights of other
    libraries are not recognized.
    """

    title: str
    tag: str
    config: type[ModelConfig]
    model: str
    presets: Mapping[str, dict[str, Any]]
    blocks: str = "blocks"
    last: tuple[str, ...] = ()
    head: tuple[str, ...] = ("head",)
    signature: str | None = None
    infer: Infer | None = None


FAMILIES: dict[str, Family] = {
    "vit": Family(
        "Vision Transformer", "vision-transformer", ViTConfig, "vitral.models.vit:VisionTransformer", VITS,
        last=("norm", "fc_norm", "attn_pool", "reduce"), head=("head", "head_dist", "pre_logits"),
        signature="patch_embed.proj.weight", infer=infer_vit,
    ),
    "resnet": Family(
        "residual network", "resnet", ResNetConfig, "vitral.models.resnet:ResNet", RESNETS,
        blocks="stages", last=("norm",), signature="stem.conv.weight", infer=infer_resnet,
    ),
}  # fmt: skip


class _ByFamily:
    """A field that holds the configuration of any family, distinguished by their key."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(family.config) for name, family in FAMILIES.items()}
        return core_schema.tagged_union_schema(choices, _family)


def _family(value: Any) -> Any:
    return value.get("family", "vit") if isinstance(value, dict) else getattr(value, "family", None)


AnyModelConfig = Annotated[ModelConfig, _ByFamily()]


def build_config(tree: Mapping[str, Any], where: str | None = None) -> ModelConfig:
    """The validated configuration of the family that the tree names; without a name a Vision Transformer.

    Raises UserError for an unknown family or key, a value of the wrong kind, or fields that do not fit each other.
    """
    family = tree.get("family", "vit")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError("unknown family of models", where=where, got=family, expected=", ".join(FAMILIES))
    return build(FAMILIES[family].config, tree, where=where)


def infer(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], where: str, image_size: Size | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Fields of a configuration from tensors by our names, and a line on each that had to be guessed. Facts win where
    shapes leave a choice.

    image_size: height and width in pixels, where positions are for these if they are as many; another size is for
    later. Raises UserError where an essential tensor is missing or the image size cannot be inferred.
    """
    known = [family.infer for family in FAMILIES.values() if family.infer and family.signature in tensors]
    return (known[0] if known else infer_vit)(tensors, facts, where, image_size)


def token_config(config: ModelConfig) -> ViTConfig | None:
    """The configuration as that of an encoder of patch tokens, or None where the model is none."""
    return config if isinstance(config, ViTConfig) else None


def token_encoder(model: ImageModel) -> VisionTransformer | None:
    """The model as an encoder of patch tokens (`embed`, `encode_tokens`, capture of attention), or None."""
    from vitral.models.vit import VisionTransformer

    return model if isinstance(model, VisionTransformer) else None
