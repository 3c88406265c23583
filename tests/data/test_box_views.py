"""Boxes of batches by truth: a white rectangle is drawn at the box, and found again in the view."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.test_view_matrices import AUGMENTS, JPEGS, PNGS, geometric
from vitral.data.boxes import BoxRow, BoxTargets, as_boxes
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.dataset import Split
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore, RandomCrop
from vitral.data.loader import StreamLoader
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.structs import Batch, View

SIZE = (48, 40)  # of the views, (height, width)
DARK, WHITE, HALF = 40, 255, 0.58
_STORE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition that an EXIF orientation undoes
PAD = ResizeSpec(resize_mode="pad")
RESIZES = {"crop": ResizeSpec(resize_mode="crop"), "squash": ResizeSpec(resize_mode="squash"), "pad": PAD,
           "pad and cut": ResizeSpec(resize_mode="pad", crop_pct=0.8)}  # fmt: skip


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """One rectangle on dark noise per image: PNGs of odd shapes, JPEGs of every EXIF orientation."""
    root = tmp_path_factory.mktemp("rectangles")
    random, lines = np.random.default_rng(3), ["path,label,xmin,ymin,xmax,ymax"]
    sizes = [size for size in PNGS if max(size) < 3 * min(size)]
    for number, (turn, (height, width)) in enumerate([(0, size) for size in sizes] + list(JPEGS.items())):
        pixels = random.integers(0, DARK, (height, width, 3), np.uint8)
        x0, y0 = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
        x1 = int(random.integers(x0 + width // 4, width + 1))
        y1 = int(random.integers(y0 + height // 4, height + 1))
        pixels[y0:y1, x0:x1] = WHITE
        image, exif, name = Image.fromarray(pixels), Image.Exif(), f"{number:02}.{'jpg' if turn else 'png'}"
        if turn > 1:
            exif[0x0112] = turn
            image = image.transpose(Image.Transpose(_STORE[turn]))
        more: dict[str, Any] = {"quality": 98, "subsampling": 0, "exif": exif} if turn else {}
        image.save(root / name, **more)
        lines.append(f"{name},{'ab'[number % 2]},{x0},{y0},{x1},{y1}")
    (root / "boxes.csv").write_text("\n".join(lines), encoding="utf-8")
    return open_dataset(DataConfig(path=str(root)), hold_out=False, boxes=True).splits["train"]


def store(
    split: Split, fit: ResizeSpec = PAD, *, cached: bool = True, crops: tuple[RandomCrop, ...] = (), workers: int = 0
) -> ImageStore:  # fmt: skip
    return ImageStore(split, SIZE, fit, exact=False, workers=workers, cache_mb=100 if cached else 0,
                      device=torch.device("cpu"), crops=crops)  # fmt: skip


def check(batch: Batch, which: Tensor, classes: Tensor, within: float = 1.0, *, twice: bool = False) -> int:
    """The number of rectangles among the samples `which` that fill their boxes.

    The box of a turned rectangle is the hull of its corners, cut at the view's border: where it is cut, or the image is
    moved `twice`, what is seen of the rectangle may be less, and must lie inside."""
    boxes_BM4, class_BM = batch.targets["boxes"], batch.targets["box_class"]
    assert boxes_BM4.dtype == torch.float32
    assert boxes_BM4.shape == (*class_BM.shape, 4)
    assert not boxes_BM4[class_BM < 0].any()
    checked = 0
    for row in (which & (class_BM[:, 0] >= 0)).nonzero()[:, 0].tolist():
        assert class_BM[row, 0] == classes[batch.sample_ids_B[row]]
        white_HW = batch.views[0].images_BCHW[row].amin(0) > HALF
        box = boxes_BM4[row, 0]
        if (box[2:] - box[:2]).min() < 3:  # too thin to be seen as white
            continue
        y, x = (white_HW.any(axis).nonzero()[:, 0] for axis in (1, 0))
        found = torch.tensor([x[0], y[0], x[-1] + 1, y[-1] + 1])
        assert ((found - box)[:2] >= -within).all(), (row, found, box)
        assert ((found - box)[2:] <= within).all(), (row, found, box)
        matrix_33, (height, width) = batch.views[0].matrix_B33[row], SIZE
        is_turned = bool(matrix_33[0, 1].abs() + matrix_33[1, 0].abs() > 1e-4)
        is_cut = bool(box[:2].min() <= 0 or box[2] >= width or box[3] >= height)
        if twice or (is_turned and is_cut):
            continue
        assert (found - box).abs().max() <= within, (row, found, box)
        checked += 1
    return checked


@pytest.mark.parametrize("name", list(AUGMENTS))
@pytest.mark.parametrize("how", ["cached", "read", "cut"])
def test_boxes_lie_where_their_rectangles_are(split: Split, name: str, how: str) -> None:
    """Over all keys that move pixels, from a cache, from whole files, and from parts cut while decoding."""
    config = AUGMENTS[name].model_copy(update={"random_erasing": 0.0})
    if how == "cut" and config.crop == "none":
        pytest.skip("nothing is cut")
    crops = (RandomCrop(3, config.crop_scale, config.aspect_ratio),) if how == "cut" else ()
    checked, twice = 0, name == "crop_policy" or (how == "cut" and name == "all")
    with store(split, cached=how == "cached", crops=crops) as opened:
        loader = StreamLoader(opened, StreamConfig(len(split), config), 3)
        for step in range(3):
            mine = geometric(loader, step, SIZE)
            # Corners of turned and sheared rectangles are blunt in pixels.
            within = 1.0 if name in ("none", "flip", "flip_vertical", "pad_crop", "crop") else 1.5
            classes = torch.from_numpy(split.labels_N.argmax(1))
            checked += check(loader.batch(step), mine, classes, within, twice=twice)
    assert twice or checked >= 5, checked


@pytest.mark.parametrize("name", list(RESIZES))
@pytest.mark.parametrize("cached", [True, False])
def test_boxes_follow_the_resize_of_the_store(split: Split, name: str, cached: bool) -> None:
    with store(split, RESIZES[name], cached=cached) as opened:
        batch = StreamLoader(opened, StreamConfig(len(split), AugmentConfig(flip=0.5)), 3).batch(0)
    every = torch.ones(len(split)).bool()
    assert check(batch, every, torch.from_numpy(split.labels_N.argmax(1))) >= (len(split) if name == "pad" else 8)


def test_batches_with_boxes_are_equal_for_any_workers_and_processes(split: Split) -> None:
    config = StreamConfig(16, AUGMENTS["crop_policy"])
    crops = (RandomCrop(3, config.augment.crop_scale, config.augment.aspect_ratio),)
    found: list[Batch] = []
    for workers in (0, 2, 8):
        with store(split, cached=False, crops=crops, workers=workers) as opened:
            found.append(list(StreamLoader(opened, config, 3).stream(0, 3))[-1])
    with store(split, cached=False, crops=crops) as opened:
        halves = [StreamLoader(opened, config, 3, rank=rank, world=2).batch(2) for rank in (0, 1)]
    for name, value in found[0].targets.items():
        assert all(torch.equal(value, other.targets[name]) for other in found[1:])
        assert torch.equal(value, torch.cat([half.targets[name] for half in halves])), "shapes are those of the split"
    assert set(found[0].targets) == {"boxes", "box_class"}
    assert torch.equal(found[0].slice(3, 5).targets["boxes"], found[0].targets["boxes"][3:5])


def targets(rows: list[BoxRow], matrix: Tensor | None = None, min_visible: float = 0.3) -> dict[str, Tensor]:
    boxes = as_boxes([rows, []], [(0, 0)] * 2, {"a": 0, "b": 1})
    matrix_B33 = (torch.eye(3) if matrix is None else matrix).expand(2, 3, 3)
    return BoxTargets(boxes, min_visible)(torch.arange(2), View(torch.zeros(2, 1, 10, 10), matrix_B33))


def test_what_becomes_no_target() -> None:
    rows = [
        BoxRow((1, 1, 4, 4), "b"), BoxRow((0, 0, 9, 9), "a", True), BoxRow((2, 2, 2.5, 8), "a"),  # a crowd, a thin one
        BoxRow((8, 0, 13, 10), "a"), BoxRow((5, 5, 8, 8), "a"), BoxRow((9.5, 9.5, 11, 11), "b"),
    ]  # fmt: skip
    found = targets(rows)
    assert found["box_class"].tolist() == [[1, 0, 0, -1], [-1] * 4], "a ninth of the last one is seen"
    assert found["boxes"][0].tolist() == [[1, 1, 4, 4], [8, 0, 10, 10], [5, 5, 8, 8], [0, 0, 0, 0]]
    assert targets(rows, min_visible=0.5)["box_class"].tolist()[0] == [1, -1, 0, -1]
    smaller = torch.diag(torch.tensor([0.2, 0.2, 1.0]))
    assert (targets(rows, smaller)["box_class"] >= 0).sum() == 1, "boxes under one pixel in the view are dropped"
    assert targets([])["box_class"].tolist() == [[-1], [-1]]


@pytest.mark.parametrize("keys", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_boxes_are_not_mixed(split: Split, keys: dict[Literal["mixup", "cutmix"], float]) -> None:
    with store(split) as opened, pytest.raises(UserError, match="boxes of mixed images have no weights"):
        StreamLoader(opened, StreamConfig(8, AugmentConfig(**keys)), 3)


def test_unlabeled_batches_hold_no_boxes(split: Split) -> None:
    with store(split) as opened:
        assert StreamLoader(opened, StreamConfig(8, AugmentConfig(), labeled=False), 3).batch(0).targets == {}
