"""From places in a split to pixels at the model's size: what every worker, thread or process, does.

Shape letters: B images, C channels, H W height and width, 4 a box (top, left, height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.data.config import MAX_PIXELS
from vitral.data.crop import draw_boxes
from vitral.data.crop_decode import Box, random_crops
from vitral.data.dataset import Split
from vitral.data.resize import Fit, fit_image, fit_image_fast

Index = np.ndarray[Any, np.dtype[np.int64]]
# Images whose files are held and whose boxes are drawn together.
CHUNK = 16


@dataclass(frozen=True)
class RandomCrop:
    """A random resized crop that is made while decoding; scale and ratio as in AugmentConfig."""

    seed: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    max_pixels: int = MAX_PIXELS


class Request(NamedTuple):
    """Which images, and for each the draw number of its crop; without them the whole image is fitted."""

    index_B: Index
    draw_B: Index | None = None

    def __len__(self) -> int:
        return len(self.index_B)

    def part(self, start: int, stop: int) -> Request:
        """Images start..stop of it."""
        return Request(self.index_B[start:stop], None if self.draw_B is None else self.draw_B[start:stop])


class Reading(NamedTuple):
    """Images, and the boxes int64 [B, 4] that they show (zeros where whole images are asked for)."""

    images_BCHW: Tensor
    boxes_B4: Tensor


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a split at `size` (height, width): exact float32 [0,1], fast uint8, or uint8 random crops.

    Can be sent to other processes where the split can.
    """

    split: Split
    size: tuple[int, int]
    fit: Fit
    exact: bool
    channels: int
    crop: RandomCrop | None = None

    def empty(self, count: int, *, pinned: bool = False) -> Reading:
        """Room for so many images, in page-locked memory if asked for."""
        dtype = torch.float32 if self.exact else torch.uint8
        images_BCHW = torch.empty(count, self.channels, *self.size, dtype=dtype, pin_memory=pinned)
        return Reading(images_BCHW, torch.zeros(count, 4, dtype=torch.int64))

    def fill(self, request: Request, room: Reading) -> None:
        """Read the images into `room`. Raises UserError, naming the file, for one that cannot be read."""
        if request.draw_B is None:
            fit = fit_image if self.exact else fit_image_fast
            for slot, index in enumerate(request.index_B.tolist()):
                room.images_BCHW[slot] = fit(self.split.read(index), self.size, self.fit)
            return
        for start in range(0, len(request), CHUNK):
            part = slice(start, start + CHUNK)
            self._crops(request.part(start, start + CHUNK), Reading(room.images_BCHW[part], room.boxes_B4[part]))

    def _crops(self, request: Request, room: Reading) -> None:
        crop, draw_B = self.crop, request.draw_B
        assert crop is not None
        assert draw_B is not None

        def boxes(which: list[int], sizes_B2: Tensor) -> Tensor:
            keys_B, draws_B = torch.from_numpy(request.index_B[which]), torch.from_numpy(draw_B[which])
            return draw_boxes(crop.seed, draws_B, 0, keys_B, sizes_B2, crop.scale, crop.ratio)

        def place(slot: int, image_CHW: Tensor, box: Box) -> None:
            room.images_BCHW[slot], room.boxes_B4[slot] = image_CHW, torch.tensor(box)

        indices = request.index_B.tolist()
        file = self.split.file
        files: list[Callable[[], str | bytes] | None] = [None if file is None else partial(file, i) for i in indices]
        reads = [partial(self.split.read, index) for index in indices]
        random_crops(files, reads, boxes, self.size, self.channels, place, max_pixels=crop.max_pixels)
