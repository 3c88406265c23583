"""Read samples of a split as pixels at the model's size, in the calling thread or in threads: both give the same bits.

Pillow's decoders and torch's resizing release the interpreter, nothing is copied between processes, and no
`__main__` guard is needed. Shape letters: N samples of the split, B images, V views of each, C channels, H W height and
width, 4 a box (top, left, height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.data.config import MAX_PIXELS
from vitral.data.counter_rng import Draws
from vitral.data.crop import box_matrix, draw_boxes
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.jpeg_crop import random_crops
from vitral.data.resize import fit_image, fit_image_fast, shown_box

Index = np.ndarray[Any, np.dtype[np.int64]]
# Images per task, whose files are held and whose boxes are drawn together: few enough that all threads end together.
_TASK = 16


@dataclass(frozen=True)
class RandomCrop:
    """A random resized crop that is made while decoding; scale and ratio as in AugmentConfig. `size`: of the result,
    (height, width), or that of the store; `view`, `first`: its number, and that of the split's first sample, in the
    keyed random numbers."""

    seed: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    max_pixels: int = MAX_PIXELS
    size: tuple[int, int] | None = None
    view: int = 0
    first: int = 0


class ReadResult(NamedTuple):
    """Images of each view, and the boxes float32 [B, V, 4] of the decoded upright images that they show (the first one
    alone where whole images are read)."""

    views: tuple[Tensor, ...]
    boxes_BV4: Tensor

    def rows(self, rows: slice) -> ReadResult:
        """Some of the images: the same memory."""
        return ReadResult(tuple(images_BCHW[rows] for images_BCHW in self.views), self.boxes_BV4[rows])


class ImageStore:
    """A split's images at the model's size: in memory, on `device`, if they fit in `cache_mb`, else read on demand.

    exact: float32 [0,1] by the one resize that evaluation and prediction share; otherwise uint8 by the fast one, for
    training. `workers` threads decode; 0 workers: the caller does. With `crops`, boxes are cut out while decoding, from
    the files at their own resolution, and nothing is kept: the system's file cache holds the encoded files, and each
    epoch wants another part of them. A context, or to be closed: it may hold threads. Raises UserError, naming the
    file, for an image that cannot be read.
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int],
        fit: ResizeSpec,
        *,
        exact: bool,
        workers: int,
        cache_mb: int,
        device: torch.device,
        crops: tuple[RandomCrop, ...] = (),
    ) -> None:
        self.split, self.size, self.fit, self.exact, self.device, self.crops = split, size, fit, exact, device, crops
        self.workers, self.channels = workers, len(split.read(0))
        self.sizes = [crop.size or size for crop in crops] or [size]  # of the views that are read
        self._pool: ThreadPoolExecutor | None = None
        bytes_each = self.channels * size[0] * size[1] * (4 if exact else 1)
        self.cached = not crops and len(split) * bytes_each <= cache_mb * 2**20
        self.reads_ahead = not self.cached and workers > 0
        self.images_NCHW = None
        if self.cached:
            try:
                read = self.submit(np.arange(len(split), dtype=np.int64))()
                self.images_NCHW = read.views[0].to(device)
                self.source_N33 = box_matrix(read.boxes_BV4[:, 0], size).to(device)
            finally:
                self.close()

    def submit(self, index_B: Index, draw_B: Index | None = None) -> Callable[[], ReadResult]:
        """Start reading images; the returned function waits for them, in memory of the processor. Errors are raised
        there, the first by place in the batch. `draw_B`: of each image the draw number of its crop; without it whole
        images are fitted."""
        with torch.inference_mode(False):  # the threads that fill it are not in the caller's mode
            room = self._empty(len(index_B))
        rows = [slice(start, start + _TASK) for start in range(0, len(index_B), _TASK)]
        tasks = [
            partial(self._fill, index_B[own], None if draw_B is None else draw_B[own], room.rows(own)) for own in rows
        ]
        jobs: list[Future[None]] = []
        if self.workers:
            self._pool = self._pool or ThreadPoolExecutor(self.workers, "vitral-reader")
            jobs = [self._pool.submit(task) for task in tasks]

        def ready() -> ReadResult:
            if not jobs:
                with torch.inference_mode(False):
                    for task in tasks:
                        task()
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
            return room

        return ready

    def get(self, index_B: Tensor) -> Tensor:
        """The whole images of these samples, on the store's device."""
        if self.images_NCHW is not None:
            return self.images_NCHW[index_B.to(self.device)]
        return to_device(self.submit(index_B.cpu().numpy())().views[0], self.device)

    def close(self) -> None:
        """End the threads, if any, after the image that each is at. The next request starts them again."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _empty(self, count: int) -> ReadResult:
        """Room for so many images; in page-locked memory if they go to CUDA at every step."""
        dtype, pinned = torch.float32 if self.exact else torch.uint8, self.device.type == "cuda" and not self.cached
        views = [torch.empty(count, self.channels, *size, dtype=dtype, pin_memory=pinned) for size in self.sizes]
        return ReadResult(tuple(views), torch.zeros(count, len(views), 4))

    def _fill(self, index_B: Index, draw_B: Index | None, room: ReadResult) -> None:
        if draw_B is None:
            fit = fit_image if self.exact else fit_image_fast
            for slot, index in enumerate(index_B.tolist()):
                image_CHW = self.split.read(index)
                room.views[0][slot] = fit(image_CHW, self.size, self.fit)
                box = shown_box((image_CHW.shape[1], image_CHW.shape[2]), self.size, self.fit)
                room.boxes_BV4[slot, 0] = torch.tensor(box)
            return

        def boxes(which: list[int], sizes_B2: Tensor) -> Tensor:
            draws_B, sample_ids_B = torch.from_numpy(draw_B[which]), torch.from_numpy(index_B[which])
            each = [
                draw_boxes(Draws(c.seed, draws_B, c.view, sample_ids_B + c.first), sizes_B2, c.scale, c.ratio)
                for c in self.crops
            ]
            return torch.stack(each, dim=1)

        files = [self.split.file and partial(self.split.file, index) for index in index_B.tolist()]
        reads = [partial(self.split.read, index) for index in index_B.tolist()]
        limit = self.crops[0].max_pixels
        for slot, cut in enumerate(random_crops(files, reads, boxes, self.sizes, self.channels, max_pixels=limit)):
            for images_BCHW, (image_CHW, _) in zip(room.views, cut, strict=True):
                images_BCHW[slot] = image_CHW
            room.boxes_BV4[slot] = torch.tensor([box for _, box in cut])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On CUDA copied from page-locked memory beside the computation that still runs; elsewhere as usual."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    now, beside = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(beside):
        copied = pinned.to(device, non_blocking=True)
    now.wait_stream(beside)
    copied.record_stream(now)
    return copied


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
