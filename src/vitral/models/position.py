"""Position embeddings: learned tables on any grid, sine and cosine, relative offsets, rotary.

Shape letters: N patches, D width, L tables (one, or one a block), T tokens, P prefix tokens among them, K kept patches,
O = 2 N - 1 offsets, or entries of a bias table, h heads, Q queries, d features of a head, 2 the cosine and the sine.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Resize = Literal["bicubic_antialias", "bicubic", "google"]
Grid = tuple[int, int]


class AttentionPlaces(NamedTuple):
    """What positions do inside the attention. The first `prefix` tokens are nowhere and are left as they are.

    rope_2BNd: cosine and sine of the angles by which queries and keys are turned. offsets_OD, index_BNN: the vector of
    each offset, and which offset the pair (query, key) has. entry_BTT: which entry of a bias table the pair of tokens
    has; shared_Oh: that table, or None where each layer has its own, for the first of `grids`, to be resized to the
    second. Batch axes may be 1.
    """

    prefix: int
    rope_2BNd: Tensor | None = None
    offsets_OD: Tensor | None = None
    index_BNN: Tensor | None = None
    entry_BTT: Tensor | None = None
    shared_Oh: Tensor | None = None
    grids: tuple[Grid, Grid] = ((1, 1), (1, 1))

    def take(self, kept_K: Tensor) -> AttentionPlaces:
        """The places of these samples of the batch."""
        rope = self.rope_2BNd
        return self._replace(
            rope_2BNd=rope if rope is None or rope.shape[1] == 1 else rope.index_select(1, kept_K),
            index_BNN=_samples(self.index_BNN, kept_K), entry_BTT=_samples(self.entry_BTT, kept_K),
        )  # fmt: skip

    def bias(self, own_Oh: Tensor | None, queries: int) -> Tensor:
        """What the bias table adds to scores of the first so many tokens, [1 or B, h, Q, T]; own_Oh: the layer's."""
        table_Oh = self.shared_Oh if own_Oh is None else own_Oh
        assert self.entry_BTT is not None
        assert table_Oh is not None
        return F.embedding(self.entry_BTT[:, :queries], resize_bias_table(table_Oh, *self.grids)).permute(0, 3, 1, 2)


def resize_table(table_LND: Tensor, old: Grid, new: Grid, how: Resize = "bicubic_antialias") -> Tensor:
    """Vectors of the cells of `old` (rows, columns) for those of `new`; differentiable, in float32 or better.

    The "2D interpolation" of arXiv 2010.11929, section 3.2. "google" is what the paper's code does: bilinear, corners
    on corners (scipy.ndimage.zoom of order 1). At the same grid the very same tensor comes back.
    """
    assert table_LND.shape[1] == old[0] * old[1], (table_LND.shape, old)
    if old == new:
        return table_LND
    wide = torch.promote_types(table_LND.dtype, torch.float32)
    table_LDhw = table_LND.to(wide).unflatten(1, old).permute(0, 3, 1, 2)
    if how == "google":
        table_LDhw = F.interpolate(table_LDhw, size=new, mode="bilinear", align_corners=True)
    else:
        antialias = how == "bicubic_antialias"
        table_LDhw = F.interpolate(table_LDhw, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return table_LDhw.flatten(2).transpose(1, 2).to(table_LND.dtype)


def interpolate_positions(
    pos_LND: Tensor, prefix_tokens: int, old_grid: Grid, new_grid: Grid, how: Resize = "bicubic_antialias"
) -> Tensor:
    """`resize_table` of all rows but the first `prefix_tokens`, which belong to no place and are kept."""
    if old_grid == new_grid:
        return pos_LND
    patches_LND = resize_table(pos_LND[:, prefix_tokens:], old_grid, new_grid, how)
    return torch.cat([pos_LND[:, :prefix_tokens], patches_LND], dim=1)


def rows_and_columns(rows_LRD: Tensor, columns_LCD: Tensor, grid: Grid, how: Resize = "bicubic_antialias") -> Tensor:
    """[L, N, D] from half a vector for each row and half for each column (arXiv 2010.11929, D.4, "2-dimensional").

    On another grid than R x C, each table is resized along its own axis.
    """
    rows_LRD = resize_table(rows_LRD, (rows_LRD.shape[1], 1), (grid[0], 1), how)
    columns_LCD = resize_table(columns_LCD, (columns_LCD.shape[1], 1), (grid[1], 1), how)
    half = rows_LRD.unsqueeze(2).expand(-1, -1, grid[1], -1), columns_LCD.unsqueeze(1).expand(-1, grid[0], -1, -1)
    return torch.cat(half, dim=-1).flatten(1, 2)


def sincos_table(grid: Grid, own: Grid, width: int, device: torch.device | None = None) -> Tensor:
    """[1, N, D] float32: sine and cosine of the column, then of the row, at frequencies 10,000^(-i/F), i from 0 to F-1.

    The table of arXiv 1706.03762, section 3.5, for each axis (MoCo v3, MAE). On another grid than the model's own the
    cells lie between those of the own one, so that the whole picture spans the same positions.
    """
    count = width // 4
    frequency_F = 10_000.0 ** -(torch.arange(count, dtype=torch.float64, device=device) / count)
    axes: list[Tensor] = []
    for cells, own_cells in zip(grid, own, strict=True):
        place = (torch.arange(cells, dtype=torch.float64, device=device) + 0.5) * (own_cells / cells) - 0.5
        angle = place[:, None] * frequency_F
        axes.append(torch.cat([angle.sin(), angle.cos()], dim=-1))
    columns = axes[1].unsqueeze(0).expand(grid[0], -1, -1)
    rows = axes[0].unsqueeze(1).expand(-1, grid[1], -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, -1, width).float()


def sinusoidal_table(length: int, width: int, halves: bool = False, device: torch.device | None = None) -> Tensor:
    """[length, D] float64: PE(p, 2i) = sin(p / 10,000^(2i/D)), PE(p, 2i+1) = cos of the same (arXiv 1706.03762, section
    3.5). halves: all sines before all cosines, as in tensor2tensor and Marian."""
    place = torch.arange(length, dtype=torch.float64, device=device)
    even = torch.arange(0, width, 2, dtype=torch.float64, device=device)
    angle = place[:, None] * 10_000.0 ** -(even / width)
    parts = angle.sin(), angle.cos()
    return torch.cat(parts, dim=-1) if halves else torch.stack(parts, dim=-1).flatten(1)


def rope_table(grid: Grid, features: int, theta: float, device: torch.device | None = None) -> Tensor:
    """[2, 1, N, d] float32, cosine and sine of the angles of `rotate`."""
    return turned(rope_angles(grid, features, theta, device)).float()


def turned(angles_BNd: Tensor) -> Tensor:
    """Cosine and sine of angles, [2, B, N, d]."""
    return torch.stack([angles_BNd.cos(), angles_BNd.sin()])


def rope_angles(grid: Grid, features: int, theta: float, device: torch.device | None = None) -> Tensor:
    """[1, N, d] float64, the angles of `rotate`: linear in the place, so that those of a mean place are their mean.

    Axial: a quarter of a head's features pairs turns with the row, a quarter with the column; places run from -1 to 1
    over the picture, whatever its grid, and frequencies fall from 2 pi to 2 pi / theta (DINOv3, arXiv 2508.10104).
    """
    count = features // 4
    frequency_F = 2 * math.pi * theta ** -(torch.arange(count, dtype=torch.float64, device=device) / count)
    places = [(torch.arange(cells, dtype=torch.float64, device=device) + 0.5) * 2 / cells - 1 for cells in grid]
    row_hw, column_hw = torch.meshgrid(*places, indexing="ij")
    angles_Nf = torch.cat([place_hw.reshape(-1, 1) * frequency_F for place_hw in (row_hw, column_hw)], dim=-1)
    return torch.cat([angles_Nf, angles_Nf], dim=-1).unsqueeze(0)


def rotate(x_BhTd: Tensor, rope_2BNd: Tensor, prefix: int) -> Tensor:
    """Turn the features (i, i + d/2) of every token but the first `prefix` by its angles (RoPE, arXiv 2104.09864)."""
    cos_B1Nd, sin_B1Nd = rope_2BNd.to(x_BhTd.dtype).unsqueeze(2).unbind(0)
    x_BhNd = x_BhTd[:, :, prefix:]
    left, right = x_BhNd.chunk(2, dim=-1)
    turned = x_BhNd * cos_B1Nd + torch.cat([-right, left], dim=-1) * sin_B1Nd
    return torch.cat([x_BhTd[:, :, :prefix], turned], dim=2) if prefix else turned


def offset_index(count: int, keep_BK: Tensor | None, device: torch.device) -> Tensor:
    """[1 or B, N, N] of which offset, place of the query less that of the key, each pair has: 0 to 2 N - 2."""
    place_BN = torch.arange(count, device=device)[None] if keep_BK is None else keep_BK
    return place_BN[:, :, None] - place_BN[:, None, :] + (count - 1)


def resize_offsets(offsets_LOD: Tensor, count: int) -> Tensor:
    """Vectors of 2 `count` - 1 offsets by linear interpolation, end on end; the same tensor if there are that many.

    Offsets are counted in raster order, along one dimension, so a row's offset moves only nearly to where it belongs.
    """
    if offsets_LOD.shape[1] == 2 * count - 1:
        return offsets_LOD
    wide = offsets_LOD.to(torch.promote_types(offsets_LOD.dtype, torch.float32)).transpose(1, 2)
    resized = F.interpolate(wide, size=2 * count - 1, mode="linear", align_corners=True)
    return resized.transpose(1, 2).to(offsets_LOD.dtype)


def relative_scores(q_BhQd: Tensor, offsets_OD: Tensor, index_BNN: Tensor, prefix: int, keys: int) -> Tensor | None:
    """What the offsets add to the scores, [B, h, Q, T]: query times offset vector (arXiv 2010.11929, D.4, "relative").

    `q_BhQd` holds the first Q of T = `keys` tokens, already scaled by d^-1/2. Scores from and to prefix tokens stay
    what they are; None where there are only such queries.
    """
    q_BhMd = q_BhQd[:, :, prefix:]
    B, h, M, d = q_BhMd.shape
    if M == 0:
        return None
    offsets_hdO = offsets_OD.unflatten(-1, (h, d)).permute(1, 2, 0)
    index_BhMN = index_BNN[:, None, :M].expand(B, h, -1, -1)
    scores_BhMN = (q_BhMd @ offsets_hdO).gather(-1, index_BhMN)
    return F.pad(scores_BhMN, (prefix, 0, prefix, 0))


def bias_entries(grid: Grid, prefix: int, device: torch.device | None = None) -> Tensor:
    """Which entry of a bias table each pair of tokens has, int64 [T, T], T = `prefix` + rows * columns.

    Patches: (row of the query less that of the key + rows - 1) (2 columns - 1) + the same of the columns. The last
    three entries: from a prefix token to a patch, back, and between prefix tokens (BEiT, arXiv 2106.08254).
    """
    (rows, columns), last = grid, (2 * grid[0] - 1) * (2 * grid[1] - 1)
    row_N = torch.arange(rows, device=device).repeat_interleave(columns)
    column_N = torch.arange(columns, device=device).repeat(rows)
    down_NN = row_N[:, None] - row_N + (rows - 1)
    across_NN = column_N[:, None] - column_N + (columns - 1)
    entry_TT = F.pad(down_NN * (2 * columns - 1) + across_NN, (prefix, 0, prefix, 0), value=last + 2)
    entry_TT[:prefix, prefix:], entry_TT[prefix:, :prefix] = last, last + 1
    return entry_TT


def resize_bias_table(table_Oh: Tensor, old: Grid, new: Grid) -> Tensor:
    """The bias table of another grid: its offsets bilinear, as transformers' BEiT; the others as they are. The same
    tensor for the same grid."""
    if old == new:
        return table_Oh
    sides, wanted = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (old, new))
    count = sides[0] * sides[1]
    offsets_1hYX = table_Oh[:count].to(torch.promote_types(table_Oh.dtype, torch.float32)).T.unflatten(1, sides)[None]
    resized_1hYX = F.interpolate(offsets_1hYX, size=wanted, mode="bilinear", align_corners=False)
    return torch.cat([resized_1hYX[0].flatten(1).T.to(table_Oh.dtype), table_Oh[count:]])


def _samples(index: Tensor | None, kept_K: Tensor) -> Tensor | None:
    return index if index is None or index.shape[0] == 1 else index.index_select(0, kept_K)
