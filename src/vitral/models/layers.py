"""Parts of a Vision Transformer block. Equations are those of arXiv 2010.11929.

Shape letters: B batch, C channels, H W image height and width, N tokens, Q query tokens (the first of the N), D width,
M hidden width of the MLP or tokens of a memory, h heads, d features of a head, P patch side, K kept samples.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.attention import PLAIN, AttentionContext, attention
from vitral.models.position import relative_scores, rotate
from vitral.models.token_reduction import CapturedQK

Gelu = Literal["exact", "tanh", "quick"]

# nn.init.trunc_normal_ cuts at two standard deviations, which leaves this share of the standard deviation.
_TRUNCATED = 0.87962566103423978


class Linear(nn.Linear):
    """A dense layer that leaves its values unset: the model's own initialization fills every parameter once."""

    def reset_parameters(self) -> None:
        """Nothing: see the `init_weights` of what holds it."""


def lecun_normal(weight: Tensor, bias: Tensor | None = None) -> None:
    """Truncated normal of variance 1 / fan-in, and a zero bias."""
    std = weight[0].numel() ** -0.5 / _TRUNCATED
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    if bias is not None:
        nn.init.zeros_(bias)


def xavier(*layers: nn.Linear, parts: int = 1) -> None:
    """Xavier uniform weights and zero biases; a packed layer's `parts` are each drawn for their own size."""
    for layer in layers:
        for weight in layer.weight.chunk(parts):
            nn.init.xavier_uniform_(weight)
        if (bias := getattr(layer, "bias", None)) is not None:
            nn.init.zeros_(bias)


class PatchEmbed(nn.Module):
    """Cuts images into square patches and projects each (eq. 1, the x_p E part), as one matrix product.

    The weight has the shape of the equivalent convolution, `proj.weight` [D, C, P, P], as public checkpoints have it.
    """

    def __init__(self, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = ConvShaped(in_channels, patch_size, width)

    def init_weights(self) -> None:
        """LeCun normal, as in the paper's code."""
        lecun_normal(self.proj.weight, self.proj.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] with H and W multiples of P to [B, N, D], patches row by row."""
        return self.proj(images_BCHW)


class ConvShaped(nn.Module):
    """A convolution whose stride is its size, computed as one dense layer over flattened patches."""

    def __init__(self, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, in_channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, D], patches row by row."""
        B, C, H, W = map_BCHW.shape
        P = self.weight.shape[-1]
        cells = map_BCHW.reshape(B, C, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5)
        cells_BNX = cells.reshape(B, (H // P) * (W // P), C * P * P)
        return F.linear(cells_BNX, self.weight.flatten(1), self.bias)


class Attention(nn.Module):
    """Multi-head self-attention with packed projections (eq. 5-8, appendix A).

    norm_eps: None, or the epsilon of a layer norm of every head's queries and keys (arXiv 2302.05442, section 2).
    head_width: features of a head, d; None: D / h, so that all heads together are as wide as a token. key_bias: false
    leaves out the biases of the keys, which no softmax depends on, and keeps the others as BEiT's files do. offsets:
    entries of a bias table of its own, see `position.bias_entries`; 0: none.
    """

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None
    relative_position_bias_table: nn.Parameter | None

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        norm_eps: float | None = None,
        head_width: int | None = None,
        key_bias: bool = True,
        offsets: int = 0,
    ) -> None:
        super().__init__()
        self.heads, d = heads, head_width or width // heads
        self.qkv = Linear(width, 3 * heads * d, bias=key_bias)
        for part in "qv":
            self.register_parameter(f"{part}_bias", None if key_bias else nn.Parameter(torch.empty(heads * d)))
        table_Oh = nn.Parameter(torch.empty(offsets, heads)) if offsets else None
        self.register_parameter("relative_position_bias_table", table_Oh)
        self.q_norm, self.k_norm = (nn.Identity() if norm_eps is None else nn.LayerNorm(d, eps=norm_eps) for _ in "qk")
        self.proj = Linear(heads * d, width)
        self.proj_drop = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier uniform; query, key and value are each drawn for their own size, not for that of the packed matrix."""
        xavier(self.qkv, parts=3)
        xavier(self.proj)
        for zero in (self.q_bias, self.v_bias, self.relative_position_bias_table):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x_BND: Tensor, context: AttentionContext = PLAIN) -> Tensor:
        """[B, N, D] to [B, Q, D], Q = N without `context.queries`."""
        packed_BNX = self.qkv(x_BND)
        if self.q_bias is not None and self.v_bias is not None:
            packed_BNX = packed_BNX + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q_BhNd, k_BhNd, v_BhNd = _heads(packed_BNX, 3, self.heads)
        q_BhNd, k_BhNd = self.q_norm(q_BhNd), self.k_norm(k_BhNd)
        places, bias, earlier = context.places, context.bias, 0
        if places is not None and places.rope_2BNd is not None:
            q_BhNd, k_BhNd = (rotate(part, places.rope_2BNd, places.prefix) for part in (q_BhNd, k_BhNd))
        if context.cache is not None:
            earlier = context.cache.length
            k_BhNd, v_BhNd = context.cache.append(k_BhNd, v_BhNd)
        q_BhQd = q_BhNd if context.queries is None else q_BhNd[:, :, : context.queries]
        if places is not None and places.index_BNN is not None:
            assert places.offsets_OD is not None
            scaled = q_BhQd * q_BhQd.shape[-1] ** -0.5
            extra = relative_scores(scaled, places.offsets_OD, places.index_BNN, places.prefix, k_BhNd.shape[2])
            bias = extra if bias is None or extra is None else bias + extra
        if places is not None and places.entry_BTT is not None:
            extra = places.bias(self.relative_position_bias_table, q_BhQd.shape[2]).to(q_BhQd.dtype)
            bias = extra if bias is None else bias + extra
        causal_from = earlier if context.causal else None
        explicit = context.explicit
        out_BhQd, map_BhQN = attention(q_BhQd, k_BhNd, v_BhNd, bias, context.attend_BN, causal_from, explicit=explicit)
        context.leave("attn", q_BhNd, k_BhNd, map_BhQN if explicit else None)
        return self.proj_drop(self.proj(out_BhQd.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to those of a memory, M of another width D' (arXiv 1706.03762, section 3.2.3).

    Queries have a projection of their own, keys and values a packed one.
    """

    def __init__(self, width: int, heads: int, memory_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(memory_width, 2 * width)
        self.proj = Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier uniform; key and value are each drawn for their own size."""
        xavier(self.q, self.proj)
        xavier(self.kv, parts=2)

    def keys_values(self, memory_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory, [B, h, M, d] each."""
        k_BhMd, v_BhMd = _heads(self.kv(memory_BMD), 2, self.heads)
        return k_BhMd, v_BhMd

    def forward(self, x_RQD: Tensor, context: AttentionContext) -> Tensor:
        """[R, Q, D] to [R, Q, D]; keys and values are those of `context.memory_BMD`, or its `memory_kv`.

        R = B, or k B with `memory_kv`: k rows of one memory are then further queries to it, so that it is never copied.
        """
        if context.memory_kv is None:
            assert context.memory_BMD is not None
            k_BhMd, v_BhMd = self.keys_values(context.memory_BMD)
        else:
            k_BhMd, v_BhMd = context.memory_kv
        together = x_RQD.shape[0] != k_BhMd.shape[0]
        x_BQD = x_RQD.reshape(k_BhMd.shape[0], -1, x_RQD.shape[-1]) if together else x_RQD
        (q_BhQd,) = _heads(self.q(x_BQD), 1, self.heads)
        explicit = context.explicit
        out_BhQd, map_BhQM = attention(q_BhQd, k_BhMd, v_BhMd, attend_BN=context.attend_BM, explicit=explicit)
        context.leave("cross_attn", q_BhQd, k_BhMd, map_BhQM if explicit else None)
        out_BQD = self.proj_drop(self.proj(out_BhQd.transpose(1, 2).flatten(2)))
        return out_BQD.reshape(x_RQD.shape) if together else out_BQD


def _heads(packed_BNX: Tensor, parts: int, heads: int) -> list[Tensor]:
    """The packed projections, [B, h, N, d] each. They are split along the packed axis before heads are moved, so that
    the backward pass writes one contiguous gradient."""
    return [part.transpose(1, 2) for part in packed_BNX.unflatten(-1, (parts, heads, -1)).unbind(2)]


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, each followed by dropout; gelu=None: a ReLU (1706.03762, eq. 2)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, gelu: Gelu | None = "exact") -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = _activation(gelu)
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier uniform, zero biases."""
        xavier(self.fc1, self.fc2)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x_BND)))))


def _activation(gelu: Gelu | None) -> nn.Module:
    if gelu == "quick":
        return QuickGELU()
    return nn.ReLU() if gelu is None else nn.GELU(approximate="none" if gelu == "exact" else "tanh")


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the logistic approximation of the GELU (arXiv 1606.08415, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return F.silu(1.702 * x) / 1.702  # the same function, of which silu keeps less for the backward pass


class SwiGLU(nn.Module):
    """silu(gate) * value, then a dense layer (arXiv 2002.05202); gate and value [M each] are packed in `fc1`."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(width, 2 * hidden)
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier uniform, gate and value each for their own size; zero biases."""
        xavier(self.fc1, parts=2)
        xavier(self.fc2)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        gate_BNM, value_BNM = self.fc1(x_BND).chunk(2, dim=-1)
        return self.drop2(self.fc2(self.drop1(F.silu(gate_BNM) * value_BNM)))


class LayerScale(nn.Module):
    """A learned factor per feature, small at first (arXiv 2103.17239, eq. 4)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.empty(width))

    def init_weights(self) -> None:
        """The same initial value for every feature."""
        nn.init.constant_(self.gamma, self.initial)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return x_BND * self.gamma


class AttentionPool(nn.Module):
    """One learned query attends to all patches, then an MLP with a residual connection (MAP: arXiv 2106.04560, 3.1)."""

    def __init__(
        self, width: int, heads: int, mlp_dim: int, gelu: Literal["exact", "tanh"] = "exact", norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, gelu=gelu)

    def init_weights(self) -> None:
        """Xavier uniform; the query N(0, 1 / width)."""
        nn.init.normal_(self.latent, std=self.latent.shape[-1] ** -0.5)
        xavier(self.q, self.proj)
        xavier(self.kv, parts=2)
        self.mlp.init_weights()

    def forward(self, patches_BND: Tensor, context: AttentionContext = PLAIN) -> Tensor:
        """[B, N, D] to [B, D], with `bias` and `attend_BN` of the context."""
        (q_1h1d,) = _heads(self.q(self.latent), 1, self.heads)
        k_BhNd, v_BhNd = _heads(self.kv(patches_BND), 2, self.heads)
        q_Bh1d = q_1h1d.expand(patches_BND.shape[0], -1, -1, -1)
        out_Bh1d, _ = attention(q_Bh1d, k_BhNd, v_BhNd, context.bias, context.attend_BN)
        x_BD = self.proj(out_Bh1d.flatten(1))
        return x_BD + self.mlp(self.norm(x_BD))


def kept_count(batch: int, rate: float) -> int:
    """How many of `batch` samples run a branch that the share `rate` of them skips: rounded, and never none."""
    return max(1, round(batch * (1 - rate)))


def draw_kept(x_BND: Tensor, rate: float) -> Tensor | None:
    """Random samples [K] that run a branch, K = `kept_count`, without repetition; None where that is all of them."""
    if not rate:  # does not depend on the batch size, which an export may leave open
        return None
    B = x_BND.shape[0]
    kept = kept_count(B, rate)
    return None if kept == B else torch.randperm(B, device=x_BND.device)[:kept]


def take(x_BND: Tensor, kept_K: Tensor | None) -> Tensor:
    """The samples that run a branch."""
    return x_BND if kept_K is None else x_BND.index_select(0, kept_K)


def add_branch(x_BND: Tensor, branch_KND: Tensor, kept_K: Tensor | None) -> Tensor:
    """x + branch, where only the samples `kept_K` ran it (stochastic depth, arXiv 1603.09382).

    What was kept is scaled by B / K, so the expectation over the draws is that of no drop-path at all. The paper draws
    each sample alone and scales at test time instead; here the count is exact, and skipped work is not done.
    """
    if kept_K is None:
        return x_BND + branch_KND
    return x_BND.index_add(0, kept_K, branch_KND.to(x_BND.dtype), alpha=x_BND.shape[0] / kept_K.shape[0])


class Block(nn.Module):
    """One pre-norm block: eq. 2 (attention) and eq. 3 (MLP), each with a residual connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        gelu: Gelu = "exact",
        norm_eps: float = 1e-6,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        qk_norm: bool = False,
        layer_scale: float | None = None,
        head_width: int | None = None,
        norm: Literal["layer", "rms"] = "layer",
        key_bias: bool = True,
        offsets: int = 0,
    ) -> None:
        super().__init__()
        make_norm = nn.LayerNorm if norm == "layer" else nn.RMSNorm

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

        self.norm1 = make_norm(width, eps=norm_eps)
        self.attn = Attention(width, heads, dropout, norm_eps if qk_norm else None, head_width, key_bias, offsets)
        self.ls1 = scale()
        self.norm2 = make_norm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, dropout, gelu) if mlp == "gelu" else SwiGLU(width, mlp_dim, dropout)
        self.ls2 = scale()
        self.drop_path = drop_path

    def init_weights(self) -> None:
        """Sets every parameter of the block."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
            elif isinstance(module, Attention | Mlp | SwiGLU | LayerScale):
                module.init_weights()

    def forward(self, x_BND: Tensor, context: AttentionContext = PLAIN) -> Tensor:
        """[B, N, D] to [B, Q, D], Q = N without `context.queries`.

        What is captured, or makes tokens fewer, is computed for every sample: drop-path then skips samples only after
        the attention.
        """
        rate = self.drop_path if self.training else 0.0
        if context.reduce is not None and context.captured is None:
            context = context._replace(captured={}, maps=False)
        captured = context.captured
        kept_K = draw_kept(x_BND, rate)
        early_K, late_K = (kept_K, None) if captured is None else (None, kept_K)
        attended = self.attn(self.norm1(take(x_BND, early_K)), context.take(early_K))
        if captured is not None:
            captured["attn"] = attended
        x_BQD = x_BND if context.queries is None else x_BND[:, : context.queries]
        x_BQD = add_branch(x_BQD, self.ls1(take(attended, late_K)), kept_K)
        if context.reduce is not None and captured is not None:
            x_BQD = context.reduce(x_BQD, CapturedQK(captured["attn.q"], captured["attn.k"]))
        kept_K = draw_kept(x_BQD, rate)
        return add_branch(x_BQD, self.ls2(self.mlp(self.norm2(take(x_BQD, kept_K)))), kept_K)
