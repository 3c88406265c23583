"""Truths about merging tokens. B batch, N patches, M patch tokens left, P prefix tokens, T tokens, D width."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.test_vit import images, tiny
from vitral.compression.tome import ToMe, match, merge
from vitral.errors import UserError
from vitral.models.position import rope_angles
from vitral.models.token_reduction import group_sizes
from vitral.models.vit import VisionTransformer

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"pool": "avg"},
    {"pool": "avg", "class_token": False, "fc_norm": False},
    {"pool": "cls_avg", "registers": 2, "image_size": (6, 10)},
    {"pool": "map", "class_token": False, "image_size": (6, 10)},
    {"distill_token": True, "registers": 1},
    {"mlp": "swiglu", "qk_norm": True, "layer_scale": 0.1, "pool": "avg"},
    {"positions": "learned", "positions_at": "layers", "registers": 1, "pool": "avg"},
    {"positions": "learned_2d", "positions_at": "layers", "pool": "avg"},
    {"positions": "sincos", "positions_at": "layers_shared", "pool": "avg"},
    {"positions": "rope", "registers": 2, "image_size": (6, 10), "pool": "avg"},
    {"positions": "none", "pool": "avg"},
)


def deep(dtype: torch.dtype = torch.float32, **options: Any) -> VisionTransformer:
    return tiny(dtype, **{"depth": 4, **options})


@pytest.mark.parametrize("options", VARIANTS)
def test_nothing_merged_is_the_same_bit_for_bit(options: dict[str, Any]) -> None:
    model = deep(**options)
    x = images(model)
    logits, before = model(x), model.encode(x)
    for r in (0, [0, 0, 0, 0]):
        model.reduce = ToMe(r)
        assert torch.equal(model(x), logits)
        after = model.encode(x)
        assert torch.equal(after.patches_BND, before.patches_BND)
        assert after.groups_BN is None


@pytest.mark.parametrize("schedule", ["constant", "decreasing"])
@pytest.mark.parametrize("r", [1, 3, 5, 50])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (2, 2), (6, 6)])
def test_as_many_tokens_as_planned_are_left(r: int, schedule: Any, size: tuple[int, int]) -> None:
    model = deep(image_size=size, registers=2, pool="avg")
    model.reduce = ToMe(r, schedule)
    N = model.grid[0] * model.grid[1]
    counts = model.reduce.counts(N, 4)
    names = [f"blocks.{i}" for i in range(4)]
    out = model.encode(images(model), capture=names)
    assert [out.captured[name].shape[1] - 3 for name in names] == counts
    assert out.patches_BND.shape[1] == counts[-1] >= 1
    assert out.groups_BN is not None or counts[-1] == N
    if out.groups_BN is not None:
        sizes = group_sizes(out.groups_BN, counts[-1])
        assert (sizes.sum(1) == N).all()
        assert (sizes >= 1).all()


def test_schedules_merge_equally_many() -> None:
    for depth in (1, 2, 3, 12, 24):
        for r in (1, 2, 7, 13):
            counts = ToMe(r, "decreasing").counts(10_000, depth)
            steps = [a - b for a, b in zip([10_000, *counts[:-1]], counts, strict=True)]
            assert sum(steps) == r * depth
            assert all(after <= before + 1 for before, after in itertools.pairwise(steps))  # rounded
            assert depth == 1 or (steps[0] in (2 * r, 2 * r - 1) and steps[-1] in (0, 1))
    assert ToMe([3, 0, 60, 1]).counts(16, 4) == [13, 13, 7, 6]
    with pytest.raises(UserError, match=r"(?s)tome\.r.*got: *2.*expected: *4"):
        ToMe([3, 1]).counts(16, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "count", "prefix"), [(16, 9, 1), (15, 8, 0), (15, 14, 3), (7, 4, 2), (2, 1, 0)])
def test_a_merge_conserves_the_weighted_sum(N: int, count: int, prefix: int, dtype: torch.dtype) -> None:
    torch.manual_seed(N)
    k, x = torch.randn(3, 2, N, 4, dtype=dtype), torch.randn(3, prefix + N, 5, dtype=dtype)
    sizes = torch.randint(1, 9, (3, N)).float()
    target, kept, sources = match(k, count)
    out = merge(x, sizes, target, kept, sources, prefix)
    merged = torch.zeros(3, count).scatter_add(1, target, sizes)
    assert torch.equal(out[:, :prefix], x[:, :prefix])
    assert (merged.sum(1) == sizes.sum(1)).all()
    before = (sizes.unsqueeze(-1) * x[:, prefix:]).sum(1)
    assert torch.allclose(
        (merged.unsqueeze(-1) * out[:, prefix:]).sum(1), before, atol=1e-4 if dtype == torch.float32 else 1e-6
    )
    assert torch.equal(kept, kept.sort(1).values)


def slow_match(k_hNd: Tensor, count: int) -> list[set[int]]:
    """The paper's five steps, a token at a time, as groups of tokens."""
    k = F.normalize(k_hNd.double().mean(0), dim=-1)
    N = len(k)
    edges: list[tuple[float, int, int]] = []
    for a in range(0, N, 2):
        scores = [(float(k[a] @ k[b]), b) for b in range(1, N, 2)]
        best = max(scores)
        edges.append((best[0], a, best[1]))
    groups = {i: {i} for i in range(N)}
    for _, a, b in sorted(edges, reverse=True)[: N - count]:
        groups[b] |= groups.pop(a)
    return sorted(groups.values(), key=min)


@pytest.mark.parametrize(("N", "count"), [(16, 8), (16, 15), (15, 8), (21, 15), (3, 2)])
def test_the_same_tokens_are_merged_as_by_the_paper(N: int, count: int) -> None:
    torch.manual_seed(count)
    k, x = torch.randn(2, 3, N, 4), torch.randn(2, N, 6)
    sizes = torch.randint(1, 5, (2, N)).float()
    target, kept, sources = match(k, count)
    out = merge(x, sizes, target, kept, sources, 0)
    for i in range(2):
        mine = sorted((set((target[i] == m).nonzero().flatten().tolist()) for m in range(count)), key=min)
        assert mine == slow_match(k[i], count)
        for m in range(count):
            own = (target[i] == m).nonzero().flatten()
            expected = (sizes[i, own, None] * x[i, own]).sum(0) / sizes[i, own].sum()
            assert torch.allclose(out[i, m], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"pool": "avg"}, {}, {"pool": "map", "class_token": False}, {"registers": 2}])
def test_equal_tokens_merge_without_a_trace(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Every patch stands beside its twin: with attention by size their merger changes nothing."""
    model = deep(dtype, positions="none", image_size=(4, 16), **options)
    half = torch.randn(3, 8, 12, dtype=dtype)
    twins, grid = half.repeat_interleave(2, dim=1), (2, 8)
    before = model.encode_tokens(twins, grid)
    after = model.encode_tokens(twins, grid, reduce=ToMe([8, 0, 0, 0]))
    assert after.groups_BN is not None
    assert torch.equal(after.groups_BN, torch.arange(8).repeat_interleave(2).expand(3, -1))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6  # sizes are float32
    assert torch.allclose(after.patches_BND, before.patches_BND[:, ::2], atol=tolerance)
    assert torch.allclose(model.pool(after), model.pool(before), atol=tolerance)


def test_attention_counts_a_token_as_often_as_its_size() -> None:
    """With one further attention only: against an explicit float64 computation over all tokens."""
    model = deep(torch.float64, positions="none", pool="avg", depth=2)
    patches = torch.randn(2, 16, 12, dtype=torch.float64)
    out = model.encode_tokens(patches, (4, 4), reduce=ToMe([5, 0]), capture=["blocks.0", "blocks.1.attn.map"])
    assert out.groups_BN is not None
    weights = torch.cat([torch.ones(2, 1), group_sizes(out.groups_BN, 11)], dim=1).double()
    block: Any = model.blocks[1]
    x = block.norm1(out.captured["blocks.0"])
    q, k, _ = block.attn.qkv(x).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(4)).exp() * weights[:, None, None]
    assert torch.allclose(out.captured["blocks.1.attn.map"], scores / scores.sum(-1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS)
def test_logits_are_those_of_the_encoded_tokens(options: dict[str, Any]) -> None:
    model = deep(**options)
    model.reduce = ToMe(2)
    x = images(model)
    out = model.encode(x)
    assert torch.allclose(model(x), model.classify(model.pool(out)), atol=1e-5)
    assert out.patches_BND.shape[1] == model.grid[0] * model.grid[1] - 8


@pytest.mark.parametrize("kept", [None, 11])
def test_places_are_means_over_the_patches(kept: int | None) -> None:
    """Queries of the next block are turned by the angles of the mean place, counted patch by patch."""
    model = deep(torch.float64, positions="rope", pool="avg", registers=1)
    patches = torch.randn(2, 16, 12, dtype=torch.float64)
    keep = None if kept is None else torch.stack([torch.randperm(16)[:kept] for _ in range(2)])
    names = ["blocks.0", "blocks.1.attn.q"]
    out = model.encode_tokens(patches, (4, 4), keep, names, reduce=ToMe([4, 0, 0, 0]))
    assert out.groups_BN is not None
    attention: Any = model.blocks[1].attn
    x = model.blocks[1].norm1(out.captured["blocks.0"])  # pyright: ignore[reportCallIssue]
    q = attention.qkv(x).unflatten(-1, (3, 3, -1))[:, :, 0].transpose(1, 2)
    angles = rope_angles((4, 4), 4, model.config.rope_theta)[0]
    for i in range(2):
        places = torch.arange(16) if keep is None else keep[i]
        for m in range(out.patches_BND.shape[1]):
            angle = angles[places[out.groups_BN[i] == m]].mean(0)
            left, right = q[i, :, 2 + m].chunk(2, dim=-1)
            turned = q[i, :, 2 + m] * angle.cos() + torch.cat([-right, left], dim=-1) * angle.sin()
            assert torch.allclose(out.captured["blocks.1.attn.q"][i, :, 2 + m], turned, atol=1e-5)


@pytest.mark.parametrize("options", [{"positions": "sincos"}, {"positions": "learned", "registers": 1}])
def test_positions_of_every_block_are_means_over_the_patches(options: dict[str, Any]) -> None:
    """Tokens before a block's norm are those of the block before, plus the mean of their patches' rows."""
    model = deep(torch.float64, positions_at="layers_shared", pool="avg", **options)
    P, seen = model.prefix_tokens, list[Tensor]()
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    patches = torch.randn(2, 16, 12, dtype=torch.float64)
    out = model.encode_tokens(patches, (4, 4), None, ["blocks.0"], reduce=ToMe([4, 0, 0, 0]))
    assert out.groups_BN is not None
    table = (model.pos_embed if options["positions"] == "learned" else model.fixed_places).double()[0, -16:]  # type: ignore[union-attr]
    added = seen[0] - out.captured["blocks.0"]
    for i in range(2):
        expected = torch.stack([table[out.groups_BN[i] == m].mean(0) for m in range(12)])
        assert torch.allclose(added[i, P:], expected, atol=1e-6)


def test_only_kept_patches_are_grouped() -> None:
    model = deep(pool="avg")
    keep = torch.stack([torch.randperm(16)[:9] for _ in range(3)])
    out = model.encode(images(model), keep)
    merged = model.encode_tokens(*model.embed(images(model)), keep, reduce=ToMe(1))
    assert out.patches_BND.shape[1] == 9
    assert merged.patches_BND.shape[1] == 5
    assert merged.groups_BN is not None
    assert merged.groups_BN.shape == (3, 9)


def test_gradients_flow_through_a_merge() -> None:
    model = deep(torch.float64, pool="avg").train()
    model.reduce = ToMe(3)
    model(images(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert torch.autograd.gradcheck(
        lambda x: merge(x, torch.tensor([[1.0, 2, 3, 1, 1]]), torch.tensor([[0, 0, 1, 2, 1]]),
                        torch.tensor([[1, 2, 3]]), torch.tensor([[0, 4]]), 1),
        torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True),
    )  # fmt: skip


def test_merging_with_drop_path_and_checkpointing() -> None:
    model = deep(pool="avg", drop_path=0.5).train()
    model.reduce, model.checkpointed = ToMe(2), 4
    model(images(model, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_bfloat16_and_autocast() -> None:
    model = deep(pool="avg", positions="rope")
    model.reduce = ToMe(2)
    expected = model(images(model))
    assert model.to(torch.bfloat16)(images(model)).dtype == torch.bfloat16
    model = deep(pool="avg")
    model.reduce = ToMe(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images(model)).shape == expected.shape


def test_what_cannot_be_merged_is_refused() -> None:
    for positions in ("relative", "relative_bias"):
        model = deep(positions=positions)
        model.reduce = ToMe(1)
        with pytest.raises(UserError, match=rf"(?s)offsets.*positions={positions}"):
            model(images(model))
    with pytest.raises(UserError, match="no patch may be masked"):
        deep().encode_tokens(torch.zeros(1, 16, 12), (4, 4), attend_BN=torch.ones(1, 16).bool(), reduce=ToMe(1))


def test_it_compiles_whole_and_once() -> None:
    """Twelve token counts are one graph, more than a function may be compiled anew for, and no other at later calls."""
    model = deep(depth=12, image_size=(16, 16), pool="avg")
    model.reduce = ToMe(4)
    x = images(model)
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph

    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for moved in (x, x + 0.1, x / 2):
            assert torch.allclose(compiled(moved), model(moved), atol=1e-4)
    assert len(graphs) == 1
    torch._dynamo.reset()
