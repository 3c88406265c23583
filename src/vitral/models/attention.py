"""Scaled dot-product attention (arXiv 1706.03762, section 3.2), and the context of an attention layer.

Shape letters: B batch, T tokens that enter a layer, Q queries (the first of the T), N keys (those of the cache, then
the T), M tokens of the memory, D width, h heads, d features of a head, K kept samples, L room of a cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.models.position import AttentionPlaces
from vitral.models.token_reduction import Between


class KVCache:
    """Keys and values of the tokens so far, for decoding step by step: each is computed once. For inference only.

    One cache belongs to one attention layer and one batch. `k_BhLd` and `v_BhLd` have room for `max_length` tokens, of
    which the first `length` are there.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        head_width: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.k_BhLd = torch.zeros(batch, heads, max_length, head_width, dtype=dtype, device=device)
        self.v_BhLd = torch.zeros_like(self.k_BhLd)
        self.length = 0

    def append(self, k_BhTd: Tensor, v_BhTd: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens; keys and values of all tokens so far, as `read` gives them."""
        assert not k_BhTd.requires_grad, "a cache has no gradient: decode under torch.no_grad()"
        start, stop = self.length, self.length + k_BhTd.shape[2]
        assert stop <= self.k_BhLd.shape[2], (stop, self.k_BhLd.shape)
        self.k_BhLd[:, :, start:stop] = k_BhTd
        self.v_BhLd[:, :, start:stop] = v_BhTd
        self.length = stop
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, [B, h, N, d] each, as views of the cache's memory."""
        return self.k_BhLd[:, :, : self.length], self.v_BhLd[:, :, : self.length]

    def reorder(self, index_R: Tensor) -> None:
        """Let row r continue the sequence that was in row `index_R`[r], as a search does; fewer rows may stay."""
        rows = index_R.shape[0]
        k_RhNd, v_RhNd = (part.index_select(0, index_R) for part in self.read())
        self.k_BhLd, self.v_BhLd = self.k_BhLd[:rows], self.v_BhLd[:rows]
        self.k_BhLd[:, :, : self.length], self.v_BhLd[:, :, : self.length] = k_RhNd, v_RhNd


class AttentionContext(NamedTuple):
    """What a block and its attention layers take besides their tokens; the model builds it.

    Self-attention:
    bias: added to the scores before the softmax, broadcast to [B, h, Q, N]; -inf forbids; a row that is all -inf by
    itself is undefined. causal: no token attends to later ones; with a cache the tokens come after those in it.
    attend_BN: bool, false for keys that no token may attend to (padding); a query whose keys are all forbidden, by this
    and `causal`, attends to nothing: its row of the map and of the weighted values is 0. queries: only the first that
    many tokens are computed (default all). places: rotation or offsets of the tokens. cache: keys and values of earlier
    tokens, to which those of this call are appended.

    Cross-attention: memory_BMD: tokens that keys and values are made of. attend_BM: bool, as `attend_BN`, for the
    memory. memory_kv: these keys and values [B, h, M, d], computed before by `CrossAttention.keys_values`; there may be
    k times as many rows of queries then, of which k in a row belong to each row of the memory.

    Looking inside: captured: where to leave "attn.q", "attn.k" [B, h, N, d] and, with `maps`, "attn.map" [B, h, Q, N]
    (and a block "attn", the module's output); cross-attention leaves "cross_attn.q", ... The result is then computed
    from that map, so gradients flow through it. reduce: makes the tokens fewer between the attention and the MLP.
    """

    bias: Tensor | None = None
    causal: bool = False
    attend_BN: Tensor | None = None
    queries: int | None = None
    places: AttentionPlaces | None = None
    cache: KVCache | None = None
    memory_BMD: Tensor | None = None
    attend_BM: Tensor | None = None
    memory_kv: tuple[Tensor, Tensor] | None = None
    captured: dict[str, Tensor] | None = None
    maps: bool = True
    reduce: Between | None = None

    def take(self, kept_K: Tensor | None) -> AttentionContext:
        """The context of these samples of the batch; None: of all."""
        if kept_K is None:
            return self
        assert self.cache is None, "drop-path and a cache"
        assert self.memory_BMD is None, "drop-path and a memory"
        return self._replace(
            bias=_rows(self.bias, kept_K) if self.bias is not None and self.bias.dim() == 4 else self.bias,
            attend_BN=_rows(self.attend_BN, kept_K),
            places=None if self.places is None else self.places.take(kept_K),
        )

    def leave(self, layer: str, q_BhNd: Tensor, k_BhNd: Tensor, map_BhQN: Tensor | None) -> None:
        """Leave what `layer` ("attn") has compared in `captured`, if there is one."""
        if self.captured is not None:
            self.captured.update({f"{layer}.q": q_BhNd, f"{layer}.k": k_BhNd})
            if map_BhQN is not None:
                self.captured[f"{layer}.map"] = map_BhQN

    @property
    def explicit(self) -> bool:
        """Whether attention maps are expected."""
        return self.captured is not None and self.maps


PLAIN = AttentionContext()


def attention(
    q_BhQd: Tensor,
    k_BhNd: Tensor,
    v_BhNd: Tensor,
    bias: Tensor | None = None,
    attend_BN: Tensor | None = None,
    causal_from: int | None = None,
    *,
    explicit: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k^T / sqrt(d) + bias) v (eq. 1), [B, h, Q, d]; with `explicit` also the map [B, h, Q, N], else None.

    bias, attend_BN: see `AttentionContext`. causal_from: query i sees the keys 0 .. causal_from + i; None: all. There
    is never dropout on attention weights.
    """
    if bias is None and attend_BN is None and not explicit:
        if causal_from is None and _fused_is_slow(q_BhQd):
            explicit = True
        elif causal_from in (None, 0):
            is_causal = causal_from is not None
            return F.scaled_dot_product_attention(q_BhQd, k_BhNd, v_BhNd, is_causal=is_causal), None
    allowed = empty = None
    if causal_from is not None:
        allowed = torch.ones(q_BhQd.shape[2], k_BhNd.shape[2], dtype=torch.bool, device=q_BhQd.device).tril(causal_from)
    if attend_BN is not None:
        attend_B11N = attend_BN[:, None, None, :]
        allowed = attend_B11N if allowed is None else allowed & attend_B11N
        empty = ~allowed.any(-1, keepdim=True)
        allowed = allowed | empty  # keeps the numbers and gradients of such rows finite; they are set to 0 below
    if allowed is not None:
        base = torch.zeros((), dtype=q_BhQd.dtype, device=q_BhQd.device) if bias is None else bias
        bias = base.masked_fill(~allowed, float("-inf"))
    if explicit:
        scores_BhQN = (q_BhQd * q_BhQd.shape[-1] ** -0.5) @ k_BhNd.transpose(-2, -1)
        map_BhQN = (scores_BhQN if bias is None else scores_BhQN + bias.to(scores_BhQN.dtype)).softmax(-1)
        map_BhQN = map_BhQN if empty is None else map_BhQN.masked_fill(empty, 0.0)
        return map_BhQN @ v_BhNd, map_BhQN
    out_BhQd = F.scaled_dot_product_attention(q_BhQd, k_BhNd, v_BhNd, attn_mask=bias)
    return out_BhQd if empty is None else out_BhQd.masked_fill(empty, 0.0), None


def _fused_is_slow(q_BhQd: Tensor) -> bool:
    """Whether two matrix products and a softmax train faster than torch's fused attention: in bfloat16 on a CPU they
    take a quarter to six tenths of its time (docs/LOG.md), for the memory of the map."""
    return q_BhQd.is_cpu and q_BhQd.dtype == torch.bfloat16 and q_BhQd.requires_grad


def _rows(tensor: Tensor | None, kept_K: Tensor) -> Tensor | None:
    """These samples of a tensor whose first axis is the batch, or 1."""
    return tensor if tensor is None or tensor.shape[0] == 1 else tensor.index_select(0, kept_K)
