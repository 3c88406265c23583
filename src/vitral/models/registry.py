"""The families of models, in one table. Nothing here imports torch before a model is built.

Other modules do not check the family of a model, but what it can do: the properties of its configuration, and
`token_encoder`, `code_model` and `image_tokenizer` for what only some models do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from vitral.config import build
from vitral.errors import UserError
from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.config import ModelConfig, ResNetConfig, ViTConfig
from vitral.models.detector_config import DETECTORS, DetectorConfig
from vitral.models.igpt_config import IGPTS, IGPTConfig
from vitral.models.image_tokenizer_config import TOKENIZERS, ImageTokenizerConfig
from vitral.models.infer_architecture import infer_igpt, infer_resnet, infer_vit
from vitral.models.resnet_presets import RESNETS
from vitral.models.sequence_config import ImageToTextConfig, LSTMConfig, Seq2SeqConfig, SequenceConfig
from vitral.models.sequence_presets import IMAGE_TO_TEXT, LSTMS, TRANSFORMERS
from vitral.models.vit_presets import VITS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitral.models.detector import Detector
    from vitral.models.igpt import IGPT
    from vitral.models.image_tokenizer import ImageTokenizer
    from vitral.models.vit import VisionTransformer

ConfigT = TypeVar("ConfigT", bound=ArchitectureConfig)

Size = int | tuple[int, int]
Infer = Callable[..., tuple[dict[str, Any], list[str]]]


@dataclass(frozen=True)
class Family:
    """What makes a family: its configuration and module, and what others have to know of its parameters' names.

    title, tag: its name in a model card, and its tag on a hub. config: a class whose `family` is the key in FAMILIES; a
    ModelConfig where the family encodes images, a SequenceConfig where it writes sequences. model: "module:class" of
    the Network, imported when the first one is built. presets: named configurations.
    blocks: where the numbered layers are, "NAME.0." and so on. last: first parts of the names of parameters behind
    them, head: those that a new task replaces; all others are in front of the blocks. signature: a tensor that weights
    of this family alone have, and infer: the architecture from them (see `infer` below); without one, weights of other
    libraries are not recognized.
    """

    title: str
    tag: str
    config: type[ArchitectureConfig]
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
        last=("norm", "fc_norm", "attn_pool", "reduce", "rel_pos_bias"), head=("head", "head_dist", "pre_logits"),
        signature="patch_embed.proj.weight", infer=infer_vit,
    ),
    "resnet": Family(
        "residual network", "resnet", ResNetConfig, "vitral.models.resnet:ResNet", RESNETS,
        blocks="stages", last=("norm",), signature="stem.conv.weight", infer=infer_resnet,
    ),
    "detector": Family(
        "detector on a Vision Transformer", "object-detection", DetectorConfig, "vitral.models.detector:Detector",
        DETECTORS, last=("norm", "fc_norm", "attn_pool", "rel_pos_bias"),
        head=("pyramid", "dense_head", "second_stage"),
    ),
    "igpt": Family(
        "Image GPT", "image-gpt", IGPTConfig, "vitral.models.igpt:IGPT", IGPTS, last=("norm", "code_head"),
        signature="code_head.weight", infer=infer_igpt,
    ),
    "image_tokenizer": Family(
        "image tokenizer", "image-tokenizer", ImageTokenizerConfig, "vitral.models.image_tokenizer:ImageTokenizer",
        TOKENIZERS, blocks="encoder.blocks.blocks", last=("quantizer", "decoder"), head=(),
    ),
    "seq2seq": Family(
        "Transformer encoder-decoder", "transformer", Seq2SeqConfig, "vitral.models.seq2seq:Seq2Seq", TRANSFORMERS,
        blocks="encoder.blocks", last=("decoder",), head=("output",),
    ),
    "lstm": Family(
        "recurrent encoder-decoder", "lstm", LSTMConfig, "vitral.models.lstm:RecurrentSeq2Seq", LSTMS,
        blocks="encoder.blocks", last=("decoder", "bridge"), head=("output",),
    ),
    "image_to_text": Family(
        "image to text", "image-to-text", ImageToTextConfig, "vitral.models.image_to_text:ImageToText", IMAGE_TO_TEXT,
        blocks="encoder.blocks", last=("project", "decoder"), head=("ctc",),
    ),
}  # fmt: skip


def families_of(kind: type[ConfigT]) -> dict[str, type[ConfigT]]:
    """The configuration classes of all families of a kind: ModelConfig (encoders of images) or SequenceConfig."""
    return {name: family.config for name, family in FAMILIES.items() if issubclass(family.config, kind)}


class _ByFamily:
    """A field that holds the configuration of any family of a kind, distinguished by their key."""

    def __init__(self, kind: type[ArchitectureConfig]) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(config) for name, config in families_of(self.kind).items()}
        return core_schema.tagged_union_schema(choices, _family)


def _family(value: Any) -> Any:
    return value.get("family", "vit") if isinstance(value, dict) else getattr(value, "family", None)


AnyModelConfig = Annotated[ModelConfig, _ByFamily(ModelConfig)]
AnySequenceConfig = Annotated[SequenceConfig, _ByFamily(SequenceConfig)]


def build_config(tree: Mapping[str, Any], where: str | None = None) -> ModelConfig:
    """The validated configuration of the family of image encoders that the tree names; without a name a Vision
    Transformer.

    Raises UserError for an unknown family or key, a value of the wrong kind, or fields that do not fit each other.
    """
    return build_any(ModelConfig, {"family": "vit", **tree}, where)


def build_any(kind: type[ConfigT], tree: Mapping[str, Any], where: str | None = None) -> ConfigT:
    """The validated configuration of the family that the tree names, one of this kind (see `families_of`). Raises
    UserError as `build_config`."""
    family, known = tree.get("family"), families_of(kind)
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError("unknown family of models", where=where, got=family, expected=", ".join(known))
    if family not in known:
        got = f"{FAMILIES[family].title} ({family})"
        raise UserError("wrong kind of model", where=where, got=got, expected=", ".join(known))
    return build(known[family], tree, where=where)


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


def token_encoder(model: nn.Module) -> VisionTransformer | None:
    """The model as an encoder of patch tokens (`embed`, `encode_tokens`, capture of attention), or None."""
    from vitral.models.vit import VisionTransformer

    return model if isinstance(model, VisionTransformer) else None


def detector(model: nn.Module) -> Detector | None:
    """The model as a detector (`locate`, `decode`), or None."""
    from vitral.models.detector import Detector

    return model if isinstance(model, Detector) else None


def code_model(model: nn.Module) -> IGPT | None:
    """The model as one of the codes of images (`codes`, `read`, `nll`), or None."""
    from vitral.models.igpt import IGPT

    return model if isinstance(model, IGPT) else None


def has_input_gradients(classifier: object) -> bool:
    """Whether outputs have gradients by the images: not those of a closed function, nor of a model that reads codes."""
    from torch import nn

    return isinstance(classifier, nn.Module) and code_model(classifier) is None


def code_config(config: ModelConfig) -> IGPTConfig | None:
    """The configuration as that of a model of the codes of images, or None."""
    return config if isinstance(config, IGPTConfig) else None


def tokenizer_config(config: ModelConfig) -> ImageTokenizerConfig | None:
    """The configuration as that of a tokenizer of images, or None."""
    return config if isinstance(config, ImageTokenizerConfig) else None


def image_tokenizer(model: nn.Module) -> ImageTokenizer | None:
    """The model as a tokenizer of images (`codes`, `images`, `quantize`), or None."""
    from vitral.models.image_tokenizer import ImageTokenizer

    return model if isinstance(model, ImageTokenizer) else None
