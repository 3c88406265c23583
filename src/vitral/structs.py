"""What travels between rooms. Shape letters: B batch, C channels, H W height and width, N patches, D width of the
model, R registers, K kept patches, 33 a 3 x 3 matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STREAM_SPAN = 2**30  # sample numbers of one stream of batches


class View(NamedTuple):
    """One look at the images: [0,1] float32 or uint8, and the map from source to view pixel centers (x, y, 1).

    The source is the decoded image at its own size, upright (EXIF orientation applied). Mixing and erasing change no
    place: what mixup and CutMix add of the partner lies where the partner's own view has it.
    """

    images_BCHW: Tensor
    matrix_B33: Tensor


class Batch(NamedTuple):
    """One global batch of one stream. `targets["label"]` holds class indices [B], or, multi-label, bool [B, classes]; a
    mixing step adds `"partner"` (the other label) and `"weight"` (share of the own label [B], in [0,1]); a stream
    without labels has no targets. Objects are `"boxes"` [B, M, 4], corners in pixels of the first view, and
    `"box_class"` [B, M], -1 in rows without a box. Text is `"text"`, ids [B, T] with their end, padded at the right,
    and `"source"` [B, S] where text is read in place of images; then there are no views. `sample_ids_B` number the
    samples: place in the split plus STREAM_SPAN times the number of the stream, from 0, so that random numbers by these
    keys differ between streams."""

    views: tuple[View, ...]
    targets: dict[str, Tensor]
    sample_ids_B: Tensor

    def slice(self, start: int, stop: int) -> Batch:
        """Samples start..stop of every part: how a batch is cut into micro-batches."""
        return Batch(
            tuple(View(v.images_BCHW[start:stop], v.matrix_B33[start:stop]) for v in self.views),
            {name: value[start:stop] for name, value in self.targets.items()},
            self.sample_ids_B[start:stop],
        )


def sample_places(batch: Batch) -> Tensor:
    """Places of the samples in their split, [B]."""
    return batch.sample_ids_B % STREAM_SPAN


def device_of(batches: Mapping[str, Batch]) -> torch.device:
    """Where the images are; of a batch without images, its targets."""
    first = next(iter(batches.values()))
    return first.views[0].images_BCHW.device if first.views else next(iter(first.targets.values())).device


def count_samples(batches: Mapping[str, Batch]) -> int:
    """Samples of the first stream: those by which steps are measured and cut."""
    return len(next(iter(batches.values())).sample_ids_B)


def micro_batches(batches: Mapping[str, Batch], size: int | None) -> Iterator[dict[str, Batch]]:
    """All streams cut in proportion: `size` samples of the first stream at once (None: all; the last part may be
    shorter), and of every other stream of n samples those from n start / B to n stop / B, rounded down, where start
    and stop are the part's place among the B samples of the first."""
    whole = count_samples(batches)
    for start in range(0, whole, size or whole):
        stop = min(start + (size or whole), whole)
        yield {
            name: batch.slice(start * len(batch.sample_ids_B) // whole, stop * len(batch.sample_ids_B) // whole)
            for name, batch in batches.items()
        }


class EncoderOutput(NamedTuple):
    """What an encoder says of its images, after the final norm (before it, where the norm follows pooling).

    `grid` is (rows, columns) of the patches before any were dropped; `captured` maps names such as "blocks.3.attn.map"
    to tensors. `groups_BN`, where tokens became fewer: the row of `patches_BND` that each encoded patch went into, -1
    for one that was dropped.
    """

    cls_BD: Tensor | None
    registers_BRD: Tensor | None
    patches_BND: Tensor
    grid: tuple[int, int]
    distill_BD: Tensor | None
    groups_BN: Tensor | None
    captured: dict[str, Tensor]


class StepOutput(NamedTuple):
    """Result of an objective for a batch, or for the part of one that is a micro-batch or belongs to one process.

    The loop minimizes the sum of all parts' `loss_sum` over the sum of all parts' `weight`, so losses that are
    normalized by tokens, boxes or masked patches add up to the same gradient however the batch is cut. `weight` is an
    int where it is the number of samples, else a scalar tensor without gradient. `metrics` are scalars to log, as means
    by `weight`; `means` are tensors whose means over the samples of the whole batch `after_update` gets.
    """

    loss_sum: Tensor
    weight: Tensor | int
    metrics: dict[str, Tensor]
    means: dict[str, Tensor] = {}  # noqa: RUF012 - never written to

    @classmethod
    def mean(
        cls, loss: Tensor, samples: int, metrics: dict[str, Tensor], means: dict[str, Tensor] | None = None
    ) -> StepOutput:
        """From a loss that is a mean over the part's samples."""
        return cls(loss * samples, samples, metrics, means or {})

    @property
    def loss(self) -> Tensor:
        """The loss of this part alone."""
        return self.loss_sum / self.weight
