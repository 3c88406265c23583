"""The parts of a Vision Transformer block. Equations are those of arXiv 2010.11929.

Shape letters: B batch, C channels, H W image height and width, N tokens, Q query tokens (the first of the N), D width,
M hidden width of the MLP, h heads, d features of a head, P patch side, K kept samples, 3 query, key, value.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.position import AttentionPlaces, relative_scores, rotate
from vitral.models.reduction import Between, Seen

# nn.init.trunc_normal_ cuts at two standard deviations, which leaves this share of the standard deviation.
_TRUNCATED = 0.87962566103423978


class Linear(nn.Linear):
    """A dense layer that leaves its values unset: the model's own initialisation fills every parameter once."""

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
        nn.init.zeros_(layer.bias)


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
    head_width: features of a head, d; None: D / h, so that all heads together are as wide as a token.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        norm_eps: float | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, d = heads, head_width or width // heads
        self.qkv = Linear(width, 3 * heads * d)
        self.q_norm, self.k_norm = (nn.Identity() if norm_eps is None else nn.LayerNorm(d, eps=norm_eps) for _ in "qk")
        self.proj = Linear(heads * d, width)
        self.proj_drop = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier uniform; query, key and value are each drawn for their own size, not for that of the packed matrix."""
        xavier(self.qkv, parts=3)
        xavier(self.proj)

    def forward(
        self,
        x_BND: Tensor,
        bias: Tensor | None = None,
        causal: bool = False,
        queries: int | None = None,
        captured: dict[str, Tensor] | None = None,
        places: AttentionPlaces | None = None,
        offsets_OD: Tensor | None = None,
        seen: list[Seen] | None = None,
    ) -> Tensor:
        """[B, N, D] to [B, Q, D].

        bias: added to the scores before the softmax, broadcast to [B, h, Q, N]; -inf forbids, and a row that is all
        -inf gives NaN. causal: no token sees later ones. queries: only the first that many tokens ask (default all).
        captured: where to leave "attn.q", "attn.k" [B, h, N, d] and "attn.map" [B, h, Q, N] (rows sum to 1); the result
        is then computed from that map, so gradients flow through it. places: rotation or offsets of the tokens, whose
        vectors in this block are `offsets_OD`. seen: a list to leave queries and keys in. There is never dropout on
        attention weights.
        """
        # Split along the packed axis before moving heads: the backward pass then writes one contiguous gradient.
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q_BhNd, k_BhNd, v_BhNd = (part.transpose(1, 2) for part in qkv)
        q_BhNd, k_BhNd = self.q_norm(q_BhNd), self.k_norm(k_BhNd)
        if places is not None and places.rope_2BNd is not None:
            q_BhNd, k_BhNd = (rotate(part, places.rope_2BNd, places.prefix) for part in (q_BhNd, k_BhNd))
        if seen is not None:
            seen.append(Seen(q_BhNd, k_BhNd))
        q_BhQd = q_BhNd if queries is None else q_BhNd[:, :, :queries]
        if places is not None and places.index_BNN is not None:
            assert offsets_OD is not None
            scaled = q_BhQd * q_BhQd.shape[-1] ** -0.5
            extra = relative_scores(scaled, offsets_OD, places.index_BNN, places.prefix, x_BND.shape[1])
            bias = extra if bias is None or extra is None else bias + extra
        if causal and (bias is not None or captured is not None):
            later_QN = torch.ones(q_BhQd.shape[2], x_BND.shape[1], dtype=torch.bool, device=x_BND.device).triu(1)
            base = torch.zeros((), dtype=q_BhQd.dtype, device=x_BND.device) if bias is None else bias
            bias, causal = base.masked_fill(later_QN, float("-inf")), False
        if captured is not None:
            map_BhQN = _attention_map(q_BhQd, k_BhNd, bias)
            out_BhQd = map_BhQN @ v_BhNd
            captured |= {"attn.q": q_BhNd, "attn.k": k_BhNd, "attn.map": map_BhQN}
        elif bias is None and not causal and _fused_is_slow(q_BhQd):
            out_BhQd = _attention_map(q_BhQd, k_BhNd, None) @ v_BhNd
        else:
            out_BhQd = F.scaled_dot_product_attention(q_BhQd, k_BhNd, v_BhNd, attn_mask=bias, is_causal=causal)
        return self.proj_drop(self.proj(out_BhQd.transpose(1, 2).flatten(2)))


def _fused_is_slow(q_BhQd: Tensor) -> bool:
    """Whether two matrix products and a softmax train faster than torch's fused attention: in bfloat16 on a CPU they
    take a quarter to six tenths of its time (docs/LOG.md), for the memory of the map."""
    return q_BhQd.is_cpu and q_BhQd.dtype == torch.bfloat16 and q_BhQd.requires_grad


def _attention_map(q_BhQd: Tensor, k_BhNd: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias), eq. 6."""
    scores_BhQN = (q_BhQd * q_BhQd.shape[-1] ** -0.5) @ k_BhNd.transpose(-2, -1)
    return (scores_BhQN if bias is None else scores_BhQN + bias).softmax(-1)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, each followed by dropout."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, gelu: Literal["exact", "tanh"] = "exact") -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = nn.GELU(approximate="none" if gelu == "exact" else "tanh")
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier uniform, zero biases."""
        xavier(self.fc1, self.fc2)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x_BND)))))


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

    def forward(self, patches_BND: Tensor, bias: Tensor | None = None) -> Tensor:
        """[B, N, D] to [B, D]; `bias` as in `Attention.forward`."""
        q_1h1d = self.q(self.latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(patches_BND).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k_BhNd, v_BhNd = (part.transpose(1, 2) for part in kv)
        q_Bh1d = q_1h1d.expand(patches_BND.shape[0], -1, -1, -1)
        out_Bh1d = F.scaled_dot_product_attention(q_Bh1d, k_BhNd, v_BhNd, attn_mask=bias)
        x_BD = self.proj(out_Bh1d.flatten(1))
        return x_BD + self.mlp(self.norm(x_BD))


def kept_count(batch: int, rate: float) -> int:
    """How many of `batch` samples run a branch that the share `rate` of them skips: rounded, and never none."""
    return max(1, round(batch * (1 - rate)))


def draw_kept(x_BND: Tensor, rate: float) -> Tensor | None:
    """Random samples [K] that run a branch, K = `kept_count`, without repetition; None where that is all of them."""
    if not rate:  # asks nothing of the batch size, which an export may leave open
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
    """One pre-norm encoder block: eq. 2 (attention) and eq. 3 (MLP), each with a residual connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        gelu: Literal["exact", "tanh"] = "exact",
        norm_eps: float = 1e-6,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        qk_norm: bool = False,
        layer_scale: float | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, dropout, norm_eps if qk_norm else None, head_width)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, dropout, gelu) if mlp == "gelu" else SwiGLU(width, mlp_dim, dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = drop_path

    def init_weights(self) -> None:
        """Sets every parameter of the block."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Attention | Mlp | SwiGLU | LayerScale):
                module.init_weights()

    def forward(
        self,
        x_BND: Tensor,
        bias: Tensor | None = None,
        causal: bool = False,
        queries: int | None = None,
        captured: dict[str, Tensor] | None = None,
        places: AttentionPlaces | None = None,
        offsets_OD: Tensor | None = None,
        between: Between | None = None,
    ) -> Tensor:
        """[B, N, D] to [B, Q, D]; the arguments are those of `Attention.forward`, Q = N without `queries`.

        With `captured` it also leaves "attn", the attention module's output for every sample: drop-path then skips
        samples only after the attention. between: makes the tokens fewer before the MLP, by what the attention has seen
        (of every sample, likewise).
        """
        rate = self.drop_path if self.training else 0.0
        kept_K = draw_kept(x_BND, rate)
        early_K, late_K = (kept_K, None) if captured is None and between is None else (None, kept_K)
        bias = take(bias, early_K) if bias is not None and bias.dim() == 4 and bias.shape[0] > 1 else bias
        near = places if places is None or early_K is None else places.take(early_K)
        normed = self.norm1(take(x_BND, early_K))
        seen: list[Seen] | None = None if between is None else []
        attended = self.attn(normed, bias, causal, queries, captured, near, offsets_OD, seen)
        if captured is not None:
            captured["attn"] = attended
        x_BQD = add_branch(x_BND if queries is None else x_BND[:, :queries], self.ls1(take(attended, late_K)), kept_K)
        if between is not None and seen is not None:
            x_BQD = between(x_BQD, seen[0])

        kept_K = draw_kept(x_BQD, rate)
        return add_branch(x_BQD, self.ls2(self.mlp(self.norm2(take(x_BQD, kept_K)))), kept_K)
