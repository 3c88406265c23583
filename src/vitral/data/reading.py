"""Read samples of a split as pixels at the model's size, in every worker.

Shape letters: B images, V views of each, C channels, H W height and width, 4 a box (top, left, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.data.config import MAX_PIXELS
from vitral.data.crop import draw_boxes
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.jpeg_crop import Box, random_crops
from vitral.data.resize import fit_image, fit_image_fast, shown_box

Index = np.ndarray[Any, np.dtype[np.int64]]
# Images whose files are held and whose boxes are drawn together.
CHUNK = 16


@dataclass(frozen=True)
class RandomCrop:
    """A random resized crop that is made while decoding; scale and ratio as in AugmentConfig. `size`: of the result,
    (height, width), or that of the reader; `view`, `first`: its number, and that of the split's first sample, in the
    keyed random numbers."""

    seed: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    max_pixels: int = MAX_PIXELS
    size: tuple[int, int] | None = None
    view: int = 0
    first: int = 0


class ReadRequest(NamedTuple):
    """Which images, and for each the draw number of its crop; without them the whole image is fitted."""

    index_B: Index
    draw_B: Index | None = None

    def __len__(self) -> int:
        return len(self.index_B)

    def part(self, start: int, stop: int) -> ReadRequest:
        """Images start..stop of it."""
        return ReadRequest(self.index_B[start:stop], None if self.draw_B is None else self.draw_B[start:stop])


class ReadResult(NamedTuple):
    """Images of each view, and the boxes float32 [B, V, 4] of the decoded upright images that they show (the first one
    alone where whole images are read)."""

    views: tuple[Tensor, ...]
    boxes_BV4: Tensor

    def rows(self, start: int, stop: int) -> ReadResult:
        """Images start..stop: the same memory."""
        return ReadResult(tuple(images_BCHW[start:stop] for images_BCHW in self.views), self.boxes_BV4[start:stop])


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a split at `size` (height, width): exact float32 [0,1], fast uint8, or uint8 random crops, of
    each image as many as there are `crops`."""

    split: Split
    size: tuple[int, int]
    fit: ResizeSpec
    exact: bool
    channels: int
    crops: tuple[RandomCrop, ...] = ()

    def empty(self, count: int, *, pinned: bool = False) -> ReadResult:
        """Room for so many images, in page-locked memory with `pinned`."""
        dtype = torch.float32 if self.exact else torch.uint8
        sizes = [crop.size or self.size for crop in self.crops] or [self.size]
        views = [torch.empty(count, self.channels, *size, dtype=dtype, pin_memory=pinned) for size in sizes]
        return ReadResult(tuple(views), torch.zeros(count, len(sizes), 4))

    def fill(self, request: ReadRequest, room: ReadResult) -> None:
        """Read the images into `room`. Raises UserError, naming the file, for one that cannot be read."""
        if request.draw_B is None:
            fit, boxes = fit_image if self.exact else fit_image_fast, list[tuple[float, ...]]()
            for slot, index in enumerate(request.index_B.tolist()):
                image_CHW = self.split.read(index)
                room.views[0][slot] = fit(image_CHW, self.size, self.fit)
                boxes.append(shown_box((image_CHW.shape[1], image_CHW.shape[2]), self.size, self.fit))
            room.boxes_BV4[:, 0] = torch.tensor(boxes).reshape(len(boxes), 4)
            return
        for start in range(0, len(request), CHUNK):
            self._crops(request.part(start, start + CHUNK), room.rows(start, start + CHUNK))

    def _crops(self, request: ReadRequest, room: ReadResult) -> None:
        crops, draw_B = self.crops, request.draw_B
        assert crops
        assert draw_B is not None

        def boxes(which: list[int], sizes_B2: Tensor) -> Tensor:
            sample_ids_B, draws_B = torch.from_numpy(request.index_B[which]), torch.from_numpy(draw_B[which])
            each = [
                draw_boxes(c.seed, draws_B, c.view, sample_ids_B + c.first, sizes_B2, c.scale, c.ratio) for c in crops
            ]
            return torch.stack(each, dim=1)

        def place(slot: int, images: Sequence[Tensor], shown: Sequence[Box]) -> None:
            for images_BCHW, image_CHW in zip(room.views, images, strict=True):
                images_BCHW[slot] = image_CHW
            room.boxes_BV4[slot] = torch.tensor(shown)

        indices = request.index_B.tolist()
        file = self.split.file
        files: list[Callable[[], str | bytes] | None] = [None if file is None else partial(file, i) for i in indices]
        reads = [partial(self.split.read, index) for index in indices]
        sizes = [crop.size or self.size for crop in crops]
        random_crops(files, reads, boxes, sizes, self.channels, place, max_pixels=crops[0].max_pixels)
