"""Batches as pure functions of their place in the run.

Training is one endless stream of epochs, each put in order by keyed random numbers, cut into batches of equal size (see
`sampling.py`). Every batch has the same shape, and the position after a resume is the step number alone. Of N processes
each takes its rows of the global batch, whole groups of 8 in which images are mixed, so that all of them together make
the batch of one. Shape letters: B batch, N samples of the split, C H W of an image.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vitral import distributed
from vitral.data.augment import augment
from vitral.data.config import AugmentConfig, ViewConfig
from vitral.data.crop import box_matrix
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.mixing import GROUP, Mixer
from vitral.data.reading import ImageReader, Index, RandomCrop, Reading, Request
from vitral.data.sampling import Sampler
from vitral.data.workers import AHEAD, Pool, make_pool
from vitral.errors import UserError
from vitral.structs import Batch


class ImageStore:
    """A split's images at the model's size: in memory, on `device`, if they fit in `cache_mb`, else read on demand.

    exact: float32 [0,1] by the one resize that evaluation and prediction share; otherwise uint8 by the fast one, for
    training. `workers` of `worker_kind` (threads, fork, spawn) decode, for requests of up to `batch` images; 0 workers:
    the caller does. With `crops`, boxes are cut out while decoding, from the files at their own resolution, and nothing
    is kept: the system's file cache holds the encoded files, and each epoch wants another part of them. A context, or
    to be closed: it may hold threads or processes. Raises UserError, naming the file, for an image that cannot be read.
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
        worker_kind: str = "threads",
        batch: int = 64,
        crops: tuple[RandomCrop, ...] = (),
    ) -> None:
        self.split, self.size, self.fit, self.exact, self.device, self.crops = split, size, fit, exact, device, crops
        self.workers, self.worker_kind, self.batch = workers, worker_kind, batch
        channels = len(split.read(0))
        self.reader = ImageReader(split, size, fit, exact, channels, crops)
        self._pool: Pool | None = None
        bytes_each = channels * size[0] * size[1] * (4 if exact else 1)
        self.cached = not crops and len(split) * bytes_each <= cache_mb * 2**20
        self.images_NCHW = None
        if self.cached:
            try:
                self.images_NCHW = self._read(np.arange(len(split), dtype=np.int64)).to(device)
            finally:
                self.close()

    def submit(self, request: Request) -> Callable[[], Reading]:
        """Start reading up to `batch` images; the returned function waits for them, in memory of the processor."""
        if self._pool is None:
            pinned = self.device.type == "cuda"
            self._pool = make_pool(self.reader, self.workers, self.worker_kind, self.batch, pinned=pinned)
        return self._pool.submit(request)

    def get(self, index_B: Tensor) -> Tensor:
        """The whole images of these samples, on the store's device."""
        if self.images_NCHW is not None:
            return self.images_NCHW[index_B.to(self.device)]
        return to_device(self._read(index_B.cpu().numpy()), self.device)

    def reserve(self, batch: int) -> None:
        """Make room for requests of so many images."""
        if batch > self.batch:
            self.close()
            self.batch = batch

    def close(self) -> None:
        """End the threads and processes, if any. The next request starts them anew."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, index_N: Index) -> Tensor:
        """Any number of whole images, in portions of `batch`, of which the next is read while one is copied."""
        with torch.inference_mode(False):
            images_NCHW = self.reader.empty(len(index_N)).views[0]
        waiting: deque[tuple[int, Callable[[], Reading]]] = deque()

        def take() -> None:
            place, ready = waiting.popleft()
            images_NCHW[place : place + self.batch] = ready().views[0]

        try:
            for start in range(0, len(index_N), self.batch):
                waiting.append((start, self.submit(Request(index_N[start : start + self.batch]))))
                if len(waiting) > AHEAD:
                    take()
            while waiting:
                take()
        except BaseException:
            self.close()  # with it go the requests that nobody waits for any more
            raise
        return images_NCHW


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


_copy_streams: dict[torch.device, torch.cuda.Stream] = {}


def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _copy_streams:
        _copy_streams[device] = torch.cuda.Stream(device)
    return _copy_streams[device]


class TrainLoader:
    """The training stream: `batch(step)` gives the same Batch whenever and wherever it is asked.

    rank, world: this process takes its contiguous share of every global batch. balance: see `Sampler`. views: how each
    sample is shown, once for each; by default once, at the store's size, as `augment_config` says. Raises UserError
    where the share is no multiple of 8 images, or the sampler refuses.
    """

    def __init__(
        self,
        store: ImageStore,
        batch_size: int,
        augment_config: AugmentConfig,
        seed: int,
        *,
        balance: str = "none",
        rank: int = 0,
        world: int = 1,
        views: Sequence[ViewConfig] = (),
    ) -> None:
        assert 0 <= rank < world, (rank, world)
        if world > 1 and batch_size % (world * GROUP):
            raise UserError(
                f"every one of {world} processes takes a multiple of {GROUP} images", where="train.batch_size",
                got=batch_size, wanted=f"a multiple of {world * GROUP}",
            )  # fmt: skip
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.views = tuple(views) or (ViewConfig(augment_config, store.size),)
        assert len(store.crops) in (0, len(self.views)), (store.crops, self.views)
        self.labels_N = torch.from_numpy(store.split.labels_N)
        self.mixer = Mixer(augment_config, seed)
        # One weight of the own label serves all views: a box cut into whole pixels has one area only at one size.
        assert not self.mixer.active or len({view.size for view in self.views}) == 1, self.views
        self.sampler = Sampler(store.split.labels_N, batch_size, seed, balance=balance, repeats=augment_config.repeats)
        self.first, self.last = rank * batch_size // world, (rank + 1) * batch_size // world
        store.reserve(self.last - self.first)
        self._ahead: dict[int, Callable[[], Reading]] = {}

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of this step (from 0): augmented views, labels, sample numbers."""
        index_B, draw_B = self.sampler.rows(step, self.first, self.last)
        device, keys_B = self.store.device, torch.from_numpy(index_B)
        sources = self._images(step, keys_B)
        draws_B = torch.from_numpy(draw_B).to(device)
        views = [
            augment(images_BCHW, view.augment, self.seed, draws_B, keys_B.to(device), number, taken_B33=taken_B33,
                    size=view.size)
            for number, (view, (images_BCHW, taken_B33)) in enumerate(zip(self.views, sources, strict=True))
        ]  # fmt: skip
        targets = {"label": self.labels_N[keys_B].to(device)}
        if self.mixer.active:
            position_B = torch.arange(self.first, self.last, device=device) + step * self.batch_size
            mixed = [self.mixer(view.images_BCHW, targets["label"], position_B) for view in views]
            views = [view._replace(images_BCHW=images) for view, (images, _) in zip(views, mixed, strict=True)]
            targets = mixed[0][1]
        return Batch(tuple(views), targets, keys_B)

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """Batches of the steps start..stop; where images are read on demand, the next ones are read meanwhile."""
        try:
            for step in range(start, stop):
                for ahead in range(step, min(step + 1 + AHEAD, stop)) if not self.store.cached else ():
                    if ahead not in self._ahead:
                        self._ahead[ahead] = self._ask(ahead)
                yield self.batch(step)
        finally:
            for ready in self._ahead.values():
                with contextlib.suppress(Exception):  # an error of a batch that nobody wants any more
                    ready()
            self._ahead.clear()

    def _ask(self, step: int) -> Callable[[], Reading]:
        places = self.sampler.rows(step, self.first, self.last)
        return self.store.submit(Request(places.index_B, places.draw_B if self.store.crops else None))

    def _images(self, step: int, keys_B: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """For each view the images of a step before augmentation, and the map of the crop if it has been made."""
        if self.store.images_NCHW is not None:
            return [(self.store.get(keys_B), None)] * len(self.views)
        read = (self._ahead.pop(step, None) or self._ask(step))()
        views = [to_device(images_BCHW, self.store.device) for images_BCHW in read.views]
        if not self.store.crops:
            return [(views[0], None)] * len(self.views)
        boxes_BV4 = read.boxes_BV4.to(self.store.device)
        return [
            (images_BCHW, box_matrix(boxes_BV4[:, number], view.size))
            for number, (images_BCHW, view) in enumerate(zip(views, self.views, strict=True))
        ]


def eval_batches(store: ImageStore, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample of the split exactly once, in order: ([0,1] images, class indices).

    Of many processes each gets its contiguous share, in equally many batches (an empty one, if need be), since the
    model may exchange weights at each.
    """
    labels_N = torch.from_numpy(store.split.labels_N)
    first, last = distributed.share(len(labels_N))
    rounds = max(1, -(-len(labels_N) // (distributed.world() * batch_size)))
    parts = torch.arange(first, last)
    for index_B in parts.split(batch_size) if distributed.world() == 1 else parts.tensor_split(rounds):
        yield store.get(index_B), labels_N[index_B].to(store.device)
