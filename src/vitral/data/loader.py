"""Batches as pure functions of the step.

Training reads one or more streams. Each is an endless row of epochs, put in order by keyed random numbers and cut into
batches of equal size (see `sampling.py`). Every batch has the same shape, and the position after a resume is the step
number alone. Of N processes each takes its rows of the global batch, whole groups of 8 in which images are mixed, so
that all of them together make the batch of one. Shape letters: B batch, N samples of the split, C H W of an image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from vitral import distributed
from vitral.data.augment import augment
from vitral.data.box_mixing import BoxMixer
from vitral.data.boxes import Boxes, BoxTargets
from vitral.data.config import StreamConfig, ViewConfig
from vitral.data.crop import box_matrix
from vitral.data.image_store import ImageStore, ReadResult, to_device
from vitral.data.mixing import GROUP, Mixer
from vitral.data.sampling import Sampler
from vitral.errors import UserError
from vitral.structs import STREAM_SPAN, Batch

AHEAD = 2  # batches that are read while one is in use


class BatchStream(Protocol):
    """What a run reads of a stream of batches, whatever these hold.

    samples: of the split. batch_size: over all processes. batch(step): this process's rows of the batch of this step,
    the same on every call. stream(start, stop): those of the steps start..stop, perhaps prefetched.
    """

    @property
    def samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def batch(self, step: int) -> Batch: ...
    def stream(self, start: int, stop: int) -> Generator[Batch]: ...


def own_rows(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """The rows start..stop of the global batch that a process takes. Raises UserError unless they are whole groups of 8
    samples."""
    assert 0 <= rank < world, (rank, world)
    if world > 1 and batch_size % (world * GROUP):
        raise UserError(
            f"every one of {world} processes takes a multiple of {GROUP} images", where="train.batch_size",
            got=batch_size, expected=f"a multiple of {world * GROUP}",
        )  # fmt: skip
    return rank * batch_size // world, (rank + 1) * batch_size // world


class StreamLoader:
    """One stream of batches: `batch(step)` returns the same Batch on every call and in every process.

    rank, world: this process takes its contiguous share of every global batch. number: that of the stream in its run,
    from which its samples are numbered. Without `config.views` each sample is shown once, at the store's size, as
    `config.augment` says. Of a split with boxes the targets are the boxes of the first view, see `BoxTargets`. sampler:
    another order of the samples. hidden: boxes of a stream without labels, by which what is predicted is watched:
    `hidden_boxes` and `hidden_class`. Raises UserError where the share is no multiple of 8 images, for mixup and CutMix
    of boxes, or where the sampler refuses.
    """

    def __init__(
        self, store: ImageStore, config: StreamConfig, seed: int, *, rank: int = 0, world: int = 1, number: int = 0,
        sampler: Sampler | None = None, hidden: Boxes | None = None,
    ) -> None:  # fmt: skip
        assert len(store.split) <= STREAM_SPAN, "samples of two streams would have the same numbers"
        batch_size, labels_N = config.batch_size, store.split.labels_N
        self.store, self.batch_size, self.seed, self.first_id = store, batch_size, seed, number * STREAM_SPAN
        self.views = config.views or (ViewConfig(config.augment, store.size),)
        # What is left to do for images that the store has cropped already.
        todo = {"crop": "none"} if store.crops else {}
        self.augments = [view.augment.model_copy(update=todo) for view in self.views]
        assert len(store.crops) in (0, len(self.views)), (store.crops, self.views)
        self.labels_N = torch.from_numpy(labels_N) if config.labeled else None
        self.mixer = Mixer(config.augment, seed)
        boxes = store.split.boxes if config.labeled else hidden
        self.boxes = None if boxes is None else BoxTargets(boxes, config.min_visible)
        self.box_mixer = None if self.boxes is None else BoxMixer(config.augment, seed, self.boxes)
        if self.boxes is not None and self.mixer.active:
            raise UserError("boxes of mixed images have no weights", where="augment", got="mixup or cutmix",
                            expected="augment.mixup=0 augment.cutmix=0")  # fmt: skip
        # One weight of the own label serves all views: a box cut into whole pixels has one area only at one size.
        assert not self.mixer.active or (config.labeled and len({view.size for view in self.views}) == 1), self.views
        repeats, first = config.augment.repeated_aug, self.first_id
        self.sampler = sampler or Sampler(
            labels_N, batch_size, seed, balance=config.balance, repeats=repeats, first=first
        )
        self.first, self.last = own_rows(batch_size, rank, world)
        self._ahead: dict[int, Callable[[], ReadResult]] = {}

    @property
    def samples(self) -> int:
        """Samples of the split."""
        return len(self.store.split)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.store.device

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of this step (from 0): augmented views, labels, sample numbers."""
        index_B, draw_B = self.sampler.rows(step, self.first, self.last)
        device, place_B = self.store.device, torch.from_numpy(index_B)
        sources = self._images(step, place_B)
        draws_B, sample_ids_B = torch.from_numpy(draw_B).to(device), place_B + self.first_id
        views = [
            augment(images_BCHW, self.augments[number], self.seed, draws_B, sample_ids_B.to(device), number,
                    source_B33=source_B33, size=view.size)
            for number, (view, (images_BCHW, source_B33)) in enumerate(zip(self.views, sources, strict=True))
        ]  # fmt: skip
        targets = {} if self.labels_N is None else {"label": self.labels_N[place_B].to(device)}
        row_B = torch.arange(self.first, self.last, device=device)
        position_B = row_B + step * self.batch_size + self.first_id
        if self.box_mixer is not None:
            views[0], targets = self.box_mixer(place_B, views[0], position_B)
            if self.labels_N is None:
                targets = {"hidden_boxes": targets["boxes"], "hidden_class": targets["box_class"]}
        if self.mixer.active:
            mixed = [self.mixer(view.images_BCHW, targets["label"], position_B) for view in views]
            views = [view._replace(images_BCHW=images) for view, (images, _) in zip(views, mixed, strict=True)]
            targets = mixed[0][1]
        return Batch(tuple(views), targets, sample_ids_B)

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """Batches of the steps start..stop; where images are read on demand, the next ones are prefetched."""
        try:
            for step in range(start, stop):
                for ahead in range(step, min(step + 1 + AHEAD, stop)) if self.store.reads_ahead else ():
                    if ahead not in self._ahead:
                        self._ahead[ahead] = self._ask(ahead)
                yield self.batch(step)
        finally:
            for ready in self._ahead.values():
                with contextlib.suppress(Exception):  # an error of a batch that nobody wants any more
                    ready()
            self._ahead.clear()

    def _ask(self, step: int) -> Callable[[], ReadResult]:
        index_B, draw_B = self.sampler.rows(step, self.first, self.last)
        return self.store.submit(index_B, draw_B if self.store.crops else None)

    def _images(self, step: int, place_B: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each view the images of a step before augmentation, and how they came from the decoded upright ones."""
        if self.store.images_NCHW is not None:
            source_B33 = self.store.source_N33[place_B.to(self.store.device)]
            return [(self.store.get(place_B), source_B33)] * len(self.views)
        read = (self._ahead.pop(step, None) or self._ask(step))()
        boxes_VB4 = read.boxes_BV4.to(self.store.device).unbind(1)
        sources = [
            (to_device(images_BCHW, self.store.device), box_matrix(boxes_B4, size))
            for images_BCHW, boxes_B4, size in zip(read.views, boxes_VB4, self.store.sizes, strict=True)
        ]
        return sources if self.store.crops else sources * len(self.views)


class TrainLoader:
    """All streams of a run, by name; steps and epochs are counted by the first one.

    `batch(step)` returns one Batch of each, the same on every call and in every process. replays: consecutive steps
    that get the same batch, of all streams.
    """

    def __init__(self, streams: Mapping[str, BatchStream], replays: int = 1) -> None:
        self.streams, self.replays = dict(streams), replays
        first = next(iter(self.streams.values()))
        self.samples, self.device = first.samples, first.device
        self.images = sum(stream.batch_size for stream in self.streams.values())  # of a step, over all processes

    def batch(self, step: int) -> dict[str, Batch]:
        """This process's rows of every stream's batch of this step (from 0)."""
        return {name: stream.batch(step // self.replays) for name, stream in self.streams.items()}

    def stream(self, start: int, stop: int) -> Generator[dict[str, Batch]]:
        """Batches of the steps start..stop, each made once; where images are read on demand, the next ones are
        prefetched."""
        first, end = start // self.replays, -(-stop // self.replays)
        with contextlib.ExitStack() as closes:
            parts = [closes.enter_context(contextlib.closing(s.stream(first, end))) for s in self.streams.values()]
            for number, batches in enumerate(zip(*parts, strict=True), first):
                steps = range(number * self.replays, (number + 1) * self.replays)
                for _ in range(max(start, steps.start), min(stop, steps.stop)):
                    yield dict(zip(self.streams, batches, strict=True))


def eval_batches(store: ImageStore, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample of the split exactly once, in order: ([0,1] images, class indices).

    Of many processes each gets its contiguous share, in equally many batches (an empty one, if need be), since the
    model may exchange weights at each.
    """
    labels_N = torch.from_numpy(store.split.labels_N)
    first, last = distributed.shard_range(len(labels_N))
    rounds = max(1, -(-len(labels_N) // (distributed.world() * batch_size)))
    parts = torch.arange(first, last)
    for index_B in parts.split(batch_size) if distributed.world() == 1 else parts.tensor_split(rounds):
        yield store.get(index_B), labels_N[index_B].to(store.device)
