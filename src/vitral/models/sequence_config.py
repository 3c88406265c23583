"""Configurations of the models that write sequences of tokens: text to text, image to text. Nothing here imports
torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from vitral.config import Count, reject_unused
from vitral.data.text.config import Length
from vitral.models.architecture_config import ArchitectureConfig, Shape
from vitral.models.config import ViTConfig

EXAMPLE_LENGTH = 32  # tokens of the texts for which compute is stated


class SequenceConfig(ArchitectureConfig):
    """Keys of every model whose output is a sequence of tokens.

    reads_images: whether the source is an image, else it is a text.
    """

    reads_images: ClassVar[bool] = False
    vocabulary: Count = Field(description="number of tokens of the target, special ones included")
    pad_id: int = Field(default=0, ge=0, description="token behind the end of the shorter texts of a batch")
    max_length: Length = Field(default=512, description="longest text that the model takes, tokens with start and end")
    width: Count = Field(default=256, description="number of features per token")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout rate of embeddings and of the output of each layer"
    )

    @model_validator(mode="after")
    def _check_padding(self) -> SequenceConfig:
        if self.pad_id >= self.vocabulary:
            raise ValueError(f"pad_id {self.pad_id} is not in a vocabulary of {self.vocabulary} tokens")
        return self

    @property
    @abstractmethod
    def decodes_steps(self) -> bool:
        """Whether the model writes token by token (`start`, `step`); CTC gives all positions at once."""

    @property
    def frames(self) -> int:
        """Positions of the output of CTC; 0: the model writes token by token."""
        return 0

    @property
    def example_length(self) -> int:
        """Tokens of each text for which compute and memory are stated."""
        return min(EXAMPLE_LENGTH, self.max_length)

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """A source and a target of `example_length` tokens."""
        return {"source": (self.example_length,), "target": (self.example_length,)}


class TransformerDecoderConfig(SequenceConfig):
    """Keys of a `TextDecoder`, and of the model that it is a part of."""

    decoder_depth: Count = Field(default=2, description="number of decoder blocks")
    heads: Count = Field(default=4, description="number of attention heads per block; divides width")
    mlp_dim: Count = Field(default=1024, description="number of hidden features of each MLP")
    norm_first: bool = Field(
        default=True,
        description="layer norm before each layer, and after the last block; false: after each residual connection, as "
        "published, which needs a warm-up of the learning rate",
    )
    activation: Literal["relu", "gelu"] = Field(default="relu", description="activation function of each MLP")
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of every layer norm")
    positions: Literal["sinusoidal", "sinusoidal_halves", "learned"] = Field(
        default="sinusoidal",
        description="position encoding; sinusoidal: sines and cosines take turns, as in the paper; sinusoidal_halves: "
        "all sines first, as in Marian; learned: one vector per position",
    )
    scale_embeddings: bool = Field(
        default=True, description="multiply embeddings by the square root of width (1706.03762, section 3.4)"
    )
    embedding_norm: bool = Field(default=False, description="layer norm after adding positions, as in BART and TrOCR")
    tie_output: bool = Field(default=True, description="output layer with the weights of the target's embeddings")
    output_bias: bool = Field(default=False, description="bias of the output layer")

    @model_validator(mode="after")
    def _check_width(self) -> TransformerDecoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split evenly among {self.heads} heads")
        if self.width % 2 and self.positions != "learned":
            raise ValueError(f"positions={self.positions} cannot split width {self.width} into sines and cosines")
        return self

    @property
    def decodes_steps(self) -> bool:
        """Always."""
        return True


class Seq2SeqConfig(TransformerDecoderConfig):
    """The encoder-decoder of "Attention is all you need" (arXiv 1706.03762, section 3)."""

    family: Literal["seq2seq"] = "seq2seq"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    source_vocabulary: Count = Field(description="number of tokens of the source, special ones included")
    encoder_depth: Count = Field(default=2, description="number of encoder blocks")
    share_embeddings: bool = Field(
        default=False, description="one table of embeddings for source and target (1706.03762, section 3.4)"
    )

    @model_validator(mode="after")
    def _check(self) -> Seq2SeqConfig:
        if self.share_embeddings and self.source_vocabulary != self.vocabulary:
            sizes = f"{self.source_vocabulary} source and {self.vocabulary} target tokens"
            raise ValueError(f"share_embeddings=true needs one vocabulary, got {sizes}")
        return _check_source(self, self.source_vocabulary)

    @property
    def description(self) -> str:
        """Kind, width and depth."""
        return (
            f"a Transformer of width {self.width}, {self.encoder_depth} encoder and {self.decoder_depth} decoder blocks"
        )

    @property
    def block_count(self) -> int:
        """Of both stacks."""
        return self.encoder_depth + self.decoder_depth

    @property
    def table_row(self) -> tuple[object, ...]:
        """Depth is that of both stacks."""
        return "text", "-", self.width, self.block_count, self.heads, self.vocabulary

    def part_of(self, module: str) -> str:
        """Encoder, decoder or output."""
        return _part(module)


class LSTMConfig(SequenceConfig):
    """An encoder-decoder of LSTMs (arXiv 1409.3215), with or without attention."""

    family: Literal["lstm"] = "lstm"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    source_vocabulary: Count = Field(description="number of tokens of the source, special ones included")
    layers: int = Field(default=1, ge=1, le=8, description="recurrent layers of encoder and decoder, each")
    cell: Literal["lstm", "rnn"] = Field(
        default="lstm", description="lstm, or rnn: the plain cell with tanh, whose gradients vanish over long distances"
    )
    bidirectional: bool = Field(default=True, description="encode in both directions, each with width features")
    attention: Literal["none", "dot", "additive"] = Field(
        default="dot",
        description="none: the decoder reads the last state of the encoder alone; dot: Luong et al. 2015 (general "
        "score); additive: Bahdanau et al. 2015, which is computed step by step",
    )

    @model_validator(mode="after")
    def _check(self) -> LSTMConfig:
        return _check_source(self, self.source_vocabulary)

    @property
    def description(self) -> str:
        """Kind, width and layers."""
        return f"an encoder-decoder of {self.cell.upper()} layers of width {self.width}, {self.layers} each"

    @property
    def decodes_steps(self) -> bool:
        """Always."""
        return True

    @property
    def memory_width(self) -> int:
        """Features of an encoded token: both directions."""
        return self.width * (1 + self.bidirectional)

    @property
    def table_row(self) -> tuple[object, ...]:
        """Depth is the number of recurrent layers of both."""
        return "text", "-", self.width, 2 * self.layers, "-", self.vocabulary


class ImageToTextConfig(TransformerDecoderConfig):
    """A Vision Transformer that is read by a text decoder (TrOCR, arXiv 2109.10282) or by CTC."""

    reads_images: ClassVar[bool] = True
    family: Literal["image_to_text"] = "image_to_text"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    encoder: ViTConfig = Field(description="the Vision Transformer, without a head")
    decoder: Literal["transformer", "ctc"] = Field(
        default="transformer",
        description="transformer: writes token by token; ctc: one dense layer per column of patches (Graves et al. "
        "2006), for text that is read from left to right",
    )
    ctc_rows: Literal["mean", "all"] = Field(
        default="mean",
        description="decoder=ctc: mean over the rows of patches, or all patches, column by column from top to bottom",
    )
    project_memory: bool = Field(
        default=True,
        description="a dense layer from encoder to decoder width where these differ; false: keys and values are "
        "computed from the encoder's tokens, as in TrOCR",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_head(cls, tree: dict[str, Any]) -> dict[str, Any]:
        encoder = tree.get("encoder")
        if isinstance(encoder, Mapping):
            given = cast("Mapping[str, Any]", encoder)
            after = {"fc_norm": False} if given.get("pool") == "avg" else {}
            return {**tree, "encoder": {"num_classes": 0, **after, **given}}
        return tree

    @model_validator(mode="after")
    def _check(self) -> ImageToTextConfig:
        e = self.encoder
        for is_wrong, text in (
            (e.num_classes, "encoder.num_classes must be 0: it has no head"),
            (e.norm_after_pool, "encoder.fc_norm must be false: the final norm belongs to the tokens that are read"),
            (e.pool == "map", "encoder.pool=map has weights that are not read: encoder.pool=avg"),
            (e.distill_token, "encoder.distill_token=true has a head of its own: false"),
            (e.pruner_blocks, "encoder.pruner_blocks drops patches that are to be read: none"),
        ):
            if is_wrong:
                raise ValueError(text)
        ctc = self.decoder == "ctc"
        unread = (
            "decoder_depth",
            "heads",
            "mlp_dim",
            "norm_first",
            "activation",
            "norm_eps",
            "positions",
            "width",
            "dropout",
        )
        unread += ("scale_embeddings", "embedding_norm", "tie_output", "output_bias", "project_memory", "max_length")
        reject_unused(self, {"ctc_rows": ctc, **dict.fromkeys(unread, not ctc)})
        return self

    @property
    def description(self) -> str:
        """Encoder and decoder."""
        blocks = "CTC" if self.decoder == "ctc" else f"a decoder of width {self.width}, {self.decoder_depth} blocks"
        return f"{self.encoder.description}, read by {blocks}"

    @property
    def decodes_steps(self) -> bool:
        """Not with CTC."""
        return self.decoder != "ctc"

    @property
    def frames(self) -> int:
        """Columns of patches, or all patches."""
        rows, columns = self.encoder.grid
        return 0 if self.decodes_steps else columns * (rows if self.ctc_rows == "all" else 1)

    @property
    def blank_id(self) -> int:
        """decoder=ctc: the output that stands for no token (`blank` of torch's ctc_loss)."""
        return self.vocabulary

    @property
    def block_count(self) -> int:
        """Of encoder and decoder."""
        return self.encoder.depth + (self.decoder_depth if self.decodes_steps else 0)

    @property
    def stem_block_count(self) -> int:
        """Of the encoder."""
        return self.encoder.stem_block_count

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """An image, and a target where there is a decoder."""
        shapes: dict[str, Shape] = dict(self.encoder.input_shapes)
        return shapes | ({"target": (self.example_length,)} if self.decodes_steps else {})

    @property
    def table_row(self) -> tuple[object, ...]:
        """Width and heads are the encoder's; depth is that of both."""
        e = self.encoder
        outputs = self.vocabulary + (not self.decodes_steps)
        return "x".join(map(str, e.image_size)), e.patch_size, e.width, self.block_count, e.heads, outputs

    def part_of(self, module: str) -> str:
        """Encoder, decoder or output."""
        return _part(module)


def _part(module: str) -> str:
    """A module that is called "decoder" itself computes the output layer with the weights of the embeddings."""
    first = module.partition(".")[0]
    return "output" if module in ("decoder", "decoder.output") or first == "ctc" else first


def _check_source(config: Any, source_vocabulary: int) -> Any:
    if config.pad_id >= source_vocabulary:
        raise ValueError(f"pad_id {config.pad_id} is not in a source vocabulary of {source_vocabulary} tokens")
    return config
