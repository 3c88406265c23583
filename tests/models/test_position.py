"""Positions against formulas written out. N patches, D width, h heads, d features of a head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.models.test_vit import images, tiny
from vitral.models.position import (
    interpolate_positions,
    offset_index,
    relative_scores,
    resize_offsets,
    resize_table,
    rope_table,
    rotate,
    rows_and_columns,
    sincos_table,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((5, 3), (2, 7)), ((14, 14), (24, 24)), ((3, 3), (3, 8))])
def test_google_zoom_is_scipys(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(1, old[0] * old[1], 6, dtype=torch.float64)
    grid = table[0].reshape(*old, 6).numpy()
    expected: Any = ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    found = resize_table(table, old, new, "google")
    np.testing.assert_allclose(found[0].reshape(*new, 6).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("how", ["bicubic_antialias", "bicubic", "google"])
def test_same_grid_is_the_same_tensor_and_a_plane_stays_a_plane(how: Any) -> None:
    table = torch.randn(2, 1 + 12, 5)
    assert interpolate_positions(table, 1, (3, 4), (3, 4), how) is table
    bigger = interpolate_positions(table, 1, (3, 4), (6, 8), how)
    assert torch.equal(bigger[:, :1], table[:, :1])
    constant = torch.ones(1, 12, 3)
    torch.testing.assert_close(resize_table(constant, (3, 4), (7, 5), how), torch.ones(1, 35, 3))


def test_the_three_ways_differ() -> None:
    table = torch.randn(1, 64, 4)
    down = [resize_table(table, (8, 8), (4, 4), how) for how in ("bicubic_antialias", "bicubic", "google")]
    assert not torch.allclose(down[0], down[1])
    assert not torch.allclose(down[1], down[2])


def test_rows_and_columns_by_hand() -> None:
    rows, columns = torch.randn(2, 3, 2), torch.randn(2, 5, 2)
    table = rows_and_columns(rows, columns, (3, 5))
    for place in range(15):
        expected = torch.cat([rows[:, place // 5], columns[:, place % 5]], -1)
        assert torch.equal(table[:, place], expected)


def test_sincos_by_hand() -> None:
    table = sincos_table((2, 3), (2, 3), 8)
    for place in range(6):
        row, column = divmod(place, 3)
        expected = [f(at / 10_000**k) for at in (column, row) for f in (math.sin, math.cos) for k in (0, 0.5)]
        np.testing.assert_allclose(table[0, place].numpy(), expected, atol=1e-6)
    # A grid twice as fine has its cells between the old ones: the mean place of a pair is the old place.
    fine = sincos_table((4, 6), (2, 3), 4)[0].reshape(4, 6, 4)
    np.testing.assert_allclose(fine[0, :2, 0].numpy(), np.sin([-0.25, 0.25]), atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_relative_scores_by_hand(keep: bool) -> None:
    B, h, N, d, prefix = 2, 3, 6, 4, 2
    q, offsets = torch.randn(B, h, prefix + N, d), torch.randn(2 * N - 1, h * d)
    places = torch.stack([torch.randperm(N)[:4] for _ in range(B)]) if keep else torch.arange(N).expand(B, N)
    index = offset_index(N, places if keep else None, q.device)
    count = places.shape[1]
    q = q[:, :, : prefix + count]
    found = relative_scores(q, offsets, index, prefix, prefix + count)
    assert found is not None
    assert not found[:, :, :prefix].any()
    assert not found[..., :prefix].any()
    for b in range(B):
        for head in range(h):
            for i in range(count):
                for j in range(count):
                    vector = offsets[places[b, i] - places[b, j] + N - 1].reshape(h, d)[head]
                    torch.testing.assert_close(found[b, head, prefix + i, prefix + j], q[b, head, prefix + i] @ vector)
    assert relative_scores(q[:, :, :prefix], offsets, index, prefix, prefix + count) is None


def test_relative_attention_depends_on_offsets_alone() -> None:
    """The scores between patches 1 and 3 use the same vector as those between 5 and 7."""
    index = offset_index(9, None, torch.device("cpu"))[0]
    assert (index.diagonal() == 8).all()
    assert index[1, 3] == index[5, 7] == 6
    assert index.min() == 0
    assert index.max() == 16


def test_offsets_resize_end_on_end() -> None:
    offsets = torch.randn(2, 7, 3)
    assert resize_offsets(offsets, 4) is offsets
    wider = resize_offsets(offsets, 7)
    assert wider.shape == (2, 13, 3)
    torch.testing.assert_close(wider[:, ::2], offsets)


def test_rotation_keeps_lengths_and_sees_only_differences() -> None:
    rope = rope_table((4, 5), 8, 100.0)
    q, k = torch.randn(1, 2, 23, 8, dtype=torch.float64), torch.randn(1, 2, 23, 8, dtype=torch.float64)
    turned_q, turned_k = rotate(q, rope, 3), rotate(k, rope, 3)
    assert torch.equal(turned_q[:, :, :3], q[:, :, :3])
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    # The same query at (0,0) and (1,2), the same key at (2,1) and (3,3): the same difference, so the same score.
    same_q, same_k = q[:, :, 3:4].expand(-1, -1, 23, -1), k[:, :, 3:4].expand(-1, -1, 23, -1)
    at = rotate(same_q, rope, 3) @ rotate(same_k, rope, 3).transpose(2, 3)
    torch.testing.assert_close(at[:, :, 3 + 0, 3 + 11], at[:, :, 3 + 7, 3 + 18], rtol=0, atol=1e-5)
    assert turned_k.isfinite().all()


@pytest.mark.parametrize("positions", ["learned", "learned_2d", "relative"])
def test_tables_of_a_layer_are_its_own(positions: str) -> None:
    """With tables of their own equal in every layer, the model equals the one that shares them."""
    shared = tiny(torch.float64, positions=positions, positions_at="layers_shared")
    own = tiny(torch.float64, positions=positions, positions_at="layers")
    state = dict(shared.state_dict())
    for name in [n for n in state if "embed" in n and not n.startswith("patch")]:
        state[name] = state[name].expand(2, -1, -1)
    own.load_state_dict(state)
    x = images(shared)
    torch.testing.assert_close(own(x), shared(x))
    moved = {name: value.clone() for name, value in own.state_dict().items()}
    for name in [n for n in moved if "embed" in n and not n.startswith("patch")]:
        moved[name][0] += 0.5 * torch.randn_like(moved[name][0])  # the last one's class token may see no places
    own.load_state_dict(moved)
    assert not torch.allclose(own(x), shared(x))
