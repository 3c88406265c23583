"""Any number of threads gives the same bits, says what went wrong, and leaves nothing behind."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import TINY, assert_equal_tensors, weights, write_shapes
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore, RandomCrop, to_device
from vitral.data.loader import StreamLoader
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.structs import Batch
from vitral.training.train_state import TrainState

VARIED = AugmentConfig(crop="random_resized", flip=0.5, rotate=10, mixup=0.5, cutmix=0.5, repeated_aug=2)
CROPS = (RandomCrop(5, VARIED.crop_scale, VARIED.aspect_ratio),)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG and PNG files of three classes at sizes from 40 to 90 pixels."""
    root = write_shapes(tmp_path_factory.mktemp("photos") / "p", 12)
    for path in sorted(root.rglob("*.png"))[::2]:
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return root


@pytest.fixture
def split(photos: Path) -> Split:
    return open_dataset(DataConfig(path=str(photos), source="folder")).splits["train"]


def store(split: Split, **more: Any) -> ImageStore:
    keys: dict[str, Any] = {"exact": False, "workers": 2, "cache_mb": 0, "device": torch.device("cpu"), "crops": CROPS}
    return ImageStore(split, (24, 20), ResizeSpec(resize_mode="crop"), **{**keys, **more})


def batches(split: Split, start: int, stop: int, **more: Any) -> list[Batch]:
    with store(split, **more) as opened:
        return list(StreamLoader(opened, StreamConfig(16, VARIED, balance="class"), 5).stream(start, stop))


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.views[0].images_BCHW, other.views[0].images_BCHW)
        and torch.equal(one.views[0].matrix_B33, other.views[0].matrix_B33)
        and all(torch.equal(one.targets[key], other.targets[key]) for key in one.targets)
        and torch.equal(one.sample_ids_B, other.sample_ids_B)
    )


def left() -> list[str]:
    """Threads that belong to readers."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vitral")]


@pytest.mark.parametrize("workers", [0, 2, 8])
@pytest.mark.parametrize("crops", [CROPS, ()])
def test_batches_are_bit_equal_for_any_workers(split: Split, workers: int, crops: tuple[RandomCrop, ...]) -> None:
    reference = batches(split, 0, 6, workers=0, crops=crops)
    found = batches(split, 2, 6, workers=workers, crops=crops)
    assert len(found) == 4
    assert all(same(one, other) for one, other in zip(found, reference[2:], strict=True))
    assert left() == []


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_joined_are_the_whole_batch(split: Split, world: int) -> None:
    varied = VARIED.model_copy(update={"repeated_aug": 4})
    with store(split) as opened:
        whole = StreamLoader(opened, StreamConfig(32, varied, balance="sqrt"), 1)
        parts = [
            StreamLoader(opened, StreamConfig(32, varied, balance="sqrt"), 1, rank=rank, world=world)
            for rank in range(world)
        ]
        for step in (0, 3, 11):
            expected, found = whole.batch(step), [part.batch(step) for part in parts]
            joined = Batch(
                (
                    expected.views[0]._replace(
                        images_BCHW=torch.cat([part.views[0].images_BCHW for part in found]),
                        matrix_B33=torch.cat([part.views[0].matrix_B33 for part in found]),
                    ),
                ),
                {key: torch.cat([part.targets[key] for part in found]) for key in expected.targets},
                torch.cat([part.sample_ids_B for part in found]),
            )
            assert {len(part.sample_ids_B) for part in found} == {32 // world}
            assert same(joined, expected)


def test_ranks_take_groups_of_eight(split: Split) -> None:
    with store(split) as opened, pytest.raises(UserError, match=r"(?s)train\.batch_size.*multiple of 24"):
        StreamLoader(opened, StreamConfig(32, AugmentConfig()), 0, world=3)


def test_the_view_matrix_says_where_the_crop_lies(split: Split) -> None:
    """Crops of images that hold their own coordinates: matrix @ source is the place in the view."""
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(160), indexing="ij")
    ramp = torch.stack([rows, columns, rows * 0]).byte()
    ramps = Split(split.labels_N, split.names, lambda index: ramp)
    config = AugmentConfig(crop="random_resized", crop_scale=(0.3, 0.9))
    with store(ramps, crops=(RandomCrop(5, config.crop_scale, config.aspect_ratio),)) as opened:
        view = StreamLoader(opened, StreamConfig(16, config), 5).batch(0).views[0]
    middle = torch.linalg.inv(view.matrix_B33) @ torch.tensor([9.0, 11.0, 1.0])
    found = view.images_BCHW[:, :2, 11, 9] * 255
    torch.testing.assert_close(found, middle[:, [1, 0]], atol=1.0, rtol=0)


def read_or_fail(split: Split, index: int) -> torch.Tensor:
    if index == 7:
        raise UserError("unreadable image: cut off", where="photos/007.png")
    return split.read(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_loop_as_it_is(split: Split, workers: int) -> None:
    broken = Split(split.labels_N, split.names, partial(read_or_fail, split))
    with store(broken, workers=workers, crops=()) as opened:
        with pytest.raises(UserError, match=r"^photos/007\.png: unreadable image: cut off$"):
            opened.get(torch.tensor([1, 2, 7, 3]))
        assert opened.get(torch.tensor([1, 2, 3])).shape == (3, 3, 24, 20), "the others are still read"
    assert left() == []


def test_reading_ahead_is_bounded_and_dropped_when_nobody_wants_it(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = StreamLoader._ask
    monkeypatch.setattr(StreamLoader, "_ask", lambda self, step: (asked.append(step), ask(self, step))[1])
    with store(split) as opened:
        loader = StreamLoader(opened, StreamConfig(8, AugmentConfig(crop="random_resized")), 0)
        for _ in range(3):  # left in the middle three times: nothing of it is kept
            stream = loader.stream(0, 100)
            for _ in range(4):
                next(stream)
            stream.close()
    assert asked == [*range(6)] * 3
    assert left() == []


def test_a_run_ends_without_threads_and_resumes_to_the_same_bits(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of an epoch, with another number of workers afterwards."""
    keys = {
        **TINY, "data.path": str(photos), "data.source": "folder", "data.image_size": 16, "model.patch_size": 8,
        "data.cache_mb": 0, "train.steps": 6, "augment.crop": "random_resized", "augment.repeated_aug": 2,
        "data.balance": "class", "data.workers": 2, "train.save_seconds": 0.0,
    }  # fmt: skip
    run(load_config("small", {**keys, "out": "whole"}))
    assert left() == []
    make = StreamLoader.batch

    def batch(self: StreamLoader, step: int) -> Batch:
        if step == 3:
            raise RuntimeError("power cut")
        return make(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(StreamLoader, "batch", batch)
        with pytest.raises(RuntimeError, match="power cut"):
            run(load_config("small", {**keys, "out": "parts"}))
    assert left() == []
    steps: list[int] = []
    save = TrainState.save
    monkeypatch.setattr(
        TrainState, "save", lambda self, path, **_: (steps.append(self.progress.step), save(self, path))[1]
    )
    run(load_config("parts/config.yaml", {"out": "parts", "resume": True, "data.workers": 3}))
    assert steps == [4, 5, 6]
    assert_equal_tensors(weights("whole"), weights("parts"))
    assert left() == []


def test_on_cuda_the_copy_is_from_pinned_memory_and_beside_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device only the calls can be followed: pinned, copied on a stream of its own, waited for."""
    calls: list[str] = []

    class FakeStream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: FakeStream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            calls.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            calls.append("back")

    class FakeTensor:
        def is_pinned(self) -> bool:
            return False

        def pin_memory(self) -> FakeTensor:
            calls.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool) -> FakeTensor:
            calls.append(f"copied to {device}, non_blocking={non_blocking}")
            return self

        def record_stream(self, stream: FakeStream) -> None:
            calls.append(f"kept for {stream.name}")

    monkeypatch.setattr("vitral.data.image_store._copy_stream", lambda device: FakeStream("beside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    to_device(FakeTensor(), torch.device("cuda:0"))  # type: ignore[arg-type]
    assert calls == [
        "pinned", "on beside", "copied to cuda:0, non_blocking=True", "back", "main waits for beside", "kept for main",
    ]  # fmt: skip


def test_the_crop_is_cut_from_the_file_and_not_from_the_model_s_size(photos: Path) -> None:
    """A fine pattern survives in a small crop of a large file; it would not, had the file been shrunk before."""
    pattern = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Path("fine/a").mkdir(parents=True)
    Path("fine/b").mkdir(parents=True)
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        Image.fromarray(pattern).convert("RGB").save(Path("fine") / name)
    fine = open_dataset(DataConfig(path="fine", source="folder"), hold_out=False).splits["train"]
    config = AugmentConfig(crop="random_resized", crop_scale=(0.0078125, 0.0078125), aspect_ratio=(1.0, 1.0))
    with store(fine, crops=(RandomCrop(5, config.crop_scale, config.aspect_ratio),)) as opened:
        assert not opened.cached
        images = StreamLoader(opened, StreamConfig(8, config), 5).batch(0).views[0].images_BCHW
    assert images.std(dim=(1, 2, 3)).min() > 0.1, "0.02 and less of what was shrunk to the model's size"
