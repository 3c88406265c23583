"""Images as rows of flattened patches, and back.

Shape letters: B batch, C channels, H W image height and width, h w rows and columns of patches, N = h w, P patch side,
X values of a patch.
"""

from __future__ import annotations

from torch import Tensor

Grid = tuple[int, int]


def patchify(images_BCHW: Tensor, size: int) -> Tensor:
    """Images as patches [B, N, X], row by row; within a patch by row, column, channel: not the order of a convolution's
    weight, but that of the published decoders."""
    rows, columns = images_BCHW.shape[2] // size, images_BCHW.shape[3] // size
    cells_BChPwP = images_BCHW.unflatten(3, (columns, size)).unflatten(2, (rows, size))
    return cells_BChPwP.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_BNX: Tensor, grid: Grid, channels: int) -> Tensor:
    """The images [B, C, H, W] of these patches."""
    size = round((patches_BNX.shape[-1] // channels) ** 0.5)
    cells_BhwPPC = patches_BNX.unflatten(2, (size, size, channels)).unflatten(1, grid)
    return cells_BhwPPC.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
