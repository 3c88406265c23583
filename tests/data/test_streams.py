"""Two streams of batches: each a pure function of seed and step, cut in proportion, varied independently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import write_colors, write_shapes
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.dataset import Dataset, Split
from vitral.data.few_labels import with_labels_per_class
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore, RandomCrop
from vitral.data.loader import StreamLoader, TrainLoader
from vitral.data.sources import open_dataset
from vitral.data.unlabeled import with_unlabeled, without_held_out
from vitral.errors import UserError
from vitral.structs import STREAM_SPAN, Batch, count_samples, micro_batches, sample_places

VARIED = AugmentConfig(crop="random_resized", flip=0.5, rotate=10, mixup=0.5, cutmix=0.5, repeated_aug=2)
PLAIN = VARIED.model_copy(update={"mixup": 0.0, "cutmix": 0.0, "repeated_aug": 1})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_shapes(tmp_path_factory.mktemp("streams") / "p", 14)
    for path in sorted(root.rglob("*.png"))[::2]:
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return open_dataset(DataConfig(path=str(root), source="folder"), hold_out=False)


def loader(data: Dataset, rank: int = 0, world: int = 1, **more: Any) -> TrainLoader:
    """16 labeled and 48 unlabeled images a step, from one folder divided in two."""
    both = with_labels_per_class(data, 5, 0)
    streams: dict[str, StreamLoader] = {}
    for number, (name, size, augment) in enumerate((("train", 16, VARIED), ("unlabeled", 48, PLAIN))):
        crop = RandomCrop(5, VARIED.crop_scale, VARIED.aspect_ratio, first=number * STREAM_SPAN)
        keys: dict[str, Any] = {
            "exact": False,
            "workers": 2,
            "cache_mb": 0,
            "device": torch.device("cpu"),
            "crops": (crop,),
            **more,
        }
        store = ImageStore(both.parts[name], (24, 20), ResizeSpec(resize_mode="crop"), **keys)
        streams[name] = StreamLoader(
            store, StreamConfig(size, augment, labeled=number == 0), 5, rank=rank, world=world, number=number
        )
    return TrainLoader(streams)


def take(made: TrainLoader, start: int, stop: int) -> list[dict[str, Batch]]:
    try:
        return list(made.stream(start, stop))
    finally:
        for stream in made.streams.values():
            assert isinstance(stream, StreamLoader)
            stream.store.close()


def assert_same(one: dict[str, Batch], other: dict[str, Batch]) -> None:
    assert one.keys() == other.keys()
    for name, mine in one.items():
        theirs = other[name]
        assert torch.equal(mine.sample_ids_B, theirs.sample_ids_B)
        assert torch.equal(mine.views[0].images_BCHW, theirs.views[0].images_BCHW)
        assert torch.equal(mine.views[0].matrix_B33, theirs.views[0].matrix_B33)
        assert mine.targets.keys() == theirs.targets.keys()
        assert all(torch.equal(value, theirs.targets[key]) for key, value in mine.targets.items())


@pytest.mark.parametrize("workers", [2, 8])
def test_both_streams_are_bit_equal_for_any_workers_and_after_a_resume(photos: Dataset, workers: int) -> None:
    whole = take(loader(photos, workers=0), 0, 5)
    for found, expected in zip(take(loader(photos, workers=workers), 0, 5), whole, strict=True):
        assert_same(found, expected)
    assert_same(take(loader(photos, workers=workers), 3, 5)[0], whole[3])


def test_ranks_have_their_rows_of_every_stream(photos: Dataset) -> None:
    whole = take(loader(photos), 2, 3)[0]
    parts = [take(loader(photos, rank, 2), 2, 3)[0] for rank in range(2)]
    assert [{name: len(batch.sample_ids_B) for name, batch in part.items()} for part in parts] == [
        {"train": 8, "unlabeled": 24}
    ] * 2
    for name, batch in whole.items():
        images = torch.cat([part[name].views[0].images_BCHW for part in parts])
        assert torch.equal(images, batch.views[0].images_BCHW), name
    with pytest.raises(UserError, match="multiple of 8"):
        loader(photos, world=3)


def test_a_stream_without_labels_has_no_targets_and_every_sample_once_an_epoch(photos: Dataset) -> None:
    made = loader(photos)
    count = made.streams["unlabeled"].samples
    batches = take(made, 0, count)
    assert all(batch["unlabeled"].targets == {} for batch in batches)
    assert batches[0]["train"].targets.keys() == {"label", "partner", "weight"}
    places = torch.cat([sample_places(batch["unlabeled"]) for batch in batches]).numpy()
    assert np.array_equal(np.bincount(places, minlength=count), np.full(count, 48))
    assert made.samples == 15
    assert made.images == 64


def test_the_same_place_of_two_streams_is_drawn_and_cropped_differently(photos: Dataset) -> None:
    """One split in both streams: order, crops and all else differ, though places and seed are the same."""
    split, images = photos.splits["train"], dict[str, Batch]()
    for number in (0, 1):
        store = ImageStore(
            split,
            (24, 20),
            ResizeSpec(resize_mode="crop"),
            exact=False,
            workers=0,
            cache_mb=99,
            device=torch.device("cpu"),
        )
        images[str(number)] = StreamLoader(store, StreamConfig(len(split), PLAIN), 5, number=number).batch(0)
    one, other = images["0"], images["1"]
    assert not torch.equal(sample_places(one), sample_places(other))
    assert torch.equal(sample_places(one).sort()[0], sample_places(other).sort()[0])
    order = [sample_places(batch).argsort() for batch in (one, other)]
    mine, theirs = (batch.views[0].matrix_B33[places] for batch, places in zip((one, other), order, strict=True))
    assert (mine != theirs).flatten(1).any(1).all()


@pytest.mark.parametrize("size", [None, 1, 5, 7, 16])
def test_micro_batches_cut_all_streams_in_proportion(photos: Dataset, size: int | None) -> None:
    whole = take(loader(photos), 0, 1)[0]
    parts = list(micro_batches(whole, size))
    assert [count_samples(part) for part in parts] == [
        min(size or 16, 16 - start) for start in range(0, 16, size or 16)
    ]
    assert all(len(part["unlabeled"].sample_ids_B) == 3 * count_samples(part) for part in parts)
    for name, batch in whole.items():
        assert torch.equal(torch.cat([part[name].sample_ids_B for part in parts]), batch.sample_ids_B)


def test_labels_per_class_keeps_so_many_labels_and_all_images(photos: Dataset) -> None:
    train = photos.splits["train"]
    few, more = (with_labels_per_class(photos, count, 3) for count in (2, 4))
    assert few.splits["train"].class_counts(3).tolist() == [2, 2, 2]
    assert set(few.splits["train"].names) < set(more.splits["train"].names)
    assert sorted([*few.splits["train"].names, *few.parts["unlabeled"].names]) == sorted(train.names)
    assert not few.parts["unlabeled"].labels_N.any()
    assert few.splits["train"].names != with_labels_per_class(photos, 2, 4).splits["train"].names
    assert "6 labeled train images, 2 of each class" in few.notes[-1]
    with pytest.raises(UserError, match=r"(?s)data\.labels_per_class: the class circle has 14.*expected: at most 14"):
        with_labels_per_class(photos, 15, 0)
    with pytest.raises(UserError, match="every training image keeps its label"):
        with_labels_per_class(photos, 14, 0)


def beside(data: Dataset, path: Path, **keys: Any) -> Dataset:
    return with_unlabeled(data, DataConfig(unlabeled=str(path), **keys))


def test_unlabeled_images_come_from_any_source_and_lose_their_labels(photos: Dataset, tmp_path: Path) -> None:
    write_colors(tmp_path / "pets", "cat dog", 3)
    found = beside(photos, tmp_path / "pets").parts["unlabeled"]
    assert len(found) == 6
    assert not found.labels_N.any()
    (tmp_path / "flat").mkdir()
    for number in range(4):
        Image.new("RGB", (30, 20), (9 * number, 1, 2)).save(tmp_path / "flat" / f"{number}.png")
    assert len(beside(photos, tmp_path / "flat").parts["unlabeled"]) == 4
    whole = beside(photos, tmp_path / "flat").whole_fingerprint
    assert photos.whole_fingerprint == photos.fingerprint != whole
    Image.new("RGB", (30, 20), (99, 1, 2)).save(tmp_path / "flat" / "4.png")
    assert beside(photos, tmp_path / "flat").whole_fingerprint != whole


def test_unlabeled_images_of_other_channels_or_of_no_place_are_refused(photos: Dataset, tmp_path: Path) -> None:
    (tmp_path / "gray").mkdir()
    for number in range(4):
        Image.new("L", (30, 20), 9 * number).save(tmp_path / "gray" / f"{number}.png")
    with pytest.raises(UserError, match=r"(?s)data\.unlabeled: .*other channels.*got: +1.*expected: 3"):
        beside(photos, tmp_path / "gray")
    assert beside(photos, tmp_path / "gray", channels=3).parts["unlabeled"].read(0).shape == (3, 20, 30)
    with pytest.raises(UserError, match=r"data\.unlabeled: no such folder") as caught:
        beside(photos, tmp_path / "nowhere")
    assert "data.path" not in str(caught.value)


def test_copies_of_held_out_images_are_left_out(tmp_path: Path) -> None:
    """The folder of labeled images, given as unlabeled ones too: what was held out of train is in neither stream."""
    root = write_shapes(tmp_path / "p", 10)
    data = open_dataset(DataConfig(path=str(root), source="folder"))
    split: Split = without_held_out(beside(data, root)).parts["unlabeled"]
    assert sorted(split.names) == sorted(data.splits["train"].names)
