"""Mosaic (Bochkovskiy et al. 2020, arXiv 2004.10934) and copy-paste of boxes (Kisantal et al. 2019, arXiv 1902.07296).

Partners are drawn within fixed groups of 8 neighbors of the global batch, as those of mixup, so that any number of
processes makes the same batches. Shape letters: B samples, C channels, H W height and width, M rows of boxes of an
image, R rows of a result, 4 a box (x0, y0, x1, y1), 33 a homogeneous 3 x 3 matrix on pixel centers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitral.data.affine import compose, matrices, warp
from vitral.data.boxes import MIN_SIDE, BoxTargets
from vitral.data.config import AugmentConfig
from vitral.data.counter_rng import Stream, uniform, uniform_runs, uniforms
from vitral.data.geometry import boxes_within
from vitral.data.mixing import GROUP
from vitral.structs import View

Targets = dict[str, Tensor]


class BoxMixer:
    """Draws by (seed, position in the run), and changes images with their boxes."""

    def __init__(self, config: AugmentConfig, seed: int, boxes: BoxTargets) -> None:
        self.config, self.seed, self.boxes = config, seed, boxes

    def __call__(self, place_B: Tensor, view: View, position_B: Tensor) -> tuple[View, Targets]:
        """The view of the samples at these places, and its `BoxTargets`: four times as many rows with mosaic, and twice
        as many with copy-paste. `position_B` numbers the samples of the run (step times batch size, plus place)."""
        if self.config.mosaic:
            view, targets = self._mosaic(place_B, view, position_B)
        else:
            targets = self.boxes(place_B, view)
        return self._copy_paste(view, targets, position_B) if self.config.copy_paste else (view, targets)

    def _mosaic(self, place_B: Tensor, view: View, position_B: Tensor) -> tuple[View, Targets]:
        """Four images about a point: the sample's own at the upper left, and three others of its group.

        All are scaled by one factor from 1/2 to 1 (log-uniform) and cut at the view's border and at the lines through
        the point, which lies in the middle half of the view. What no image covers is `config.fill`. The matrix is that
        of the own image.
        """
        height, width = view.images_BCHW.shape[-2:]
        draws = (Stream.MOSAIC, Stream.MOSAIC_SCALE, Stream.MOSAIC_X, Stream.MOSAIC_Y)
        share_B, zoom_B, x_B, y_B = uniforms(self.seed, 0, 0, position_B, draws)
        is_mixed_B = share_B < self.config.mosaic
        zoom_B = torch.where(is_mixed_B, torch.exp((zoom_B - 1) * math.log(2)), 1.0)
        x_B = torch.where(is_mixed_B, (width * (1 + 2 * x_B) / 4).round(), width)
        y_B = torch.where(is_mixed_B, (height * (1 + 2 * y_B) / 4).round(), height)
        whole_B14 = x_B.new_tensor([0, 0, width, height]).expand(len(x_B), 1, 4)
        images_BCHW, matrices_B33, parts = view.images_BCHW, list[Tensor](), list[Targets]()
        own_B = torch.arange(len(x_B), device=x_B.device)
        for number, from_B in enumerate((own_B, *self._partners(position_B, Stream.MOSAIC_PARTNER, 3))):
            tile_B33, tile_B4 = _tile(zoom_B, x_B, y_B, (height, width), right=number % 2 == 1, below=number > 1)
            across_B1W, down_B1H = _pixels(tile_B4[:, None], view)
            is_tile_BHW = (down_B1H.mT * across_B1W > 0) & is_mixed_B[:, None, None]
            moved_BCHW = warp(view.images_BCHW[from_B], tile_B33, self.config.fill)
            images_BCHW = torch.where(is_tile_BHW[:, None], moved_BCHW, images_BCHW)
            matrices_B33.append(compose(tile_B33, view.matrix_B33[from_B]))
            window_B4 = boxes_within(tile_B33, whole_B14, tile_B4)[0][:, 0]
            parts.append(self.boxes.within(place_B[from_B.cpu()], matrices_B33[-1], window_B4))
        return View(images_BCHW, matrices_B33[0]), _joined(parts)

    def _copy_paste(self, view: View, targets: Targets, position_B: Tensor) -> tuple[View, Targets]:
        """Boxes of one other image of the group, each with a probability of 1/2, pasted where they lie there. Boxes of
        either image are cut to what is seen of them, and dropped like those that a view cuts."""
        share_B = uniform(self.seed, 0, 0, position_B, Stream.COPY)
        (partner_B,) = self._partners(position_B, Stream.COPY_PARTNER, 1)
        boxes_BM4, class_BM = targets["boxes"][partner_B], targets["box_class"][partner_B]
        (draw_MB,) = uniform_runs(self.seed, 0, 0, position_B, (Stream.COPY_BOX,), class_BM.shape[1])
        is_pasted_BM = (class_BM >= 0) & (draw_MB.T < 0.5) & (share_B < self.config.copy_paste)[:, None]
        across_BMW, down_BMH = _pixels(torch.cat([boxes_BM4[..., :2].floor(), boxes_BM4[..., 2:].ceil()], -1), view)
        pasted_BHW = (down_BMH * is_pasted_BM[..., None]).mT @ across_BMW > 0
        images_BCHW = torch.where(pasted_BHW[:, None], view.images_BCHW[partner_B], view.images_BCHW)
        mine = _seen(targets["boxes"], targets["box_class"], ~pasted_BHW, view, self.boxes.min_visible)
        theirs = _seen(boxes_BM4, class_BM, pasted_BHW, view, self.boxes.min_visible)
        return view._replace(images_BCHW=images_BCHW), _joined([mine, theirs])

    def _partners(self, position_B: Tensor, stream: Stream, count: int) -> Tensor:
        """Indices in the batch of `count` different others of each sample's group of 8, [count, B]. In a shorter last
        group they may be the same ones, or the sample itself."""
        (draw_NB,) = uniform_runs(self.seed, 0, 0, position_B, (stream,), GROUP - 1)
        place_B = torch.arange(len(position_B), device=position_B.device)
        start_B = place_B - place_B % GROUP
        size_B = (len(place_B) - start_B).clamp(max=GROUP)
        turns_NB = 1 + draw_NB.argsort(dim=0, stable=True)[:count]
        return start_B + (place_B - start_B + turns_NB) % size_B


def _tile(
    zoom_B: Tensor, x_B: Tensor, y_B: Tensor, size: tuple[int, int], *, right: bool, below: bool
) -> tuple[Tensor, Tensor]:
    """How one of the four images comes into the mosaic, its corner at the point (x, y), and the part of the view
    [B, 4] that it may fill."""
    zero_B, (height, width) = torch.zeros_like(x_B), size
    # Of edges; centers lie half a pixel further.
    shift_x_B = x_B if right else x_B - zoom_B * width
    shift_y_B = y_B if below else y_B - zoom_B * height
    half_B = (zoom_B - 1) / 2
    tile_B33 = matrices(zoom_B, zero_B, shift_x_B + half_B, zero_B, zoom_B, shift_y_B + half_B)
    left_B, right_B = (x_B, zero_B + width) if right else (zero_B, x_B)
    top_B, bottom_B = (y_B, zero_B + height) if below else (zero_B, y_B)
    return tile_B33, torch.stack([left_B, top_B, right_B, bottom_B], dim=1)


def _joined(parts: list[Targets]) -> Targets:
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def _pixels(boxes_BM4: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Columns [B, M, W] and rows [B, M, H] whose pixel centers lie in boxes, 1.0 or 0.0: sums of them are exact."""
    found: list[Tensor] = []
    for axis, side in ((0, view.images_BCHW.shape[-1]), (1, view.images_BCHW.shape[-2])):
        center_S, (low_BM, high_BM) = (
            torch.arange(side, device=boxes_BM4.device) + 0.5,
            boxes_BM4[..., axis::2].unbind(-1),
        )
        found.append(((center_S >= low_BM[..., None]) & (center_S < high_BM[..., None])).float())
    return found[0], found[1]


def _seen(boxes_BM4: Tensor, class_BM: Tensor, seen_BHW: Tensor, view: View, min_visible: float) -> Targets:
    """Boxes cut to their visible pixels; without those of which less than `min_visible`, or than a pixel, is left."""
    across_BMW, down_BMH = _pixels(boxes_BM4, view)
    seen_BHW = seen_BHW.float()
    in_columns_BMW = across_BMW * (down_BMH @ seen_BHW)
    in_rows_BMH = down_BMH * (across_BMW @ seen_BHW.mT)
    share_BM = in_columns_BMW.sum(-1) / (across_BMW.sum(-1) * down_BMH.sum(-1)).clamp(min=1)
    left, right = _ends(in_columns_BMW, across_BMW, boxes_BM4[..., 0], boxes_BM4[..., 2])
    top, bottom = _ends(in_rows_BMH, down_BMH, boxes_BM4[..., 1], boxes_BM4[..., 3])
    cut_BM4 = torch.stack([left, top, right, bottom], dim=-1)
    is_large_BM = (cut_BM4[..., 2:] - cut_BM4[..., :2] >= MIN_SIDE).all(-1)
    is_kept_BM = (class_BM >= 0) & (share_BM >= min_visible) & is_large_BM
    return {"boxes": cut_BM4 * is_kept_BM[..., None], "box_class": torch.where(is_kept_BM, class_BM, -1)}


def _ends(seen_BMS: Tensor, inside_BMS: Tensor, low_BM: Tensor, high_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Where a box begins and ends: at its own edges, unless pixels beside them are hidden."""
    (first_BM, last_BM), (begin_BM, end_BM) = (_span(each > 0) for each in (seen_BMS, inside_BMS))
    return torch.where(first_BM > begin_BM, first_BM, low_BM), torch.where(last_BM < end_BM, last_BM, high_BM)


def _span(is_in_BMS: Tensor) -> tuple[Tensor, Tensor]:
    """The first true place, and that behind the last one."""
    place_S = torch.arange(is_in_BMS.shape[-1], device=is_in_BMS.device)
    behind = len(place_S)
    return torch.where(is_in_BMS, place_S, behind).amin(-1), torch.where(is_in_BMS, place_S + 1, 0).amax(-1)
