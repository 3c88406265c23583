"""The Vision Transformer (arXiv 2010.11929): images in, tokens, features or logits out.

Shape letters: B batch, C channels, H W image height and width, N patches, P prefix tokens, T tokens (prefix and
patches), K kept patches, M patch tokens where they became fewer, D width, S classes, L tables of positions. Parameter
names are timm's, so that public checkpoints fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitral.models import position, token_reduction
from vitral.models.activation_checkpointing import checkpointed_call
from vitral.models.attention import AttentionContext
from vitral.models.config import ViTConfig
from vitral.models.dynamic_vit import LearnedPruner
from vitral.models.layers import AttentionPool, Block, Linear, PatchEmbed, lecun_normal
from vitral.models.model import ImageModel, check_capture
from vitral.models.position import AttentionPlaces, Grid
from vitral.models.resnet import HybridEmbed
from vitral.models.token_reduction import TokenReduction, TokenReductionState, take_rows
from vitral.structs import EncoderOutput


class VisionTransformer(ImageModel):
    """Encoder and head of one `ViTConfig`.

    `encode` gives every token; `embed` and `encode_tokens` are its two halves. reduce: what makes the patch tokens
    fewer on their way, or None; it may be set at any time.
    """

    config: ViTConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    pos_embed: nn.Parameter | None
    pos_embed_y: nn.Parameter | None
    pos_embed_x: nn.Parameter | None
    offset_embed: nn.Parameter | None
    rel_pos_bias: SharedBias | None
    fixed_places: Tensor | None
    reduce: TokenReduction | None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        c, width = config, config.width
        self.prefix_tokens = c.prefix_tokens
        self.patch_embed = _patch_embed(c)
        self.cls_token = _token(1, width) if c.class_token else None
        self.dist_token = _token(1, width) if c.distill_token else None
        self.reg_token = _token(c.registers, width) if c.registers else None
        self._make_positions()
        self.pos_drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(_blocks(c))
        late, eps = c.norm_after_pool, c.norm_eps
        self.norm = nn.Identity() if late else nn.LayerNorm(width, eps=eps)
        self.attn_pool = AttentionPool(width, c.heads, c.mlp_dim, c.gelu, eps) if c.pool == "map" else None
        self.fc_norm = nn.LayerNorm(width, eps=eps) if late else nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        if c.head == "mlp":  # the hidden layer of the paper's pre-training head (section 3.1)
            self.pre_logits = nn.Sequential(OrderedDict[str, nn.Module](fc=Linear(width, width), tanh=nn.Tanh()))
        features = width if c.distill_token else c.pooled_width
        self.head = Linear(features, c.num_classes) if c.num_classes else nn.Identity()
        self.head_dist = Linear(features, c.num_classes) if c.num_classes and c.distill_token else None
        self.reduce = LearnedPruner(c) if c.pruner_blocks else None
        self.init_weights()

    def __setattr__(self, name: str, value: Any) -> None:
        """torch would refuse another `reduce` in place of a learned pruner, which is a child module."""
        if name == "reduce":
            self._modules.pop(name, None)
        super().__setattr__(name, value)

    def _make_positions(self) -> None:
        """The tables of this model's kind of positions: learned ones are parameters, fixed ones constants."""
        c, (rows, columns), width, tables = self.config, self.grid, self.config.width, self.config.position_tables
        learned: dict[str, tuple[int, ...]] = {
            "learned": {"pos_embed": (tables, c.position_rows + rows * columns, width)},
            "learned_2d": {"pos_embed_y": (tables, rows, width // 2), "pos_embed_x": (tables, columns, width // 2)},
            "relative": {"offset_embed": (tables, 2 * rows * columns - 1, width)},
        }.get(c.positions, {})
        for name in ("pos_embed", "pos_embed_y", "pos_embed_x", "offset_embed"):
            shape = learned.get(name)
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape)))
        is_shared = c.positions == "relative_bias" and c.positions_at == "layers_shared"
        self.rel_pos_bias = SharedBias(c.bias_entries, c.heads) if is_shared else None

    def _set_constants(self, device: torch.device | None) -> None:
        super()._set_constants(device)
        self.register_buffer("fixed_places", self._fixed_places(self.config.grid, device), persistent=False)

    def _fixed_places(self, grid: Grid, device: torch.device | None) -> Tensor | None:
        c = self.config
        if c.positions == "sincos":
            return position.sincos_table(grid, c.grid, c.width, device)
        if c.positions == "relative_bias":
            return position.bias_entries(grid, c.prefix_tokens, device)
        return position.rope_table(grid, c.width // c.heads, c.rope_theta, device) if c.positions == "rope" else None

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize every parameter again, from torch's global random state.

        As in the paper's code: patches LeCun normal (truncated), positions N(0, 0.02), class token and output layer
        zero, the tanh layer LeCun normal, everything else Xavier uniform with zero biases. (The code's N(0, 1e-6)
        biases are 0 here.) Registers and the distillation token are N(0, 0.02): equal ones would stay equal. Bias
        tables are zero. With `weight_init=beit`, `_init_as_beit` follows.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.init_weights()
        for norm in (self.norm, self.fc_norm, getattr(self.attn_pool, "norm", None)):
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()
        self.patch_embed.init_weights()
        tables = (self.pos_embed, self.pos_embed_y, self.pos_embed_x, self.offset_embed)
        for normal in (*tables, self.dist_token, self.reg_token):
            if normal is not None:
                nn.init.normal_(normal, std=0.02)
        if self.attn_pool is not None:
            self.attn_pool.init_weights()
        if isinstance(self.pre_logits, nn.Sequential):
            lecun_normal(*self.pre_logits.parameters())
        for name, zero in self.named_parameters():
            if name.split(".")[0] in ("cls_token", "head", "head_dist"):
                nn.init.zeros_(zero)
        if self.rel_pos_bias is not None:
            nn.init.zeros_(self.rel_pos_bias.relative_position_bias_table)
        if isinstance(self.reduce, LearnedPruner):
            self.reduce.init_weights()
        if self.config.weight_init == "beit":
            self._init_as_beit()

    def _init_as_beit(self) -> None:
        """Patches, blocks, tokens and positions N(0, 0.02) cut at one deviation, layers that write into the residual
        stream of block l (from 1) divided by sqrt(2 l) (arXiv 2106.08254, section 2.6)."""
        tokens = (self.cls_token, self.dist_token, self.reg_token, self.pos_embed, self.patch_embed.proj.weight)
        dense = [module.weight for module in self.blocks.modules() if isinstance(module, Linear)]
        for drawn in (*tokens, *dense):
            if drawn is not None:
                nn.init.trunc_normal_(drawn, std=0.02, a=-0.02, b=0.02)
        for number, block in enumerate(self.blocks, 1):
            assert isinstance(block, Block)
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.div_((2 * number) ** 0.5)

    def embed(self, images_BCHW: Tensor) -> tuple[Tensor, Grid]:
        """Normalized, cut and projected images: patches [B, N, D] without positions, and the grid (rows, columns).

        Images are floats in [0,1] or uint8, of any height and width that the patch size divides. Raises UserError for
        another shape, channel count or kind of number.
        """
        patch = self.config.patch_size
        normalized_BCHW = self.normalize(images_BCHW, multiple=patch)
        return self.patch_embed(normalized_BCHW), (images_BCHW.shape[-2] // patch, images_BCHW.shape[-1] // patch)

    def encode_tokens(
        self,
        patches_BND: Tensor,
        grid: Grid,
        keep_BK: Tensor | None = None,
        capture: Sequence[str] = (),
        attend_BN: Tensor | None = None,
        reduce: TokenReduction | None = None,
    ) -> EncoderOutput:
        """Patch embeddings to encoded tokens (eq. 1 from the positions on, eq. 2-4).

        grid: (rows, columns) with rows * columns = N; positions are interpolated where it is not the model's own.
        keep_BK: indices into N of the patches that are encoded at all, in any order; `patches_BND` of the result then
        has K rows in that order. attend_BN: bool, false for patches that no token may attend to (their own rows are
        still computed). capture: "blocks.3", "blocks.3.attn" [B, T, D], "blocks.3.attn.map" [B, heads, T, T],
        "blocks.3.attn.q", ".k" [B, heads, T, D / heads]. reduce: makes the patch tokens fewer, in place of the model's
        own `reduce`; `patches_BND` of the result then has M rows, and `groups_BN` says which of them each encoded patch
        is in (-1: none), unless all stayed. Raises UserError for an unknown name to capture, and for tokens that cannot
        become fewer: relative positions, masked patches.
        """
        check_capture(capture, self.capture_names())
        if attend_BN is not None:
            attend_BK = attend_BN if keep_BK is None else attend_BN.gather(1, keep_BK)
            attend_BN = nn.functional.pad(attend_BK, (self.prefix_tokens, 0), value=True)
        captured: dict[str, Tensor] = {}
        count = patches_BND.shape[1] if keep_BK is None else keep_BK.shape[1]
        state = self._reduced(count, attend_BN is not None, reduce)
        tokens_BTD = self._run(patches_BND, grid, keep_BK, attend_BN, capture, captured, state)
        return self.split(self.norm(tokens_BTD), grid, None if state is None else state.groups_BN, captured)

    def encode(
        self,
        images_BCHW: Tensor,
        keep_BK: Tensor | None = None,
        *,
        capture: Sequence[str] = (),
        attend_BN: Tensor | None = None,
    ) -> EncoderOutput:
        """`embed`, then `encode_tokens`: images of any size that the patch size divides to encoded tokens."""
        patches_BND, grid = self.embed(images_BCHW)
        return self.encode_tokens(patches_BND, grid, keep_BK, capture, attend_BN)

    def pool(self, out: EncoderOutput, attend_BN: Tensor | None = None, keep_BK: Tensor | None = None) -> Tensor:
        """One vector per image: [B, D], or [B, 2 D] of class token and average, or of class and distillation token.

        Then `fc_norm`, where it is on. attend_BN, keep_BK: as given to `encode`, to leave the masked patches out of the
        mean (where attend_BN may be weights in [0,1] too) or of the pooling attention; an image without any other patch
        has no mean (NaN). Where tokens became fewer, each counts as often as it stands for a patch.
        """
        kind = self.config.pool
        if attend_BN is not None and keep_BK is not None:
            attend_BN = attend_BN.gather(1, keep_BK)
        if self.attn_pool is not None:
            bias = None
            if out.groups_BN is not None:
                sizes_BM = token_reduction.group_sizes(out.groups_BN, out.patches_BND.shape[1])
                bias = sizes_BM.log()[:, None, None, :].to(out.patches_BND.dtype)
            return self.fc_norm(self.attn_pool(out.patches_BND, AttentionContext(bias, attend_BN=attend_BN)))
        parts = [out.cls_BD] if kind in ("cls", "cls_avg") else []
        if kind in ("avg", "cls_avg"):
            parts.append(_mean(out, attend_BN))
        if self.config.distill_token:
            parts.append(out.distill_BD)
        present = [part for part in parts if part is not None]
        assert len(present) == len(parts)
        return self.fc_norm(torch.cat(present, dim=-1) if len(present) > 1 else present[0])

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, S] of images of the model's own size, or pooled features where num_classes is 0.

        Equal to `classify(pool(encode(images)))`; where only class and distillation token are pooled, the last block
        computes those alone. Raises UserError for images of another size, channel count or kind of number.
        """
        self.check_size(images_BCHW)
        patches_BND, grid = self.embed(images_BCHW)
        if self.config.pool != "cls":
            return self.classify(self.pool(self.encode_tokens(patches_BND, grid)))
        queries = 1 + self.config.distill_token
        state = self._reduced(patches_BND.shape[1], False, None)
        tokens_BQD = self.norm(self._run(patches_BND, grid, None, None, (), {}, state, queries))
        return self.classify(self.fc_norm(tokens_BQD.flatten(1)))

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The head alone: pooled features to logits [B, S]; with a distillation token the mean of the two heads'."""
        if self.head_dist is not None:
            cls_BD, distill_BD = pooled_BD.chunk(2, dim=-1)
            return (self.head(cls_BD) + self.head_dist(distill_BD)) / 2
        return self.head(self.pre_logits(pooled_BD))

    @property
    def checkpointable(self) -> list[nn.Module]:
        """Its blocks."""
        return list(self.blocks)

    def capture_names(self) -> list[str]:
        """Every name that `capture` takes."""
        ends = (".attn.map", ".attn.q", ".attn.k", ".attn", "")
        return [f"blocks.{i}{end}" for i in range(len(self.blocks)) for end in ends]

    def _reduced(self, patches: int, is_masked: bool, reduce: TokenReduction | None) -> TokenReductionState | None:
        """What this forward pass remembers of its tokens, where they become fewer."""
        reduce = reduce or self.reduce
        if reduce is None:
            return None
        token_reduction.refuse_reduction(self.config.positions, is_masked)
        return reduce.state(patches, self.config.depth, self.prefix_tokens, self.config.class_token)

    def _run(
        self,
        patches_BND: Tensor,
        grid: Grid,
        keep_BK: Tensor | None,
        attend_BT: Tensor | None,
        capture: Sequence[str],
        captured: dict[str, Tensor],
        state: TokenReductionState | None = None,
        queries: int | None = None,
    ) -> Tensor:
        """Tokens after the last block, [B, T, D], or of the first `queries` alone; leaves what `capture` names.

        With `queries`, no other token is merged or dropped in the last block: none is computed.
        """
        assert patches_BND.shape[1] == grid[0] * grid[1], (patches_BND.shape, grid)
        places = self._attention_places(grid, keep_BK)
        tables = self._position_tables(grid, keep_BK)
        if keep_BK is not None:
            patches_BND = take_rows(patches_BND, keep_BK)
        tokens_BTD = self._with_prefix(patches_BND.to(self.dtype))  # under autocast the residual stream stays wide
        everywhere = self.config.positions_at in ("layers", "layers_shared")
        for i, block in enumerate(self.blocks):
            if tables and (i == 0 or everywhere):
                tokens_BTD = tokens_BTD + self._fewer_rows(tables[min(i, len(tables) - 1)], state)
            if i == 0:
                tokens_BTD = self.pos_drop(tokens_BTD)
            name, last = f"blocks.{i}", i == len(self.blocks) - 1
            inside: dict[str, Tensor] | None = {} if any(n.startswith(f"{name}.attn") for n in capture) else None
            context = AttentionContext(
                attend_BN=attend_BT, queries=queries if last else None, places=places[min(i, len(places) - 1)],
                captured=inside,
            )  # fmt: skip
            if state is not None:
                context = context._replace(
                    bias=state.bias(tokens_BTD.dtype), places=self._fewer_places(context.places, grid, keep_BK, state),
                    reduce=state.between(i) if context.queries is None else None,
                )  # fmt: skip
            # What a capture or a reduction leaves behind must be left once.
            again = inside is None and context.reduce is None and self.recomputes(i)
            tokens_BTD = checkpointed_call(block, tokens_BTD, context) if again else block(tokens_BTD, context)
            found = {name: tokens_BTD} | {f"{name}.{part}": value for part, value in (inside or {}).items()}
            captured |= {n: found[n] for n in capture if n in found}
        return tokens_BTD

    def _fewer_rows(self, table_BTD: Tensor, state: TokenReductionState | None) -> Tensor:
        """A table of positions for the tokens that are left: means over the patches of each."""
        if state is None or state.groups_BN is None:
            return table_BTD
        P = self.prefix_tokens
        patches_BMD = state.mean(table_BTD[:, P:])
        return torch.cat([table_BTD[:, :P].expand(len(patches_BMD), -1, -1), patches_BMD], dim=1)

    def _fewer_places(
        self, places: AttentionPlaces | None, grid: Grid, keep_BK: Tensor | None, state: TokenReductionState
    ) -> AttentionPlaces | None:
        """Rotation by the mean place of each token's patches."""
        if places is None or state.groups_BN is None:
            return places
        c = self.config
        angles_BNd = position.rope_angles(grid, c.width // c.heads, c.rope_theta, state.groups_BN.device)
        if keep_BK is not None:
            angles_BNd = take_rows(angles_BNd.expand(len(keep_BK), -1, -1), keep_BK)
        return places._replace(rope_2BNd=position.turned(state.mean(angles_BNd.float())))

    def _with_prefix(self, patches_BND: Tensor) -> Tensor:
        """Class token, distillation token and registers in front of the patches."""
        B, _, D = patches_BND.shape
        prefix = [token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None]
        front = [token.expand(B, -1, D) for token in prefix]
        return torch.cat([*front, patches_BND], dim=1) if front else patches_BND

    def _position_tables(self, grid: Grid, keep_BK: Tensor | None) -> list[Tensor]:
        """What is added to the tokens, [1 or B, T, D] each: for the first block, or one for each, or none."""
        how, rows = self.config.position_resize, self.config.position_rows
        if self.pos_embed is not None:
            table_LXD = position.interpolate_positions(self.pos_embed, rows, self.grid, grid, how)
        elif self.pos_embed_y is not None and self.pos_embed_x is not None:
            table_LXD = position.rows_and_columns(self.pos_embed_y, self.pos_embed_x, grid, how)
        elif self.config.positions == "sincos":
            table_LXD = self._places_of(grid).to(self.dtype)
        else:
            return []
        without = self.prefix_tokens - rows
        tables: list[Tensor] = []
        for table_1XD in table_LXD.split(1):
            placed = table_1XD
            if keep_BK is not None:
                kept_BKD = take_rows(placed[:, rows:].expand(keep_BK.shape[0], -1, -1), keep_BK)
                placed = torch.cat([placed[:, :rows].expand(keep_BK.shape[0], -1, -1), kept_BKD], dim=1)
            if without:  # registers, and all prefix tokens where none has a row, stay as they are
                nowhere = placed.new_zeros(placed.shape[0], without, placed.shape[-1])
                placed = torch.cat([placed[:, :rows], nowhere, placed[:, rows:]], dim=1)
            tables.append(placed)
        return tables

    def _attention_places(self, grid: Grid, keep_BK: Tensor | None) -> list[AttentionPlaces | None]:
        """What positions do inside the attention: in all blocks, or one for each."""
        if self.offset_embed is not None:
            count = grid[0] * grid[1]
            index_BNN = position.offset_index(count, keep_BK, self.offset_embed.device)
            vectors_LOD = position.resize_offsets(self.offset_embed, count)
            return [AttentionPlaces(self.prefix_tokens, None, offsets_OD, index_BNN) for offsets_OD in vectors_LOD]
        if self.config.positions == "relative_bias":
            entry_BTT = self._places_of(grid)[None]
            if keep_BK is not None:
                places_BT = nn.functional.pad(keep_BK + self.prefix_tokens, (self.prefix_tokens, 0))
                places_BT[:, : self.prefix_tokens] = torch.arange(self.prefix_tokens, device=keep_BK.device)
                entry_BTT = entry_BTT[0][places_BT[:, :, None], places_BT[:, None]]
            shared_Oh = None if self.rel_pos_bias is None else self.rel_pos_bias.relative_position_bias_table
            return [
                AttentionPlaces(self.prefix_tokens, entry_BTT=entry_BTT, shared_Oh=shared_Oh, grids=(self.grid, grid))
            ]
        if self.config.positions == "rope":
            rope_2BNd = self._places_of(grid)
            if keep_BK is not None:
                rope_2BNd = torch.stack([take_rows(part.expand(len(keep_BK), -1, -1), keep_BK) for part in rope_2BNd])
            return [AttentionPlaces(self.prefix_tokens, rope_2BNd)]
        return [None]

    def _places_of(self, grid: Grid) -> Tensor:
        """The constant table of this grid."""
        own = self.fixed_places
        assert own is not None
        if grid == self.grid:
            return own
        other = self._fixed_places(grid, own.device)
        assert other is not None
        return other

    def split(
        self,
        tokens_BTD: Tensor,
        grid: Grid,
        groups_BN: Tensor | None = None,
        captured: dict[str, Tensor] | None = None,
    ) -> EncoderOutput:
        """Tokens [B, T, D] of any layer by their kind."""
        c, P = self.config, self.prefix_tokens
        ends = int(c.class_token), c.class_token + c.distill_token
        return EncoderOutput(
            cls_BD=tokens_BTD[:, 0] if c.class_token else None,
            registers_BRD=tokens_BTD[:, ends[1] : P] if c.registers else None,
            patches_BND=tokens_BTD[:, P:],
            grid=grid,
            distill_BD=tokens_BTD[:, ends[0]] if c.distill_token else None,
            groups_BN=groups_BN,
            captured=captured or {},
        )


class SharedBias(nn.Module):
    """A bias table that all blocks add to their scores, by timm's name."""

    def __init__(self, entries: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty(entries, heads))


def _patch_embed(c: ViTConfig) -> PatchEmbed | HybridEmbed:
    if c.stem_blocks is None:
        return PatchEmbed(c.in_channels, c.patch_size, c.width)
    return HybridEmbed(c.in_channels, c.stem_blocks, c.patch_size, c.width, c.stem_epsilons)


def _token(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, count, width))


def _mean(out: EncoderOutput, attend_BN: Tensor | None) -> Tensor:
    if attend_BN is None or out.groups_BN is not None:
        return token_reduction.mean_of_patches(out.patches_BND, out.groups_BN)
    weight_BN1 = attend_BN.to(out.patches_BND.dtype).unsqueeze(-1)
    return (out.patches_BND * weight_BN1).sum(1) / weight_BN1.sum(1)


def _blocks(config: ViTConfig) -> list[Block]:
    c, d = config, config.width // config.heads
    sizes = zip(c.heads_of_blocks, c.mlp_dims_of_blocks, c.drop_path_rates, strict=True)
    has_own = c.positions == "relative_bias" and c.positions_at != "layers_shared"
    offsets = c.bias_entries if has_own else 0
    return [
        Block(
            c.width, heads, hidden, c.dropout, rate, c.gelu, c.norm_eps, c.mlp, c.qk_norm, c.layer_scale, d,
            key_bias=c.key_bias, offsets=offsets,
        )
        for heads, hidden, rate in sizes
    ]  # fmt: skip
