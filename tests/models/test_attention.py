"""Attention with every part of its context, beside torch's own layers and by closed forms.

Shape letters: B batch, T tokens, Q queries, N keys, M tokens of the memory, D width, h heads, d features of a head.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitral.models.attention import AttentionContext, KVCache, attention
from vitral.models.decoder import SequenceBlock
from vitral.models.layers import Attention, AttentionPool, Block, CrossAttention
from vitral.models.position import AttentionPlaces, rope_table
from vitral.models.sequence_config import Seq2SeqConfig

INF = float("inf")


def decoder_block(memory_width: int) -> SequenceBlock:
    """A block of 12 features, 3 heads and GELU, norms first."""
    config = Seq2SeqConfig(
        vocabulary=5, source_vocabulary=5, width=12, heads=3, mlp_dim=20, activation="gelu", norm_eps=1e-5
    )
    return SequenceBlock(config, memory_width)


def filled(module: nn.Module, dtype: torch.dtype = torch.float64) -> Any:
    """The module with every parameter drawn from N(0, 0.3)."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.to(dtype).eval()


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def padding(lengths: list[int], count: int) -> Tensor:
    """True for the first tokens of each row."""
    return torch.arange(count)[None] < torch.tensor(lengths)[:, None]


def close(found: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@st.composite
def _cases(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.integers(1, 9))
    queries = draw(st.integers(1, keys))
    batch = draw(st.integers(1, 3))
    return {
        "shape": (batch, draw(st.integers(1, 3)), draw(st.integers(1, 5))),
        "queries": queries,
        "keys": keys,
        "lengths": draw(st.none() | st.lists(st.integers(1, keys), min_size=batch, max_size=batch)),
        "causal_from": draw(st.none() | st.just(keys - queries) | st.just(0)),
        "biased": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@given(_cases())
@settings(max_examples=80, deadline=None)
def test_attention_is_torchs_with_one_mask(case: dict[str, Any]) -> None:
    """Bias, padding and causal order together are their sum as -inf, fused and explicit, gradients too."""
    torch.manual_seed(case["seed"])
    (B, h, d), Q, N, causal_from = case["shape"], case["queries"], case["keys"], case["causal_from"]
    q, k, v = (double(B, h, count, d).requires_grad_() for count in (Q, N, N))
    bias = double(B, h, Q, N) if case["biased"] else None
    attend = None if case["lengths"] is None else padding(case["lengths"], N)
    mask = torch.zeros(B, h, Q, N, dtype=torch.float64) if bias is None else bias
    if attend is not None:
        mask = mask.masked_fill(~attend[:, None, None], -INF)
    if causal_from is not None:
        places = torch.arange(Q)[:, None] + causal_from
        mask = mask.masked_fill(torch.arange(N)[None] > places, -INF)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    grads = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for explicit in (False, True):
        found, rows = attention(q, k, v, bias, attend, causal_from, explicit=explicit)
        close(found, expected)
        for mine, theirs in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), grads, strict=True):
            close(mine, theirs)
        if explicit:
            assert rows is not None
            close(rows.sum(-1), torch.ones_like(rows[..., 0]))
            assert rows.masked_select(mask == -INF).eq(0).all()


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("causal_from", [None, 0])
@pytest.mark.parametrize("biased", [False, True])
def test_a_query_without_any_key_attends_to_nothing(explicit: bool, causal_from: int | None, biased: bool) -> None:
    q, k, v = (double(2, 2, 3, 4).requires_grad_() for _ in range(3))
    bias = double(2, 1, 3, 3) if biased else None
    attend = torch.tensor([[False, False, False], [False, True, True]])
    found, rows = attention(q, k, v, bias, attend, causal_from, explicit=explicit)
    assert found[0].eq(0).all()
    assert found[1, :, 0].eq(0).all() == (causal_from is not None)
    assert found[1, :, 1:].ne(0).all()
    assert rows is None or (rows[0].eq(0).all() and rows.isfinite().all())
    for grad in torch.autograd.grad(found.sum(), (q, k, v)):
        assert grad.isfinite().all()
        assert grad[0].eq(0).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_self_attention_is_torchs_layer(causal: bool, padded: bool, dtype: torch.dtype, atol: float) -> None:
    mine, theirs = filled(Attention(12, 3)), nn.MultiheadAttention(12, 3, batch_first=True).double().eval()
    theirs.load_state_dict({
        "in_proj_weight": mine.qkv.weight, "in_proj_bias": mine.qkv.bias,
        "out_proj.weight": mine.proj.weight, "out_proj.bias": mine.proj.bias,
    })  # fmt: skip
    x, attend = double(3, 7, 12), padding([7, 4, 1], 7)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    kept = torch.ones(3, 7, dtype=torch.bool) if not padded else attend
    expected, maps = theirs(
        x, x, x, key_padding_mask=~kept, attn_mask=later if causal else None, average_attn_weights=False
    )
    mine.to(dtype)
    given_N = attend if padded else None
    close(mine(x.to(dtype), AttentionContext(causal=causal, attend_BN=given_N)).double(), expected, atol)
    captured: dict[str, Tensor] = {}
    explicit = mine(x.to(dtype), AttentionContext(causal=causal, attend_BN=given_N, captured=captured))
    close(explicit.double(), expected, atol)
    close(captured["attn.map"].double(), maps, atol)


def test_cross_attention_is_torchs_layer_of_another_length_and_width() -> None:
    mine = filled(CrossAttention(12, 3, 8))
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, kdim=8, vdim=8).double().eval()
    k, v = mine.kv.weight.chunk(2)
    theirs.load_state_dict({
        "q_proj_weight": mine.q.weight, "k_proj_weight": k, "v_proj_weight": v,
        "in_proj_bias": torch.cat([mine.q.bias, mine.kv.bias]),
        "out_proj.weight": mine.proj.weight, "out_proj.bias": mine.proj.bias,
    })  # fmt: skip
    x, memory, attend = double(3, 5, 12).requires_grad_(), double(3, 9, 8).requires_grad_(), padding([9, 2, 6], 9)
    for kept in (None, attend):
        context = AttentionContext(memory_BMD=memory, attend_BM=kept)
        found, captured = mine(x, context), cast("dict[str, Tensor]", {})
        expected, maps = theirs(
            x, memory, memory, key_padding_mask=None if kept is None else ~kept, average_attn_weights=False
        )
        close(found, expected)
        close(mine(x, context._replace(captured=captured)), expected)
        close(captured["cross_attn.map"], maps)
        grads = zip(
            *(torch.autograd.grad(out.square().sum(), (x, memory)) for out in (found, expected)), strict=True
        )  # fmt: skip
        for own, other in grads:
            close(own, other)


def test_block_with_a_memory_is_torchs_decoder_layer() -> None:
    mine = filled(decoder_block(12))
    theirs = nn.TransformerDecoderLayer(12, 3, 20, 0.0, F.gelu, 1e-5, batch_first=True, norm_first=True)
    theirs.double().eval()
    cross = mine.cross_attn
    weights = {
        "self_attn.in_proj_weight": mine.attn.qkv.weight, "self_attn.in_proj_bias": mine.attn.qkv.bias,
        "multihead_attn.in_proj_weight": torch.cat([cross.q.weight, cross.kv.weight]),
        "multihead_attn.in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
    }  # fmt: skip
    names = {"self_attn.out_proj": mine.attn.proj, "multihead_attn.out_proj": cross.proj, "linear1": mine.mlp.fc1,
             "linear2": mine.mlp.fc2, "norm1": mine.norm1, "norm2": mine.norm_cross, "norm3": mine.norm2}  # fmt: skip
    for name, module in names.items():
        weights |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    theirs.load_state_dict(weights)
    x, memory = double(2, 5, 12), double(2, 7, 12)
    kept, seen = padding([5, 3], 5), padding([4, 7], 7)
    expected = theirs(
        x, memory, tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1), tgt_key_padding_mask=~kept,
        memory_key_padding_mask=~seen,
    )  # fmt: skip
    context = AttentionContext(causal=True, attend_BN=kept, memory_BMD=memory, attend_BM=seen)
    close(mine(x, context), expected)
    captured: dict[str, Tensor] = {}
    close(mine(x, context._replace(captured=captured)), expected)
    names = [f"{layer}.{part}" for layer in ("attn", "cross_attn") for part in ("q", "k", "map")]
    assert captured.keys() == {*names}


@pytest.mark.parametrize("chunks", [[1] * 7, [7], [3, 1, 3], [2, 5], [6, 1]])
def test_decoding_with_a_cache_is_the_whole_causal_pass(chunks: list[int]) -> None:
    blocks = [filled(decoder_block(8)) for _ in range(2)]
    x, memory = double(2, 7, 12), double(2, 5, 8)
    attend, seen = padding([7, 7], 7), padding([5, 3], 5)
    attend[1, :2] = False  # padded on the left, as prompts of unequal lengths are
    expected = x
    for block in blocks:
        expected = block(expected, AttentionContext(causal=True, attend_BN=attend, memory_BMD=memory, attend_BM=seen))
    own = [KVCache(2, 3, 4, 9, torch.float64) for _ in blocks]
    parts: list[Tensor] = []
    with torch.no_grad():
        for start, stop in itertools.pairwise(itertools.accumulate(chunks, initial=0)):
            part = x[:, start:stop]
            for block, cache in zip(blocks, own, strict=True):
                context = AttentionContext(
                    causal=True, attend_BN=attend[:, :stop], cache=cache, attend_BM=seen,
                    memory_kv=block.cross_attn.keys_values(memory),
                )  # fmt: skip
                part = block(part, context)
            parts.append(part)
    close(torch.cat(parts, dim=1), expected)
    assert [cache.length for cache in own] == [7, 7]


def test_decoding_turns_the_new_tokens_by_their_own_places() -> None:
    layer, x = filled(Attention(16, 2)), double(1, 5, 16)
    rope = rope_table((1, 5), 8, 100.0).double()
    expected = layer(x, AttentionContext(causal=True, places=AttentionPlaces(0, rope)))
    cache = KVCache(1, 2, 8, 5, torch.float64)
    with torch.no_grad():
        parts = [
            layer(x[:, i : i + 1], AttentionContext(causal=True, places=AttentionPlaces(0, rope[:, :, i : i + 1]),
                                                    cache=cache))
            for i in range(5)
        ]  # fmt: skip
    close(torch.cat(parts, dim=1), expected)


def test_a_cache_takes_no_gradient_and_no_more_than_it_has_room_for() -> None:
    cache = KVCache(1, 1, 2, 3)
    with pytest.raises(AssertionError, match="no gradient"):
        cache.append(torch.ones(1, 1, 1, 2, requires_grad=True), torch.ones(1, 1, 1, 2))
    cache.append(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    with pytest.raises(AssertionError):
        cache.append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))


@pytest.mark.parametrize("causal", [False, True])
def test_padded_sequences_are_the_shorter_ones_alone(causal: bool) -> None:
    block = filled(decoder_block(8))
    x, memory, lengths, sizes = double(3, 6, 12), double(3, 5, 8), [6, 1, 3], [2, 5, 4]
    out = block(x, AttentionContext(causal=causal, attend_BN=padding(lengths, 6), memory_BMD=memory,
                                    attend_BM=padding(sizes, 5)))  # fmt: skip
    for i, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        alone = block(x[i : i + 1, :length], AttentionContext(causal=causal, memory_BMD=memory[i : i + 1, :size]))
        close(out[i : i + 1, :length], alone)


def test_pooling_attends_to_what_is_there() -> None:
    pool, x = filled(AttentionPool(12, 3, 16)), double(2, 6, 12)
    found = pool(x, AttentionContext(attend_BN=padding([6, 2], 6)))
    close(found[1:], pool(x[1:, :2]))
    close(found[:1], pool(x[:1]))


def test_drop_path_takes_the_same_samples_of_every_part() -> None:
    """Each branch runs for the kept samples alone; what is captured is of all of them, and the result the same."""
    block, x = filled(Block(12, 3, 20, drop_path=0.5)).train(), double(6, 4, 12)
    context = AttentionContext(double(6, 1, 4, 4), causal=True, attend_BN=padding([4, 3, 2, 4, 1, 2], 4))
    torch.manual_seed(1)
    found = block(x, context)
    captured: dict[str, Tensor] = {}
    torch.manual_seed(1)
    close(block(x, context._replace(captured=captured)), found)
    assert len(captured["attn.map"]) == 6


def test_rows_that_share_a_memory_are_further_queries_to_it() -> None:
    layer, x, memory, seen = filled(CrossAttention(12, 3, 8)), double(6, 2, 12), double(2, 5, 8), padding([5, 3], 5)
    copied = AttentionContext(memory_BMD=memory.repeat_interleave(3, 0), attend_BM=seen.repeat_interleave(3, 0))
    shared = AttentionContext(memory_kv=layer.keys_values(memory), attend_BM=seen)
    close(layer(x, shared), layer(x, copied))


def test_rows_of_a_cache_in_another_order() -> None:
    cache, k, v = KVCache(4, 1, 2, 5, torch.float64), double(4, 1, 3, 2), double(4, 1, 3, 2)
    cache.append(k, v)
    for index in ([2, 2, 0, 3], [3, 0]):  # the second time two rows stay
        k, v = k[index], v[index]
        cache.reorder(torch.tensor(index))
        for found, expected in zip(cache.read(), (k, v), strict=True):
            close(found, expected)
    more = double(2, 1, 1, 2)
    close(cache.append(more, more)[0], torch.cat([k, more], 2))


def _contexts() -> dict[str, AttentionContext]:
    memory, attend, seen = torch.randn(2, 5, 8), padding([6, 3], 6), padding([5, 2], 5)
    decoder = AttentionContext(causal=True, attend_BN=attend, memory_BMD=memory, attend_BM=seen)
    return {
        "plain": AttentionContext(memory_BMD=memory),
        "causal": AttentionContext(causal=True, memory_BMD=memory),
        "bias": AttentionContext(torch.randn(1, 3, 6, 6), memory_BMD=memory),
        "decoder": decoder,
        "queries": decoder._replace(queries=2),
        "captured": decoder._replace(captured={}),
        "cache": AttentionContext(
            causal=True, cache=KVCache(2, 3, 4, 12), memory_kv=(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4))
        ),
    }


@pytest.mark.parametrize("name", list(_contexts()))
def test_blocks_compile_to_one_graph_with_every_context(name: str) -> None:
    torch.compiler.reset()
    is_block = name in ("bias", "queries")  # of a Vision Transformer
    block = filled(Block(12, 3, 20) if is_block else decoder_block(8), torch.float32)
    compiled: Any = torch.compile(block, fullgraph=True, backend="aot_eager")
    contexts = [_contexts()[name] for _ in range(2)]
    shared = {"memory_BMD": contexts[0].memory_BMD, "memory_kv": contexts[0].memory_kv, "bias": contexts[0].bias}
    contexts = [context._replace(**shared) for context in contexts]
    with torch.set_grad_enabled(name != "cache"):
        for x in (torch.randn(2, 6, 12), torch.randn(2, 6, 12)):  # the second time after what the cache keeps
            expected, found = block(x, contexts[0]), compiled(x, contexts[1])
            close(found, expected, 1e-5)
    if name == "captured":
        mine, theirs = contexts[1].captured, contexts[0].captured
        assert mine is not None
        assert theirs is not None
        close(mine["cross_attn.map"], theirs["cross_attn.map"], 1e-5)
    torch.compiler.reset()
