"""Configurations of the model families: Vision Transformer and ResNet. Nothing here imports torch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.config import Count, Pair, Shares, reject_unused
from vitral.data.config import MAX_INPUT_PIXELS
from vitral.models.architecture_config import ArchitectureConfig, Shape

Blocks = Annotated[tuple[Count, ...], Field(strict=False)]

_RELATIVE = ("relative", "relative_bias", "rope")
MAX_PATCHES = 2**18


class ModelConfig(ArchitectureConfig):
    """Keys of every encoder of images and its head.

    has_patches: whether images are encoded as tokens that can be masked, dropped and attended to. has_codes: whether a
    palette reads images as codes, of which the model predicts each. is_tokenizer: whether the model turns images into
    codes and back. has_boxes: whether outputs are boxes with scores. bare_head: fields that replace any head by a new
    one on the bare representation.
    """

    has_patches: ClassVar[bool] = False
    has_codes: ClassVar[bool] = False
    is_tokenizer: ClassVar[bool] = False
    has_boxes: ClassVar[bool] = False
    bare_head: ClassVar[Mapping[str, Any]] = {}
    image_size: Pair = Field(description="height,width of the input in pixels; one number: a square")
    in_channels: int = Field(default=3, ge=1, le=4, description="number of input channels: 1 gray, 3 RGB, 4 RGBA")
    num_classes: int = Field(
        default=1000, ge=0, description="number of outputs of the head; 0: no head, the model returns pooled features"
    )
    mean: Shares = Field(default=(), description="mean per channel for normalization, in [0,1]; empty: 0.5 for each")
    std: Shares = Field(
        default=(), description="standard deviation per channel for normalization, in [0,1]; empty: 0.5 for each"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        filled: dict[str, Any] = {**tree}
        size, channels = filled.get("image_size"), filled.get("in_channels", 3)
        if isinstance(size, int) and not isinstance(size, bool):
            filled["image_size"] = (size, size)
        if isinstance(channels, int) and 1 <= channels <= 4:
            for key in ("mean", "std"):
                filled[key] = filled.get(key) or (0.5,) * channels
        return filled

    @model_validator(mode="after")
    def _check_images(self) -> ModelConfig:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_channels:
                raise ValueError(f"{key} has {len(values)} values for {self.in_channels} channels")
        if math.prod(self.image_size) > MAX_INPUT_PIXELS:
            raise ValueError(f"image_size {list(self.image_size)} is more than {MAX_INPUT_PIXELS:,} pixels")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, got {list(self.std)}")
        return self

    @property
    @abstractmethod
    def stride(self) -> int:
        """Distance between neighbors of the grid, in pixels."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's output: patches, or cells of the last feature map."""

    @property
    @abstractmethod
    def pooled_width(self) -> int:
        """Number of features of a pooled image."""

    @property
    def has_fixed_size(self) -> bool:
        """Whether weights are for images of this size and these channels alone."""
        return False

    @property
    def reads_raw_images(self) -> bool:
        """Whether images are compared as they are with what was found among them, so that mean and std stay at 0.5."""
        return False

    @property
    def cells(self) -> str:
        """The cells of the grid, as a phrase."""
        return f"{'patch' if self.has_patches else 'stride'} {self.stride}"

    @property
    def input_shapes(self) -> dict[str, Shape]:
        """Height, width and channels of an image."""
        return {"image": (*self.image_size, self.in_channels)}

    @property
    def table_row(self) -> tuple[object, ...]:
        """Models without patches show the stride."""
        width, heads = (getattr(self, key, "-") for key in ("width", "heads"))
        return self.image_size[0], self.stride, width, self.block_count, heads, self.num_classes

    @property
    def has_convolutional_stem(self) -> bool:
        """Whether the first layer's weights are standardized, so that other channels or patches do not fit it."""
        return True

    @property
    def block_formula(self) -> dict[str, int]:
        """Multiply-accumulates of a block by a closed form, parts first; empty without one."""
        return {}


class ViTConfig(ModelConfig):
    """A Vision Transformer and its head: arXiv 2010.11929, its hybrids, and later additions."""

    has_patches: ClassVar[bool] = True
    bare_head: ClassVar[Mapping[str, Any]] = {"head": "linear"}
    family: Literal["vit"] = "vit"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    patch_size: int = Field(ge=1, description="side length of a patch in pixels; divides image_size")
    stem_blocks: Blocks | None = Field(
        default=None,
        description="hybrid (ViT, section 3.1): number of bottleneck blocks per stage of the ResNet before the patch "
        "embedding (none: only its first layer); null: patches of pixels",
    )
    stem_epsilons: Literal["timm", "google"] = Field(
        default="timm",
        description="hybrid: epsilons of norms and weight standardization, as in timm or in the paper's code (google)",
    )
    width: int = Field(ge=1, description="number of features per token")
    depth: int = Field(ge=1, description="number of transformer blocks")
    heads: int = Field(ge=1, description="number of attention heads per block; divides width")
    mlp_dim: int = Field(ge=1, description="number of hidden features of each MLP")
    block_heads: Blocks | None = Field(
        default=None, description="heads of each block, of width / heads features each; null: heads in every block"
    )
    block_mlp_dims: Blocks | None = Field(
        default=None, description="number of hidden features of each block's MLP; null: mlp_dim in every block"
    )
    mlp: Literal["gelu", "swiglu"] = Field(
        default="gelu", description="swiglu: a gated MLP with mlp_dim features for gate and value (Shazeer 2020)"
    )
    gelu: Literal["exact", "tanh"] = Field(
        default="exact", description="GELU variant; tanh: the approximation that the ViT paper's weights use"
    )
    qk_norm: bool = Field(default=False, description="apply layer norm to queries and keys, per head")
    layer_scale: float | None = Field(
        default=None, gt=0, description="initial LayerScale, a learned factor per feature and branch (CaiT); null: off"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout rate after each dense layer but qkv, and after adding positions"
    )
    drop_path: float = Field(
        default=0.0, ge=0, lt=1, description="stochastic depth rate of the last block; rises linearly from 0"
    )
    class_token: bool = Field(default=True, description="prepend a learned class token to the patches")
    distill_token: bool = Field(default=False, description="add DeiT's distillation token, with its own head")
    registers: int = Field(
        default=0, ge=0, description="register tokens (Darcet et al. 2023): learned, no position, dropped at the end"
    )
    key_bias: bool = Field(
        default=True, description="bias of the keys; false: queries and values alone have one (BEiT), the same function"
    )
    weight_init: Literal["vit", "beit"] = Field(
        default="vit",
        description="initial weights; vit: Xavier uniform (ViT); beit: normal, deviation 0.02, cut at one deviation, "
        "the output layers of block l divided by sqrt(2 l), the class token drawn too",
    )
    positions: Literal["learned", "learned_2d", "sincos", "relative", "relative_bias", "rope", "none"] = Field(
        default="learned",
        description="position encoding; learned: one vector per patch; learned_2d: half a vector per row, half per "
        "column; sincos: fixed 2-D sines and cosines; relative: learned vectors per offset in the "
        "attention; relative_bias: one learned number per offset and head, added to the scores (BEiT); rope: rotated "
        "queries and keys",
    )
    positions_at: Literal["stem", "layers", "layers_shared"] | None = Field(
        default=None,
        description="where positions are added; stem: before the first block; layers: in every block, with separate "
        "tables; layers_shared: in every block, with one table; null: stem, or in the layers for "
        "relative, relative_bias and rope",
    )
    prefix_positions: bool = Field(
        default=True, description="give class and distillation token a row in the learned position table"
    )
    position_resize: Literal["bicubic_antialias", "bicubic", "google"] = Field(
        default="bicubic_antialias",
        description="resampling of learned positions to another grid; google: bilinear with aligned corners, as in the "
        "ViT paper's code",
    )
    rope_theta: float = Field(default=100.0, gt=1, description="rope: ratio of the longest to the shortest period")
    norm_eps: float = Field(default=1e-6, gt=0, description="epsilon of every layer norm")
    pool: Literal["cls", "avg", "cls_avg", "map"] = Field(
        default="cls",
        description="input of the head; cls: the class token; avg: the mean over patches; cls_avg: both, concatenated; "
        "map: attention pooling with a learned query",
    )
    fc_norm: bool | None = Field(
        default=None, description="apply the final norm after pooling instead of before; null: only with pool=avg"
    )
    head: Literal["linear", "mlp"] = Field(
        default="linear", description="classification head; mlp: a tanh layer of model width before the output"
    )

    pruner_blocks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = Field(
        default=(), description="DynamicViT (Rao et al. 2021): blocks, from 0, in which a learned module drops patches"
    )
    pruner_keep: float = Field(
        default=0.7, gt=0, lt=1, description="DynamicViT: share of the patches kept at each of these blocks"
    )

    @model_validator(mode="after")
    def _check(self) -> ViTConfig:
        (height, width), patch = self.image_size, self.patch_size
        if min(height, width) < 1 or height % patch or width % patch:
            near = " x ".join(str(max(round(side / patch), 1) * patch) for side in (height, width))
            raise ValueError(f"image_size {height} x {width} is not a multiple of patch_size {patch}; nearest: {near}")
        if (height // patch) * (width // patch) > MAX_PATCHES:
            raise ValueError(f"image_size {height} x {width} has more than {MAX_PATCHES:,} patches of side {patch}")
        if patch % self.stem_stride:
            raise ValueError(f"patch_size {patch} is not a multiple of {self.stem_stride}, the stride of this stem")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split evenly among {self.heads} heads")
        for key in ("block_heads", "block_mlp_dims"):
            values: tuple[int, ...] | None = getattr(self, key)
            if values is not None and len(values) != self.depth:
                raise ValueError(f"{key} has {len(values)} numbers for {self.depth} blocks")
        if list(self.pruner_blocks) != sorted({block for block in self.pruner_blocks if block < self.depth}):
            raise ValueError(f"pruner_blocks must be increasing and below depth {self.depth}")
        if self.pruner_blocks and self.by_offset:
            raise ValueError(f"positions={self.positions} has no offsets for patches that were dropped: "
                             "pruner_blocks=none")  # fmt: skip
        if self.block_heads is not None and self.by_offset:
            raise ValueError(f"positions={self.positions} has a table for all heads together: block_heads=null")
        if self.pool in ("cls", "cls_avg") and not self.class_token:
            raise ValueError(f"pool={self.pool} needs class_token=true; without a class token use pool=avg")
        if self.distill_token and self.pool != "cls":
            raise ValueError("distill_token=true needs pool=cls: its head reads that token, the other the class token")
        if self.head == "mlp" and not self.num_classes:
            raise ValueError("head=mlp needs num_classes above 0; num_classes=0 means no head at all")
        for key, is_set in (("head=mlp", self.head == "mlp"), ("fc_norm=true", self.norm_after_pool)):
            if is_set and self.pooled_width != self.width:
                raise ValueError(f"{key} reads one vector of model width: no distill_token, no pool=cls_avg")
        self._check_positions()
        reject_unused(self, {
            "stem_epsilons": self.stem_blocks is not None,
            "gelu": self.mlp == "gelu" or self.pool == "map",
            "positions_at": self.positions != "none",
            "prefix_positions": self.positions == "learned",
            "position_resize": self.positions in ("learned", "learned_2d"),
            "rope_theta": self.positions == "rope",
            "pruner_keep": bool(self.pruner_blocks),
        })  # fmt: skip
        return self

    def _check_positions(self) -> None:
        if self.positions in _RELATIVE and self.positions_at == "stem":
            raise ValueError(f"positions={self.positions} act inside the attention: positions_at=layers_shared or null")
        if self.positions in ("rope", "sincos", "none") and self.positions_at == "layers":
            raise ValueError(f"positions={self.positions} learn nothing, so no layer has its own: positions_at=null")
        if self.positions in ("learned_2d", "sincos") and self.width % (4 if self.positions == "sincos" else 2):
            raise ValueError(f"positions={self.positions} cannot split width {self.width} among rows and columns")
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ValueError(f"positions=rope needs heads of 4, 8, 12 ... features, not {self.width // self.heads}")

    @property
    def description(self) -> str:
        """Kind, width and depth."""
        return f"a Vision Transformer of width {self.width}, depth {self.depth}"

    @property
    def stride(self) -> int:
        """Side of a patch, in pixels."""
        return self.patch_size

    @property
    def block_count(self) -> int:
        """Its depth."""
        return self.depth

    @property
    def stem_block_count(self) -> int:
        """Residual blocks of a hybrid's stem."""
        return sum(self.stem_blocks or ())

    @property
    def dropped_samples(self) -> float:
        """Drop-path's maximum."""
        return self.drop_path

    @property
    def has_convolutional_stem(self) -> bool:
        """Of hybrids alone."""
        return self.stem_blocks is not None

    @property
    def block_formula(self) -> dict[str, int]:
        """A block on all N tokens of D features: 4 N D^2 + 2 N^2 D + 2 N D D_h for projections, attention and MLP (D_h
        its hidden width; a gated MLP takes 3 N D D_h), and the sum over all blocks."""
        N, D = self.grid[0] * self.grid[1] + self.prefix_tokens, self.width
        gates = 3 if self.mlp == "swiglu" else 2
        one = {"4 N D^2": 4 * N * D * D, "2 N^2 D": 2 * N * N * D, f"{gates} N D D_h": gates * N * D * self.mlp_dim}
        return {**one, "a block": sum(one.values()), f"{self.depth} blocks": self.depth * sum(one.values())}

    def part_of(self, module: str) -> str:
        """Stem, patches, the parts of attention, mlp, reduction, pruner, pool or head."""
        names = module.split(".")
        if names[0] == "blocks" and len(names) == 2:
            return "reduction"  # of tokens, by what is beside the layers
        if names[0] == "blocks":
            inner = {"proj": "projection"} | {name: name for name in ("qkv", "scores", "values")}
            return "mlp" if names[2] == "mlp" else inner.get(names[-1], "positions")
        if names[0] == "patch_embed":
            return "stem" if "backbone" in names else "patches"
        return {"reduce": "pruner", "attn_pool": "pool"}.get(names[0], "head")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def stem_stride(self) -> int:
        """Pixels between neighbors of the map that patches are cut from: 1 without a ResNet in front."""
        return 1 if self.stem_blocks is None else 4 * 2 ** max(len(self.stem_blocks) - 1, 0)

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm follows the pooling (`fc_norm`), with None resolved."""
        return self.pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def drop_path_rates(self) -> list[float]:
        """The rate of each block: it rises linearly from 0 at the first to its maximum at the last (or only) one."""
        last = self.depth - 1
        return [self.drop_path * i / last if last else self.drop_path for i in range(self.depth)]

    @property
    def heads_of_blocks(self) -> tuple[int, ...]:
        """Attention heads of each block."""
        return self.block_heads or (self.heads,) * self.depth

    @property
    def mlp_dims_of_blocks(self) -> tuple[int, ...]:
        """Hidden features of each block's MLP."""
        return self.block_mlp_dims or (self.mlp_dim,) * self.depth

    @property
    def is_even(self) -> bool:
        """Whether all blocks have the same sizes, those that heads and mlp_dim say: other libraries know no others."""
        return {*self.heads_of_blocks} == {self.heads} and {*self.mlp_dims_of_blocks} == {self.mlp_dim}

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches: class token, distillation token, registers."""
        return self.class_token + self.distill_token + self.registers

    @property
    def position_tables(self) -> int:
        """How many sets of learned positions there are: one, or one for each block."""
        is_own = self.positions_at == "layers" or (self.by_offset and self.positions_at is None)
        return self.depth if is_own else 1

    @property
    def bias_entries(self) -> int:
        """Entries of a bias table (see `bias_table_size`)."""
        return bias_table_size(self.grid, self.prefix_tokens)

    @property
    def by_offset(self) -> bool:
        """Whether positions are learned for each offset of two patches."""
        return self.positions in ("relative", "relative_bias")

    @property
    def position_rows(self) -> int:
        """Prefix tokens that have a row in the learned table of positions."""
        return (self.class_token + self.distill_token) * self.prefix_positions * (self.positions == "learned")

    @property
    def pooled_width(self) -> int:
        """Number of features of a pooled image."""
        return self.width * (2 if self.pool == "cls_avg" or self.distill_token else 1)


def bias_table_size(grid: tuple[int, int], prefix: int) -> int:
    """Return the entries of a bias table: one for each offset of two patches, and three with prefix tokens."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * (prefix > 0)


class ResNetConfig(ModelConfig):
    """A residual network of convolutions, the paper's baseline: BiT (arXiv 1912.11370), or those of images of about 32
    pixels (arXiv 1512.03385, section 4.2)."""

    family: Literal["resnet"] = "resnet"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    blocks: Blocks = Field(description="residual blocks per stage; every stage but the first halves the resolution")
    block: Literal["bottleneck", "basic"] = Field(
        default="bottleneck", description="bottleneck: 1x1, 3x3, 1x1 convolutions; basic: two 3x3 convolutions"
    )
    stem: Literal["imagenet", "cifar"] = Field(
        default="imagenet",
        description="first layers; imagenet: 7x7 convolution with stride 2 and pooling (1/4 resolution); cifar: 3x3 "
        "convolution (full resolution)",
    )
    width: int = Field(default=64, ge=1, description="channels after the stem; doubles with every later stage")
    norm: Literal["group", "batch"] = Field(
        default="group", description="group: group norm with weight standardization (BiT); batch: batch norm"
    )
    preactivation: bool = Field(
        default=True, description="norm and ReLU before each convolution (BiT), not after it (arXiv 1512.03385)"
    )
    shortcut: Literal["projection", "zeros"] = Field(
        default="projection",
        description="shortcut where the shape changes; projection: 1x1 convolution; zeros: subsampling and zero "
        "padding of channels (arXiv 1512.03385, option A)",
    )

    @model_validator(mode="after")
    def _check(self) -> ResNetConfig:
        if not self.blocks:
            raise ValueError("blocks must have at least one stage")
        if min(self.image_size) < 1:
            raise ValueError(f"image_size {self.image_size[0]} x {self.image_size[1]} has no pixels")
        if self.norm == "group" and self.width % 32:
            raise ValueError(f"width {self.width} cannot be split into the 32 groups of norm=group")
        return self

    @property
    def description(self) -> str:
        """Kind and blocks."""
        return f"a ResNet of {self.blocks} blocks"

    @property
    def block_count(self) -> int:
        """Residual blocks of all stages."""
        return sum(self.blocks)

    @property
    def uses_batch_statistics(self) -> bool:
        """With batch norm."""
        return self.norm == "batch"

    @property
    def stride(self) -> int:
        """Pixels between neighbors of the last map."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.blocks) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last map."""
        return -(-self.image_size[0] // self.stride), -(-self.image_size[1] // self.stride)

    @property
    def pooled_width(self) -> int:
        """Features of a pooled image: channels of the last map."""
        return stage_channels(self.blocks, self.width, self.block)[-1]


def stage_channels(
    blocks: Sequence[int], width: int, block: Literal["bottleneck", "basic"] = "bottleneck"
) -> list[int]:
    """Return the channels of each stage's feature maps after a stem of `width` channels."""
    return [width * (4 if block == "bottleneck" else 1) * 2**i for i in range(len(blocks))]
