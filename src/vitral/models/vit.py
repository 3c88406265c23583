"""The Vision Transformer (arXiv 2010.11929): images in, tokens, features or logits out.

Shape letters: B batch, C channels, H W image height and width, N patches, T tokens (class token and patches), K kept
patches, D width, S classes. Parameter names are timm's, so that public checkpoints fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vitral.errors import UserError, nearest
from vitral.models.layers import Block, Linear, PatchEmbed
from vitral.models.position import interpolate_positions
from vitral.models.presets import ModelConfig
from vitral.structs import EncoderOutput

# nn.init.trunc_normal_ cuts at two standard deviations, which leaves this share of the standard deviation.
_TRUNCATED = 0.87962566103423978


class VisionTransformer(nn.Module):
    """Encoder and head of one `ModelConfig`; images are [0,1] floats or uint8, normalisation happens inside.

    `model(images_BCHW)` gives logits [B, S], or pooled features [B, D] where the config has no classes. `encode` gives
    every token, `embed` and `encode_tokens` are its two halves.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.prefix_tokens = int(config.class_token)
        width, rows_columns = config.width, config.grid[0] * config.grid[1]
        self.patch_embed = PatchEmbed(config.in_channels, config.patch_size, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix_tokens + rows_columns, width))
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_blocks(config))
        late, eps = config.norm_after_pool, config.norm_eps
        self.norm = nn.Identity() if late else nn.LayerNorm(width, eps=eps)
        self.fc_norm = nn.LayerNorm(width, eps=eps) if late else nn.Identity()
        self.pre_logits = _TanhLayer(width) if config.head == "mlp" else nn.Identity()
        self.head = Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        self._set_normalisation()
        self.init_weights()

    def _set_normalisation(self) -> None:
        device = self.pos_embed.device
        for name, values in (("mean", self.config.mean), ("std", self.config.std)):
            constant = torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VisionTransformer:
        """Moves and casts as usual, but the normalisation constants come from the config again, in float32.

        Otherwise `.bfloat16()` would round a mean of 0.485 to 0.484, and `.to_empty()` leave it unset.
        """
        super()._apply(fn, recurse)
        self._set_normalisation()
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """Sets every parameter anew, from torch's global random state.

        As in the paper's code: patches LeCun normal (truncated), positions N(0, 0.02), class token and output layer
        zero, the tanh layer LeCun normal, everything else Xavier uniform with zero biases. Query, key and value are
        each drawn for their own size, not for that of the packed matrix. (The code's N(0, 1e-6) biases are 0 here.)
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Block):
                attention, mlp = module.attn, module.mlp
                for weight in (*attention.qkv.weight.chunk(3), attention.proj.weight, mlp.fc1.weight, mlp.fc2.weight):
                    nn.init.xavier_uniform_(weight)
                for layer in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
                    nn.init.zeros_(layer.bias)
        _lecun_normal(self.patch_embed.proj.weight, self.patch_embed.proj.bias)
        nn.init.normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        if isinstance(self.pre_logits, _TanhLayer):
            _lecun_normal(self.pre_logits.fc.weight, self.pre_logits.fc.bias)
        if isinstance(self.head, Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def embed(self, images_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised, cut and projected images: patches [B, N, D] without positions, and the grid (rows, columns).

        Images are floats in [0,1] or uint8, of any height and width that the patch size divides. Raises UserError for
        another shape, channel count or kind of number.
        """
        self._check_images(images_BCHW)
        patch = self.config.patch_size
        grid = images_BCHW.shape[-2] // patch, images_BCHW.shape[-1] // patch
        return self.patch_embed(self._normalise(images_BCHW)), grid

    def encode_tokens(
        self,
        patches_BND: Tensor,
        grid: tuple[int, int],
        keep_BK: Tensor | None = None,
        capture: Sequence[str] = (),
        attend_BN: Tensor | None = None,
    ) -> EncoderOutput:
        """Patch embeddings to encoded tokens (eq. 1 from the positions on, eq. 2-4).

        grid: (rows, columns) with rows * columns = N; positions are interpolated where it is not the model's own.
        keep_BK: indices into N of the patches that are encoded at all, in any order; `patches_BND` of the result then
        has K rows in that order. attend_BN: bool, false for patches that no token may attend to (their own rows are
        still computed); without a class token at least one has to be true. capture: "blocks.3", "blocks.3.attn"
        [B, T, D], "blocks.3.attn.map" [B, heads, T, T], "blocks.3.attn.q", ".k" [B, heads, T, D / heads]. Raises
        UserError for an unknown name to capture.
        """
        assert patches_BND.shape[1] == grid[0] * grid[1], (patches_BND.shape, grid)
        self._check_capture(capture)
        tokens_BTD = self._add_positions(patches_BND, grid, keep_BK)
        bias_B11T = None if attend_BN is None else self._attention_bias(attend_BN, keep_BK, tokens_BTD.dtype)
        captured: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            inside: dict[str, Tensor] | None = {} if any(n.startswith(f"{name}.attn") for n in capture) else None
            tokens_BTD = block(tokens_BTD, bias_B11T, captured=inside)
            found = {name: tokens_BTD} | {f"{name}.{part}": value for part, value in (inside or {}).items()}
            captured |= {n: found[n] for n in capture if n in found}
        tokens_BTD = self.norm(tokens_BTD)
        cls_BD = tokens_BTD[:, 0] if self.prefix_tokens else None
        return EncoderOutput(cls_BD, None, tokens_BTD[:, self.prefix_tokens :], grid, None, None, captured)

    def encode(
        self,
        images_BCHW: Tensor,
        keep_BK: Tensor | None = None,
        capture: Sequence[str] = (),
        attend_BN: Tensor | None = None,
    ) -> EncoderOutput:
        """`embed`, then `encode_tokens`: images of any size that the patch size divides to encoded tokens."""
        patches_BND, grid = self.embed(images_BCHW)
        return self.encode_tokens(patches_BND, grid, keep_BK, capture, attend_BN)

    def pool(self, out: EncoderOutput, attend_BN: Tensor | None = None) -> Tensor:
        """One vector per image, [B, D]: the class token, or the mean over the patches; then `fc_norm` where it is on.

        attend_BN: as given to `encode`, to leave the masked patches out of the mean too.
        """
        if self.config.pool == "cls":
            assert out.cls_BD is not None
            return self.fc_norm(out.cls_BD)
        if attend_BN is None:
            return self.fc_norm(out.patches_BND.mean(1))
        weight_BN1 = attend_BN.to(out.patches_BND.dtype).unsqueeze(-1)
        return self.fc_norm((out.patches_BND * weight_BN1).sum(1) / weight_BN1.sum(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, S] of images of the model's own size, or pooled features [B, D] where num_classes is 0.

        Equal to `head(pre_logits(pool(encode(images))))`; where the class token is pooled, the last block computes that
        token alone. Raises UserError for images of another size, channel count or kind of number.
        """
        size = tuple(images_BCHW.shape[-2:])
        if size != self.config.image_size:
            hint = "model.encode takes other sizes; for logits, resize the images or build the model for their size."
            raise UserError("wrong image size", got=_text(size), wanted=_text(self.config.image_size), hint=hint)
        patches_BND, grid = self.embed(images_BCHW)
        if self.config.pool == "avg":
            return self.classify(self.pool(self.encode_tokens(patches_BND, grid)))
        tokens_BTD = self._add_positions(patches_BND, grid, None)
        for i, block in enumerate(self.blocks):
            tokens_BTD = block(tokens_BTD, queries=1 if i == len(self.blocks) - 1 else None)
        return self.classify(self.fc_norm(self.norm(tokens_BTD[:, 0])))

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The head alone: pooled features [B, D] to logits [B, S]."""
        return self.head(self.pre_logits(pooled_BD))

    def _check_images(self, images_BCHW: Tensor) -> None:
        shape, patch, channels = tuple(images_BCHW.shape), self.config.patch_size, self.config.in_channels
        if len(shape) != 4 or shape[1] != channels:
            raise UserError("wrong shape of the images", got=_text(shape), wanted=f"B x {channels} x height x width")
        if shape[2] % patch or shape[3] % patch or not (shape[2] and shape[3]):
            raise UserError("wrong image size", got=_text(shape[2:]), wanted=f"multiples of the patch size, {patch}")
        if images_BCHW.dtype != torch.uint8 and not images_BCHW.is_floating_point():
            raise UserError("wrong kind of numbers", got=images_BCHW.dtype, wanted="uint8, or floats in [0,1]")

    def _check_capture(self, capture: Sequence[str]) -> None:
        if not capture:
            return
        ends = ("", ".attn", ".attn.map", ".attn.q", ".attn.k")
        known = [f"blocks.{i}{end}" for i in range(len(self.blocks)) for end in ends]
        for name in capture:
            if name not in known:
                last = f"the last block is blocks.{len(self.blocks) - 1}"
                raise UserError("nothing of that name to capture", where=name, nearest=nearest(name, known), hint=last)

    def _normalise(self, images_BCHW: Tensor) -> Tensor:
        """(image - mean) / std in float32 or better, then the type of the parameters."""
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = images_BCHW.to(torch.float32) / 255
        elif images_BCHW.dtype != torch.float64:
            images_BCHW = images_BCHW.to(torch.float32)
        return ((images_BCHW - self.mean) / self.std).to(self.patch_embed.proj.weight.dtype)

    def _add_positions(self, patches_BND: Tensor, grid: tuple[int, int], keep_BK: Tensor | None) -> Tensor:
        """Tokens [B, T, D]: positions added, kept patches gathered, class token in front (eq. 1), dropout."""
        pos_1TD = interpolate_positions(self.pos_embed, self.prefix_tokens, self.grid, grid)
        patches_BND = patches_BND + pos_1TD[:, self.prefix_tokens :]
        if keep_BK is not None:
            patches_BND = patches_BND.gather(1, keep_BK.unsqueeze(-1).expand(-1, -1, patches_BND.shape[-1]))
        if self.cls_token is None:
            return self.pos_drop(patches_BND)
        cls_B1D = (self.cls_token + pos_1TD[:, :1]).to(patches_BND.dtype).expand(patches_BND.shape[0], -1, -1)
        return self.pos_drop(torch.cat([cls_B1D, patches_BND], dim=1))

    def _attention_bias(self, attend_BN: Tensor, keep_BK: Tensor | None, dtype: torch.dtype) -> Tensor:
        """-inf for keys that may not be attended to and 0 for the others, the class token among them: [B, 1, 1, T]."""
        attend_BK = attend_BN if keep_BK is None else attend_BN.gather(1, keep_BK)
        bias_BK = torch.zeros(attend_BK.shape, dtype=dtype, device=attend_BK.device)
        bias_BK = bias_BK.masked_fill(~attend_BK, float("-inf"))
        return nn.functional.pad(bias_BK, (self.prefix_tokens, 0))[:, None, None, :]


class _TanhLayer(nn.Module):
    """The hidden layer of the paper's pre-training head (section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = Linear(width, width)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        return self.fc(pooled_BD).tanh()


def _blocks(config: ModelConfig) -> list[Block]:
    """The blocks; the drop-path rate rises linearly from 0 at the first to its maximum at the last (or only) one."""
    c, last = config, config.depth - 1
    rates = [c.drop_path * i / last if last else c.drop_path for i in range(c.depth)]
    return [Block(c.width, c.heads, c.mlp_dim, c.dropout, rate, c.gelu, c.norm_eps) for rate in rates]


def _lecun_normal(weight: Tensor, bias: Tensor) -> None:
    """Truncated normal of variance 1 / fan-in, and a zero bias."""
    std = weight[0].numel() ** -0.5 / _TRUNCATED
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(bias)


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
