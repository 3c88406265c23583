"""Batches as pure functions of their place in the run.

Training is one endless stream of epochs, each a fresh keyed permutation, cut into batches of equal size: sample p of
the run is place p mod n of epoch p // n. Every image comes once an epoch, every batch has the same shape, and the
position after a resume is the step number alone. Shape letters: B batch, N samples of the split, C H W of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitral.data.augment import augment
from vitral.data.config import AugmentConfig
from vitral.data.dataset import Split
from vitral.data.keyed import permutation
from vitral.data.mixing import Mixer
from vitral.data.resize import fit_image, fit_image_fast
from vitral.structs import Batch

Index = np.ndarray[Any, np.dtype[np.int64]]


class ImageStore:
    """A split's images at the model's size: in memory, on `device`, if they fit in `cache_mb`, else read on demand.

    exact: float32 [0,1] by the one resize that evaluation and prediction share; otherwise uint8 by the fast one, for
    training. `workers` threads decode. Raises UserError, naming the file, for an image that cannot be read.
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int],
        fit: str,
        *,
        exact: bool,
        workers: int,
        cache_mb: int,
        device: torch.device,
    ) -> None:
        self.split, self.size, self.fit, self.exact, self.device = split, size, fit, exact, device
        self.pool = ThreadPoolExecutor(workers)
        first = self._one(0)
        self.cached = len(split) * first.numel() * first.element_size() <= cache_mb * 2**20
        self.images_NCHW = self._many(range(len(split))).to(device) if self.cached else None

    def _one(self, index: int) -> Tensor:
        image = self.split.read(index)
        return fit_image(image, self.size, self.fit) if self.exact else fit_image_fast(image, self.size, self.fit)

    def _many(self, indices: range | list[int]) -> Tensor:
        first = self._one(indices[0])
        with torch.inference_mode(False):  # the threads that fill it are not in the caller's mode
            images_BCHW = torch.empty(len(indices), *first.shape, dtype=first.dtype)

        def place(slot: int) -> None:
            images_BCHW[slot] = self._one(indices[slot])

        list(self.pool.map(place, range(len(indices))))
        return images_BCHW

    def get(self, index_B: Tensor) -> Tensor:
        """The images of these samples, on the store's device."""
        if self.images_NCHW is not None:
            return self.images_NCHW[index_B.to(self.device)]
        return self._many(index_B.tolist()).to(self.device, non_blocking=True)


class TrainLoader:
    """The training stream: `batch(step)` gives the same Batch whenever and wherever it is asked."""

    def __init__(self, store: ImageStore, batch_size: int, augment_config: AugmentConfig, seed: int) -> None:
        self.store, self.batch_size, self.config, self.seed = store, batch_size, augment_config, seed
        self.labels_N = torch.from_numpy(store.split.labels_N)
        self.mixer = Mixer(augment_config, seed)
        self._orders: dict[int, Index] = {}

    def batch(self, step: int) -> Batch:
        """The global batch of this step (counted from 0): one augmented view, labels, sample numbers."""
        count = len(self.store.split)
        position_B = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epoch_B, place_B = np.divmod(position_B, count)
        index_B = np.concatenate([self._order(int(e))[place_B[epoch_B == e]] for e in np.unique(epoch_B)])
        device = self.store.device
        keys_B = torch.from_numpy(index_B)
        view = augment(
            self.store.get(keys_B), self.config, self.seed, torch.from_numpy(epoch_B).to(device), keys_B.to(device)
        )
        targets = {"label": self.labels_N[keys_B].to(device)}
        if self.mixer.active:
            images_BCHW, targets = self.mixer(
                view.images_BCHW, targets["label"], torch.from_numpy(position_B).to(device)
            )
            view = view._replace(images_BCHW=images_BCHW)
        return Batch((view,), targets, keys_B)

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps start..stop; where images are read on demand, the next one is made meanwhile."""
        if self.store.cached:
            yield from map(self.batch, range(start, stop))
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(self.batch, start) if start < stop else None
            for step in range(start + 1, stop + 1):
                assert waiting is not None
                ready = waiting.result()
                waiting = ahead.submit(self.batch, step) if step < stop else None
                yield ready

    def _order(self, epoch: int) -> Index:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 2}
            self._orders[epoch] = permutation(self.seed, epoch, len(self.store.split))
        return self._orders[epoch]


def eval_batches(store: ImageStore, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample of the split exactly once, in order: ([0,1] images, class indices)."""
    labels_N = torch.from_numpy(store.split.labels_N)
    for index_B in torch.arange(len(labels_N)).split(batch_size):
        yield store.get(index_B), labels_N[index_B].to(store.device)
