"""BEiT's bias tables, its biases and its initial weights, against formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.helpers import create_vit
from tests.models.test_vit import images, tiny
from vitral.models.config import bias_table_size
from vitral.models.layers import Attention
from vitral.models.parameters import layer_of
from vitral.models.position import bias_entries, resize_bias_table
from vitral.models.registry import build_config
from vitral.models.vit import VisionTransformer
from vitral.weights.adapt import adapt


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (5, 2)])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_entries_by_hand(grid: tuple[int, int], prefix: int) -> None:
    entries, (rows, columns) = bias_entries(grid, prefix), grid
    last = (2 * rows - 1) * (2 * columns - 1)
    assert bias_table_size(grid, prefix) == last + (3 if prefix else 0)
    for query in range(prefix + rows * columns):
        for key in range(prefix + rows * columns):
            if query >= prefix and key >= prefix:
                (y, x), (other_y, other_x) = divmod(query - prefix, columns), divmod(key - prefix, columns)
                expected = (y - other_y + rows - 1) * (2 * columns - 1) + (x - other_x + columns - 1)
            else:
                expected = last + (0 if key >= prefix else 1 if query >= prefix else 2)
            assert entries[query, key] == expected


def test_a_table_of_another_grid() -> None:
    """The same grid is the same tensor, planes stay planes, offset 0 stays where it is, and so do the last three."""
    table = torch.randn(bias_table_size((3, 4), 1), 2, dtype=torch.float64)
    assert resize_bias_table(table, (3, 4), (3, 4)) is table
    bigger = resize_bias_table(table, (3, 4), (6, 5))
    assert bigger.shape == (bias_table_size((6, 5), 1), 2)
    assert torch.equal(bigger[-3:], table[-3:])
    torch.testing.assert_close(bigger[:-3].unflatten(0, (11, 9))[5, 4], table[:-3].unflatten(0, (5, 7))[2, 3])
    flat = torch.ones(bias_table_size((3, 4), 0), 2)
    torch.testing.assert_close(resize_bias_table(flat, (3, 4), (2, 7)), torch.ones(3 * 13, 2))


@pytest.mark.parametrize("shared", [False, True])
def test_scores_have_the_number_of_their_offset(shared: bool) -> None:
    """The map of every head is softmax(q k / sqrt(d) + table entry); captured or fused, of all patches or some."""
    at = "layers_shared" if shared else "layers"
    model = tiny(torch.float64, positions="relative_bias", positions_at=at, image_size=(6, 10), key_bias=False)
    names = [f"blocks.1.attn.{part}" for part in ("q", "k", "map")]
    x, keep = images(model), torch.stack([torch.randperm(15)[:6] for _ in range(3)])
    holder: Any = model.rel_pos_bias if shared else model.blocks[1].attn
    table = holder.relative_position_bias_table
    for keep_BK in (None, keep):
        out = model.encode(x, keep_BK, capture=names)
        q, k, found = (out.captured[name] for name in names)
        for row in range(3):
            places = torch.arange(15) if keep_BK is None else keep_BK[row]
            tokens = torch.cat([torch.zeros(1, dtype=torch.int64), places + 1])
            bias = table[bias_entries((3, 5), 1)[tokens][:, tokens]].permute(2, 0, 1)
            expected = (q[row] @ k[row].transpose(1, 2) / math.sqrt(4) + bias).softmax(-1)
            torch.testing.assert_close(found[row], expected)
        torch.testing.assert_close(out.patches_BND, model.encode(x, keep_BK).patches_BND)


def test_a_table_for_each_block_starts_as_the_shared_one() -> None:
    """The same function; and at another size too."""
    shared = tiny(torch.float64, positions="relative_bias", positions_at="layers_shared", pool="avg")
    for size in ((8, 8), (12, 6)):
        config = build_config({**shared.config.model_dump(), "positions_at": "layers", "image_size": size})
        state, notes = adapt(dict(shared.state_dict()), shared.config, config)
        own = tiny(torch.float64, positions="relative_bias", pool="avg", image_size=size)
        own.load_state_dict(state)
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(own.encode(x).patches_BND, shared.encode(x).patches_BND)
        assert "shared" in notes[0]


def test_no_output_depends_on_biases_of_keys() -> None:
    """So a model without them computes what one with them does."""
    with_keys, without = tiny(torch.float64), tiny(torch.float64, key_bias=False)
    state = {name: tensor for name, tensor in with_keys.state_dict().items() if not name.endswith("qkv.bias")}
    for i in range(2):
        query, _, value = with_keys.state_dict()[f"blocks.{i}.attn.qkv.bias"].chunk(3)
        state |= {f"blocks.{i}.attn.q_bias": query, f"blocks.{i}.attn.v_bias": value}
    without.load_state_dict(state)
    x = images(with_keys)
    torch.testing.assert_close(without(x), with_keys(x))


def test_initial_weights_of_beit() -> None:
    torch.manual_seed(0)
    model = create_vit("beit_base_patch16_224", depth=3, image_size=32, num_classes=3)
    cut = 0.02 * 0.5397  # of a normal distribution, cut at one deviation
    assert model.cls_token is not None
    assert float(model.cls_token.detach().abs().max()) <= 0.02
    blocks: list[Any] = list(model.blocks)
    for number, block in enumerate(blocks, 1):
        attn, mlp = block.attn, block.mlp
        assert isinstance(attn, Attention)
        for weight, scale in (
            (attn.qkv.weight, 1.0), (mlp.fc1.weight, 1.0), (attn.proj.weight, 2 * number), (mlp.fc2.weight, 2 * number)
        ):  # fmt: skip
            assert isinstance(weight, torch.Tensor)
            assert float(weight.detach().std()) == pytest.approx(cut / scale**0.5, rel=0.02)
            assert float(weight.detach().abs().max()) <= 0.02 / scale**0.5 * 1.0001
        zeros = (attn.q_bias, attn.v_bias, attn.relative_position_bias_table, mlp.fc1.bias, attn.proj.bias)
        assert not any(isinstance(zero, torch.Tensor) and zero.any() for zero in zeros)
        assert attn.qkv.bias is None
        assert torch.equal(block.ls1.gamma, torch.full((768,), 0.1))


def test_published_sizes() -> None:
    """Parameters with 1,000 classes, head and tables included."""
    for name, expected in (
        ("beit_base_patch16_224", 86_530_984), ("beit_base_patch16_384", 86_744_104),
        ("beit_large_patch16_224", 304_430_568), ("beit_large_patch16_512", 305_674_728),
        ("beitv2_base_patch16_224", 86_530_984), ("beitv2_large_patch16_224", 304_430_568),
    ):  # fmt: skip
        with torch.device("meta"):
            model = create_vit(name)
        assert isinstance(model, VisionTransformer)
        assert sum(p.numel() for p in model.parameters()) == expected


def test_a_shared_table_is_in_the_last_layer_for_the_rates() -> None:
    """As in BEiT's code; one of a block is in that block."""
    assert layer_of("rel_pos_bias.relative_position_bias_table", 12) == 13
    assert layer_of("blocks.3.attn.relative_position_bias_table", 12) == 4
