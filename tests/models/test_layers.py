"""Truths about the parts of a block. B batch, N tokens, D width, h heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.attention import AttentionContext
from vitral.models.layers import Attention, Block, Linear, Mlp, PatchEmbed, add_branch, draw_kept, kept_count, take
from vitral.models.position import interpolate_positions


def filled(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module with every parameter drawn from N(0, 0.2)."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("patch", "size"), [(1, (3, 2)), (3, (9, 6)), (4, (8, 20))])
def test_patch_embedding_is_a_convolution(channels: int, patch: int, size: tuple[int, int]) -> None:
    embed = filled(PatchEmbed(channels, patch, 5), torch.float64)
    assert isinstance(embed, PatchEmbed)
    images = torch.rand(2, channels, *size, dtype=torch.float64)
    expected = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected)
    torch.testing.assert_close(embed(images.to(memory_format=torch.channels_last)), expected)


def by_hand(attention: Attention, x_BND: Tensor, bias_NN: Tensor) -> Tensor:
    """Eq. 5-8, one head at a time."""
    width = x_BND.shape[-1]
    size = width // attention.heads
    q, k, v = F.linear(x_BND, attention.qkv.weight, attention.qkv.bias).split(width, -1)
    out: list[Tensor] = []
    for start in range(0, width, size):
        one = slice(start, start + size)
        scores = torch.einsum("bqd,bkd->bqk", q[..., one], k[..., one]) / size**0.5 + bias_NN
        out.append(scores.softmax(-1) @ v[..., one])
    return F.linear(torch.cat(out, -1), attention.proj.weight, attention.proj.bias)


@pytest.mark.parametrize("captured", [None, {}])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("queries", [None, 2])
def test_attention_is_the_formula(
    captured: dict[str, Tensor] | None, causal: bool, biased: bool, queries: int | None
) -> None:
    attention = filled(Attention(12, 3), torch.float64)
    assert isinstance(attention, Attention)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    bias = torch.randn(5, 5, dtype=torch.float64) if biased else torch.zeros(5, 5, dtype=torch.float64)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else torch.zeros(5, 5, dtype=torch.bool)
    expected = by_hand(attention, x, bias.masked_fill(later, float("-inf")))
    given = bias[:queries] if biased else None
    kept = None if captured is None else dict(captured)
    torch.testing.assert_close(
        attention(x, AttentionContext(given, causal, queries=queries, captured=kept)), expected[:, :queries]
    )
    if kept is not None:
        assert set(kept) == {"attn.map", "attn.q", "attn.k"}
        torch.testing.assert_close(kept["attn.map"].sum(-1), torch.ones_like(kept["attn.map"][..., 0]))


def test_gradient_of_attention_reaches_the_map() -> None:
    attention = filled(Attention(8, 2))
    captured: dict[str, Tensor] = {}
    out = attention(torch.randn(2, 3, 8), AttentionContext(captured=captured))
    (gradient,) = torch.autograd.grad(out.square().sum(), captured["attn.map"])
    assert gradient.shape == (2, 2, 3, 3)
    assert gradient.abs().min() > 0


def test_dropout_stands_where_the_paper_has_it() -> None:
    """After proj, fc1 (with its GELU) and fc2; never after qkv, never on attention weights."""
    block = filled(Block(8, 2, 16, dropout=0.5))
    assert isinstance(block, Block)
    inputs: list[Tensor] = []
    for module in block.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    outputs: dict[str, Tensor] = {}
    for name, module in block.named_modules():
        if isinstance(module, Linear | nn.GELU):
            module.register_forward_hook(lambda _m, _args, out, name=name: outputs.update({name: out}))
    x = torch.randn(2, 3, 8)
    captured: dict[str, Tensor] = {}
    block.train()(x, AttentionContext(captured=captured))
    expected = [outputs["attn.proj"], outputs["mlp.act"], outputs["mlp.fc2"]]
    assert len(inputs) == 3
    assert all(torch.equal(got, want) for got, want in zip(inputs, expected, strict=True))
    torch.testing.assert_close(captured["attn.map"].sum(-1), torch.ones(2, 2, 3))
    assert torch.equal(block.eval()(x), block(x))
    with torch.no_grad():
        off = Block(8, 2, 16, dropout=0.0)
        off.load_state_dict(block.state_dict())
        assert torch.equal(off.train()(x), block(x))


@pytest.mark.parametrize(("gelu", "approximate"), [("exact", "none"), ("tanh", "tanh")])
def test_mlp_is_the_formula(gelu: str, approximate: str) -> None:
    mlp = filled(Mlp(6, 10, gelu=gelu))  # pyright: ignore[reportArgumentType]
    assert isinstance(mlp, Mlp)
    x = torch.randn(2, 3, 6)
    hidden = F.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias, approximate=approximate)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_block_is_pre_norm() -> None:
    block = filled(Block(8, 2, 16))
    assert isinstance(block, Block)
    x = torch.randn(2, 3, 8)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))
    torch.testing.assert_close(block(x, AttentionContext(queries=1)), block(x)[:, :1])


@pytest.mark.parametrize(
    ("batch", "rate", "kept"), [(8, 0.25, 6), (10, 0.1, 9), (3, 0.9, 1), (1, 0.5, 1), (4, 0.05, 4), (5, 0.0, 5)]
)
def test_drop_path_keeps_an_exact_number(batch: int, rate: float, kept: int) -> None:
    assert kept_count(batch, rate) == kept
    x = torch.zeros(batch, 2, 3)
    index = draw_kept(x, rate)
    out = add_branch(x, torch.ones_like(take(x, index)), index)
    assert take(x, index).shape[0] == kept
    assert int((out[:, 0, 0] != 0).sum()) == kept
    torch.testing.assert_close(out.mean(), torch.tensor(1.0))


def test_drop_path_is_unbiased() -> None:
    x, branch = torch.randn(6, 1, 2, dtype=torch.float64), torch.randn(6, 1, 2, dtype=torch.float64)
    total = torch.zeros_like(x)
    draws = 4000
    for _ in range(draws):
        index = draw_kept(x, 0.34)
        assert index is not None
        total += add_branch(x, take(branch, index), index)
    # A kept share of 4/6 scaled by 6/4 has standard deviation sqrt(0.5) times the branch.
    error = (total / draws - (x + branch)).abs() / branch.abs()
    assert error.max() < 5 * 0.5**0.5 / draws**0.5


def test_drop_path_in_a_block() -> None:
    block = filled(Block(8, 2, 16, drop_path=0.5))
    assert isinstance(block, Block)
    x = torch.randn(6, 3, 8)
    seen: list[int] = []
    for part in (block.attn, block.mlp):
        part.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[0]))
    block.eval()
    whole = block(x)
    torch.manual_seed(1)
    out = block.train()(x)
    assert seen == [6, 6, 3, 3]
    assert not torch.equal(out, whole)
    captured: dict[str, Tensor] = {}
    torch.manual_seed(1)
    torch.testing.assert_close(block(x, AttentionContext(captured=captured)), out)
    assert captured["attn.map"].shape[0] == captured["attn"].shape[0] == 6
    bias_B11N = torch.zeros(6, 1, 1, 3)
    torch.manual_seed(1)
    torch.testing.assert_close(block(x, AttentionContext(bias_B11N)), out)
    block.drop_path = 0.0
    torch.testing.assert_close(block(x), whole)


def test_positions_at_the_same_grid_are_the_same_tensor() -> None:
    table = torch.randn(1, 1 + 12, 4)
    assert interpolate_positions(table, 1, (3, 4), (3, 4)) is table


def test_positions_resample_places_only() -> None:
    table = torch.randn(1, 2 + 12, 4, requires_grad=True)
    other = interpolate_positions(table, 2, (3, 4), (5, 2))
    assert other.shape == (1, 2 + 10, 4)
    assert torch.equal(other[:, :2], table[:, :2])
    (gradient,) = torch.autograd.grad(other.sum(), table)
    assert gradient.ne(0).all()
    flat = interpolate_positions(torch.full((1, 12, 4), 0.7), 0, (3, 4), (7, 9))
    torch.testing.assert_close(flat, torch.full((1, 63, 4), 0.7))
    assert interpolate_positions(table.bfloat16(), 2, (3, 4), (6, 8)).dtype == torch.bfloat16


def test_positions_keep_rows_and_columns_apart() -> None:
    """A ramp along the columns stays one on a wider grid, equal in all rows (away from the edges)."""
    ramp = torch.arange(8.0).repeat(4).view(1, 32, 1)
    wide = interpolate_positions(ramp, 0, (4, 8), (4, 16)).view(4, 16)
    torch.testing.assert_close(wide, wide[:1].expand(4, 16))
    torch.testing.assert_close(wide[0, 4:12], (torch.arange(4.0, 12.0) + 0.5) / 2 - 0.5)


@pytest.mark.parametrize("queries", [None, 1])
def test_training_in_bfloat16_on_a_cpu_is_as_near_to_float32_as_the_fused_attention(
    queries: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradient, by two products and a softmax and by the fused kernel, beside float64."""
    exact = filled(Attention(64, 4), torch.float64)
    assert isinstance(exact, Attention)
    x = torch.randn(3, 37, 64, dtype=torch.float64)
    found: list[list[float]] = []
    for slow in (True, False):
        monkeypatch.setattr("vitral.models.attention._fused_is_slow", lambda q, slow=slow: slow and q.requires_grad)
        low = Attention(64, 4).bfloat16()
        low.load_state_dict(exact.state_dict())
        error: list[float] = []
        mine, theirs = (
            layer(x.to(p.dtype), AttentionContext(queries=queries))
            for layer in (low, exact)
            for p in [layer.proj.weight]
        )
        error.append(((mine.double() - theirs).norm() / theirs.norm()).item())
        grads = [torch.autograd.grad(out.square().sum(), layer.qkv.weight)[0].double()
                  for out, layer in ((mine, low), (theirs, exact))]  # fmt: skip
        error.append(((grads[0] - grads[1]).norm() / grads[1].norm()).item())
        found.append(error)
    for explicit, fused in zip(*found, strict=True):
        assert explicit < 0.03
        assert explicit < 2 * fused


def test_only_bfloat16_on_a_cpu_where_gradients_are_due_leaves_the_fused_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[torch.dtype] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *a, **k: (calls.append(q.dtype), fused(q, *a, **k))[1]
    )
    layer, x = Attention(16, 2), torch.randn(2, 5, 16)
    layer(x)
    with torch.no_grad():
        layer.bfloat16()(x.bfloat16())
    assert calls == [torch.float32, torch.bfloat16]
    layer(x.bfloat16())
    layer(x.bfloat16(), AttentionContext(bias=torch.zeros(5, 5, dtype=torch.bfloat16)))
    assert calls == [torch.float32, torch.bfloat16, torch.bfloat16], "a bias is the fused kernel's"
