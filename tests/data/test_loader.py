"""The training stream and the evaluation batches: every sample once, the same batch whenever it is asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore
from vitral.data.loader import StreamLoader, TrainLoader, eval_batches
from vitral.data.resize import fit_image
from vitral.data.sources import open_dataset
from vitral.structs import Batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split() -> Split:
    return open_dataset(DataConfig(source="digits")).splits["val"]


def store(split: Split, *, exact: bool = False, cache_mb: int = 100, workers: int = 2, size: int = 8) -> ImageStore:
    return ImageStore(
        split, (size, size), ResizeSpec(resize_mode="crop"), exact=exact, workers=workers, cache_mb=cache_mb, device=CPU
    )


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.views[0].images_BCHW, other.views[0].images_BCHW)
        and all(torch.equal(one.targets[key], other.targets[key]) for key in one.targets)
        and torch.equal(one.sample_ids_B, other.sample_ids_B)
    )


VARIED = AugmentConfig(rotate=10, flip=0.5, mixup=0.5, cutmix=0.5)


@pytest.mark.parametrize("batch_size", [7, 64, 144, 500])
def test_every_sample_comes_once_an_epoch_and_every_batch_is_full(split: Split, batch_size: int) -> None:
    loader = StreamLoader(store(split), StreamConfig(batch_size, AugmentConfig()), 0)
    steps = 3 * 144 // batch_size + 1
    batches = [loader.batch(step) for step in range(steps)]
    assert {len(batch.sample_ids_B) for batch in batches} == {batch_size}
    keys = torch.cat([batch.sample_ids_B for batch in batches]).tolist()
    for epoch in range(len(keys) // 144):
        assert Counter(keys[epoch * 144 : (epoch + 1) * 144]) == Counter(range(144))
    assert keys[:144] != keys[144:288]


def test_label_and_image_belong_together(split: Split) -> None:
    batch = StreamLoader(store(split), StreamConfig(32, AugmentConfig()), 0).batch(11)
    for image, label, key in zip(
        batch.views[0].images_BCHW, batch.targets["label"], batch.sample_ids_B.tolist(), strict=True
    ):
        assert torch.equal(image, split.read(key).float() / 255)
        assert label == split.labels_N[key]


@pytest.mark.parametrize(("cache_mb", "workers"), [(100, 1), (0, 1), (0, 8)])
def test_batches_are_bit_equal_however_they_are_read(split: Split, cache_mb: int, workers: int) -> None:
    reference = StreamLoader(store(split), StreamConfig(50, VARIED), 3)
    loader = StreamLoader(store(split, cache_mb=cache_mb, workers=workers), StreamConfig(50, VARIED), 3)
    assert loader.store.cached == (cache_mb > 0)
    for step, batch in zip(range(2, 9), loader.stream(2, 9), strict=True):
        assert same(batch, reference.batch(step)), step


def test_a_batch_is_the_same_after_a_jump(split: Split) -> None:
    loader = StreamLoader(store(split), StreamConfig(50, VARIED), 3)
    later = loader.batch(40)
    assert same(later, StreamLoader(store(split), StreamConfig(50, VARIED), 3).batch(40))
    assert not same(later, StreamLoader(store(split), StreamConfig(50, VARIED), 4).batch(40))
    assert list(loader.stream(5, 5)) == []


@pytest.mark.parametrize(("cache_mb", "start", "stop"), [(100, 0, 9), (0, 2, 8), (0, 4, 5), (0, 3, 3)])
def test_replays_repeat_each_batch_of_all_streams_exactly(
    split: Split, cache_mb: int, start: int, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def streams() -> dict[str, StreamLoader]:
        read = store(split, cache_mb=cache_mb)
        return {
            "a": StreamLoader(read, StreamConfig(16, VARIED), 0),
            "b": StreamLoader(read, StreamConfig(32, AugmentConfig(rotate=10)), 0, number=1),
        }

    once, thrice = TrainLoader(streams()), TrainLoader(streams(), replays=3)
    expected = [once.batch(step // 3) for step in range(start, stop)]
    made, make = list[int](), StreamLoader.batch
    monkeypatch.setattr(StreamLoader, "batch", lambda self, step: made.append(step) or make(self, step))
    streamed = list(thrice.stream(start, stop))
    assert sorted(set(made)) == sorted({step // 3 for step in range(start, stop)}), made
    assert len(made) == 2 * len(set(made)), "each batch of each stream is made once"
    assert len(streamed) == len(expected) == stop - start
    for step, one, other in zip(range(start, stop), streamed, expected, strict=True):
        for found in (one, thrice.batch(step)):
            assert all(same(found[name], other[name]) for name in ("a", "b"))


def test_an_error_while_reading_ahead_reaches_the_loop(split: Split) -> None:
    def read(index: int) -> torch.Tensor:
        if index == 17:
            raise ValueError("broken")
        return split.read(index)

    broken = Split(split.labels_N, split.names, read)
    loader = StreamLoader(store(broken, cache_mb=0), StreamConfig(32, AugmentConfig()), 0)
    with pytest.raises(ValueError, match="broken"):
        list(loader.stream(0, 6))


@pytest.mark.parametrize("cache_mb", [0, 100])
def test_evaluation_sees_each_sample_once_through_the_exact_resize(split: Split, cache_mb: int) -> None:
    batches = list(eval_batches(store(split, exact=True, cache_mb=cache_mb, size=12), 50))
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert np.array_equal(labels.numpy(), split.labels_N)
    assert torch.equal(
        images, torch.stack([fit_image(split.read(i), (12, 12), ResizeSpec(resize_mode="crop")) for i in range(144)])
    )
